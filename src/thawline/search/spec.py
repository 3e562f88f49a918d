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
    """The study's own run, as needed by its trials and its conclusion."""

    study: str
    store: MlflowStore
    run_id: str
    """Id of MLflow's parent run."""
    provenance: Provenance
    """Code and environment, recorded with every run of the study."""
    texts: tuple[ShownText, ...] = ()
    """Validation texts whose predictions every trial records."""

    @property
    def home(self) -> Path:
        """Thawline's home."""
        return self.store.home


@dataclass(frozen=True)
class TrialSpec:
    """The inputs of a trial, small and picklable, as they are sent to another process."""

    number: int
    hyperparameters: Hyperparameters
    config: SearchConfig
    study: str
    classes: tuple[str, ...]
    activations: StoredSplits
    """Where its inputs are stored: images or texts, and their frozen activations."""
    home: Path
    store: MlflowStore
    parent_run_id: str
    threads: int | None
    """CPU threads of this trial; ``None`` for torch's default."""
    dataset: tuple[str, str] | None = None
    """Name and digest of the data, as recorded in the study's run."""
    provenance: Provenance | None = None
    """Code and environment, for the trial's own record."""
    texts: tuple[ShownText, ...] = ()
    """Validation texts whose predictions are recorded during training; empty for images, which are read from their
    file."""
    seconds_before: float = 0.0
    """Time it had taken when it was paused."""
    accumulation: int = 1
    """Parts of a batch on each of several devices: more than one after memory ran out."""


def build_backbone(config: SearchConfig, name: str, num_classes: int) -> backbones.Backbone:
    """Build a backbone in the initial state of every trial of the study."""
    return backbones.create(
        name,
        num_classes=num_classes,
        weights=config.backbone.weights_of(name),
        image_size=config.backbone.image_size,
        max_length=config.backbone.max_length,
        seed=config.study.seed,
    )
