"""Create the model server's MLflow user, or reset its password to that in the environment.

The user has read-only access to every run, model and artifact, by `default_permission` in `mlflow-auth.ini`.
`compose.yaml` runs this before the model server starts; running it again only resets the password.
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
