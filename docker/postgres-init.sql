-- PostgreSQL's image runs this once, when its volume is empty. Each service has its own role and databases.
\getenv mlflow_password MLFLOW_DB_PASSWORD
\getenv prefect_password PREFECT_DB_PASSWORD
\getenv optuna_password OPTUNA_DB_PASSWORD

CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE ROLE prefect LOGIN PASSWORD :'prefect_password';
CREATE ROLE optuna LOGIN PASSWORD :'optuna_password';

CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
CREATE DATABASE prefect OWNER prefect;
CREATE DATABASE optuna OWNER optuna;

REVOKE CONNECT ON DATABASE mlflow, mlflow_auth, prefect, optuna FROM PUBLIC;
