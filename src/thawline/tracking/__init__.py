"""Record studies and their trials in MLflow, and optionally in TensorBoard, tables, W&B and plugins."""

from thawline.tracking._background import BackgroundTracker
from thawline.tracking._base import CompositeTracker, RunStatus, Tracker, TrackerRun, TrackingReport, run_status
from thawline.tracking._errors import first_line, is_missing, quiet_mlflow
from thawline.tracking._open import TRACKERS, check_trackers, open_trackers
from thawline.tracking._records import now_ms
from thawline.tracking.csv import CsvTracker
from thawline.tracking.mlflow import (
    CHECKPOINT,
    UI_PORT,
    MlflowStore,
    MlflowTracker,
    artifact_text,
    close_dead_run,
    connect,
    fetch_study_file,
    find_study_run,
    find_trial_run,
    has_run,
    metric_key,
    open_store,
    pages,
    replay_unsent,
    resolve_uri,
    start_study_run,
    unsent_records,
)
from thawline.tracking.provenance import GitState, Provenance, command_line, git_state, library_versions
from thawline.tracking.tensorboard import TensorBoardTracker
from thawline.tracking.wandb import WandbTracker, check_wandb

__all__ = [
    "CHECKPOINT",
    "TRACKERS",
    "UI_PORT",
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
    "artifact_text",
    "check_trackers",
    "check_wandb",
    "close_dead_run",
    "command_line",
    "connect",
    "fetch_study_file",
    "find_study_run",
    "find_trial_run",
    "first_line",
    "git_state",
    "has_run",
    "is_missing",
    "library_versions",
    "metric_key",
    "now_ms",
    "open_store",
    "open_trackers",
    "pages",
    "quiet_mlflow",
    "replay_unsent",
    "resolve_uri",
    "run_status",
    "start_study_run",
    "unsent_records",
]
