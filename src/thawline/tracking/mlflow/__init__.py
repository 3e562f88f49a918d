"""MLflow: the store, the study's parent run, the trials' child runs, and their records."""

from thawline.tracking.mlflow.files import CHECKPOINT
from thawline.tracking.mlflow.runs import (
    artifact_text,
    close_dead_run,
    fetch_study_file,
    find_study_run,
    find_trial_run,
    has_run,
    start_study_run,
)
from thawline.tracking.mlflow.store import UI_PORT, MlflowStore, connect, open_store, pages, resolve_uri
from thawline.tracking.mlflow.tracker import MlflowTracker
from thawline.tracking.mlflow.unsent import replay_unsent, unsent_records
from thawline.tracking.mlflow.writer import metric_key

__all__ = [
    "CHECKPOINT",
    "UI_PORT",
    "MlflowStore",
    "MlflowTracker",
    "artifact_text",
    "close_dead_run",
    "connect",
    "fetch_study_file",
    "find_study_run",
    "find_trial_run",
    "has_run",
    "metric_key",
    "open_store",
    "pages",
    "replay_unsent",
    "resolve_uri",
    "start_study_run",
    "unsent_records",
]
