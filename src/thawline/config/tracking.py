"""The section ``tracking``."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from thawline.config.model import Model, PlainName, word_off
from thawline.config.urls import ArtifactsUrl

__all__ = ["TrackingConfig"]


def _wandb_project(value: str) -> str:
    if not 0 < len(value) <= 128 or not value.isprintable() or any(sign in value for sign in "/\\#?%:"):
        raise ValueError(f"must be 1 to 128 characters without / \\ # ? % and :, but got {value!r}")
    return value


class TrackingConfig(Model):
    """Where results are recorded."""

    uri: str | None = None
    """MLflow tracking URI; by default the environment variable MLFLOW_TRACKING_URI, else a SQLite database in
    Thawline's home."""
    experiment: PlainName = "thawline"
    """MLflow experiment for the study's runs."""
    artifacts: ArtifactsUrl | None = None
    """Artifact location of a new experiment in a database, such as ``s3://bucket/thawline``; by default Thawline's
    home. A tracking server chooses its own."""
    tensorboard: bool = True
    """Also write TensorBoard event files."""
    wandb: Annotated[
        Literal["off", "offline", "online"],
        BeforeValidator(word_off, json_schema_input_type=Literal["off", "offline", "online", False]),
    ] = "off"
    """Also record in Weights & Biases (``pip install 'thawline[wandb]'``): ``online`` needs a login, ``offline`` writes
    to Thawline's home for ``wandb sync``."""
    wandb_project: Annotated[str, AfterValidator(_wandb_project)] = "thawline"
    """W&B project for the study's runs."""
    wandb_entity: str | None = Field(None, min_length=1)
    """W&B team or user that owns the project; by default W&B's own default."""
    plugins: tuple[str, ...] = ()
    """Additional trackers, by the names of their entry points in the group ``thawline.trackers``."""
    system_metrics: bool = True
    """Record CPU, memory and GPU use of every trial."""
    observe: bool = True
    """Record gradient flow, histograms and images of every trial, in at most 5 % of its time."""
    report: bool = True
    """Write a report when the study ends, and record its figures and tables."""
    git_diff: bool = True
    """Record uncommitted Git changes on every run."""
