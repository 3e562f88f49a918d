"""Makes the user of MLflow that the model server is, or resets its password to that of the environment.

It may read every run, model and artifact, by `default_permission` in `mlflow-auth.ini`, and write none. Run once by
`compose.yaml` before the model server starts; running it again changes nothing but the password.
"""

import os

from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient

name, password = os.environ["READER"], os.environ["MLFLOW_READER_PASSWORD"]
users = AuthServiceClient(os.environ["MLFLOW_TRACKING_URI"])
try:
    users.create_user(name, password)
except MlflowException as error:
    if error.error_code != "RESOURCE_ALREADY_EXISTS":
        raise
    users.update_user_password(name, password)
