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
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI, else a SQLite database in Thawline's home."""
    experiment: PlainName = "thawline"
    """MLflow experiment that the study's runs belong to."""
    artifacts: ArtifactsUrl | None = None
    """Where a new experiment in a database keeps its files, such as ``s3://bucket/thawline``; by default Thawline's
    home. A tracking server decides itself."""
    tensorboard: bool = True
    """Write TensorBoard event files beside MLflow."""
    wandb: Annotated[
        Literal["off", "offline", "online"],
        BeforeValidator(word_off, json_schema_input_type=Literal["off", "offline", "online", False]),
    ] = "off"
    """Record in Weights & Biases too (``pip install 'thawline[wandb]'``): ``online`` needs a login, ``offline`` writes
    into Thawline's home for ``wandb sync``."""
    wandb_project: Annotated[str, AfterValidator(_wandb_project)] = "thawline"
    """W&B project that the study's runs belong to."""
    wandb_entity: str | None = Field(None, min_length=1)
    """W&B team or user that the project belongs to; by default the one that W&B itself takes."""
    plugins: tuple[str, ...] = ()
    """Further trackers, by the names of their entry points in the group ``thawline.trackers``."""
    system_metrics: bool = True
    """Record CPU, memory and GPU use of every trial."""
    observe: bool = True
    """Record gradient flow, histograms and pictures of every trial, in at most 5 % of its time."""
    report: bool = True
    """Write the report of a concluded study, and record its figures and tables."""
    git_diff: bool = True
    """Record the uncommitted changes of the checkout on every run."""
