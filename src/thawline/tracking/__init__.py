"""Recording what a study and its trials do: MLflow, and TensorBoard beside it."""

from thawline.tracking._base import CompositeTracker, RunStatus, Tracker, TrackingReport, run_status
from thawline.tracking._delivery import MlflowTracker, replay_unsent, unsent_records
from thawline.tracking.mlflow import (
    MlflowStore,
    close_dead_run,
    connect,
    find_study_run,
    find_trial_run,
    metric_key,
    open_store,
    resolve_uri,
    start_study_run,
)
from thawline.tracking.provenance import GitState, git_state, library_versions
from thawline.tracking.tensorboard import TensorBoardTracker

__all__ = [
    "CompositeTracker",
    "GitState",
    "MlflowStore",
    "MlflowTracker",
    "RunStatus",
    "TensorBoardTracker",
    "Tracker",
    "TrackingReport",
    "close_dead_run",
    "connect",
    "find_study_run",
    "find_trial_run",
    "git_state",
    "library_versions",
    "metric_key",
    "open_store",
    "replay_unsent",
    "resolve_uri",
    "run_status",
    "start_study_run",
    "unsent_records",
]
