"""Recording what a study and its trials do: MLflow, and beside it TensorBoard, tables, W&B and other packages'."""

from thawline.tracking._background import BackgroundTracker
from thawline.tracking._base import CompositeTracker, RunStatus, Tracker, TrackerRun, TrackingReport, run_status
from thawline.tracking._delivery import MlflowTracker, replay_unsent, unsent_records
from thawline.tracking._mlflow_files import CHECKPOINT
from thawline.tracking._open import TRACKERS, check_trackers, open_trackers
from thawline.tracking.csv import CsvTracker
from thawline.tracking.mlflow import (
    MlflowStore,
    close_dead_run,
    connect,
    fetch_study_file,
    find_study_run,
    find_trial_run,
    has_run,
    metric_key,
    open_store,
    resolve_uri,
    start_study_run,
)
from thawline.tracking.provenance import GitState, Provenance, command_line, git_state, library_versions
from thawline.tracking.tensorboard import TensorBoardTracker
from thawline.tracking.wandb import WandbTracker, check_wandb

__all__ = [
    "CHECKPOINT",
    "TRACKERS",
    "BackgroundTracker",
    "CompositeTracker",
    "CsvTracker",
    "GitState",
    "MlflowStore",
    "MlflowTracker",
    "Provenance",
    "RunStatus",
    "TensorBoardTracker",
    "Tracker",
    "TrackerRun",
    "TrackingReport",
    "WandbTracker",
    "check_trackers",
    "check_wandb",
    "close_dead_run",
    "command_line",
    "connect",
    "fetch_study_file",
    "find_study_run",
    "find_trial_run",
    "git_state",
    "has_run",
    "library_versions",
    "metric_key",
    "open_store",
    "open_trackers",
    "replay_unsent",
    "resolve_uri",
    "run_status",
    "start_study_run",
    "unsent_records",
]
