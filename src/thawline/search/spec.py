"""A trial as values: its inputs, its result, its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thawline import backbones
from thawline.activations import StoredSplits
from thawline.config import SearchConfig
from thawline.search.observation_log import ShownText
from thawline.tracking import MlflowStore, Provenance
from thawline.training import Hyperparameters

__all__ = ["StudyRun", "TrialResult", "TrialSpec", "build_backbone", "trial_folder", "trial_name"]


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


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial."""

    number: int
    state: Literal["complete", "pruned", "failed"]
    value: float | None
    """Best validation value of the study's metric; ``None`` if no epoch was finished."""
    best_epoch: int | None
    epochs: int
    """Epochs that were trained, over all restarts."""
    seconds: float
    """Wall time of the process that ended it."""
    reason: str
    """Why it ended before its last epoch, or failed; else empty."""
    run_id: str | None
    """MLflow run; ``None`` if the tracking server was never reached."""
    checkpoint: str | None
    """Best checkpoint's file, relative to Thawline's home."""
    memory_bytes: int | None = None
    """Peak memory of its tensors on the GPU; ``None`` on a CPU, where it is not counted."""
    unsent: int = 0
    """Records that could not be sent to the tracking server and are kept in Thawline's home."""
    unkept: str = ""
    """What of it is lost, and why: checkpoints that are not on disk, records that could not be delivered; else
    empty."""

    @property
    def ending(self) -> str:
        """State and reason in words, such as ``pruned after epoch 2`` or ``failed: out of memory``."""
        if not self.reason or self.reason.startswith(self.state):
            return self.reason or self.state
        return f"{self.state}: {self.reason}"

    @classmethod
    def without_result(
        cls, number: int, *, reason: str, epochs: int = 0, seconds: float = 0.0, run_id: str | None = None
    ) -> "TrialResult":
        """A failed trial whose process ended before it could report anything."""
        return cls(number, "failed", None, None, epochs, seconds, reason, run_id, None)


def trial_name(number: int, hyperparameters: Hyperparameters) -> str:
    """``trial-07 depth=3 lr=1.2e-3``, or ``trial-00 linear probe``, as it is shown in Prefect, MLflow and logs."""
    if hyperparameters.is_probe:
        return f"trial-{number:02d} linear probe"
    mantissa, _, exponent = f"{hyperparameters.learning_rate:.1e}".partition("e")
    return f"trial-{number:02d} depth={hyperparameters.freeze_depth} lr={mantissa}e{int(exponent)}"


def trial_folder(home: Path, study: str, number: int) -> Path:
    """Where a trial keeps its checkpoints."""
    return home / "studies" / study / f"trial-{number:03d}"


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
