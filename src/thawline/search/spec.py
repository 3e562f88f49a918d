"""The inputs of a trial, as values."""

from dataclasses import dataclass
from pathlib import Path

from thawline import backbones
from thawline.activations import StoredSplits
from thawline.config import SearchConfig
from thawline.search.observation_log import ShownText
from thawline.tracking import MlflowStore, Provenance
from thawline.training import Hyperparameters

__all__ = ["StudyRun", "TrialSpec", "build_backbone"]


@dataclass(frozen=True)
class StudyRun:
    """The study's own run, as its trials and its conclusion need to know it."""

    study: str
    store: MlflowStore
    run_id: str
    """Of MLflow's parent run."""
    provenance: Provenance
    """What runs here; every run of the study says it."""
    texts: tuple[ShownText, ...] = ()
    """Validation texts whose answers every trial records."""

    @property
    def home(self) -> Path:
        """Thawline's home."""
        return self.store.home


@dataclass(frozen=True)
class TrialSpec:
    """Everything that a trial needs, small and picklable: it is sent to another process."""

    number: int
    hyperparameters: Hyperparameters
    config: SearchConfig
    study: str
    classes: tuple[str, ...]
    activations: StoredSplits
    """Where its inputs are, images or texts and their frozen activations."""
    home: Path
    store: MlflowStore
    parent_run_id: str
    threads: int | None
    """CPU threads of this trial; ``None`` leaves torch's own choice."""
    dataset: tuple[str, str] | None = None
    """Name and digest of the data, as the study's run has recorded them."""
    provenance: Provenance | None = None
    """What runs, for the trial's own record."""
    texts: tuple[ShownText, ...] = ()
    """Validation texts whose answers are recorded as it trains; none of images, which are read from their file."""
    seconds_before: float = 0.0
    """That it took until it was paused."""
    accumulation: int = 1
    """Parts of a batch that each of several devices computes: more than one after memory ran out."""


def build_backbone(config: SearchConfig, name: str, num_classes: int) -> backbones.Backbone:
    """A backbone as every trial of the study begins with it."""
    return backbones.create(
        name,
        num_classes=num_classes,
        weights=config.backbone.weights_of(name),
        image_size=config.backbone.image_size,
        max_length=config.backbone.max_length,
        seed=config.study.seed,
    )
