"""TensorBoard event files: scalars per epoch, and the hyperparameters with the final values."""

import math
from collections.abc import Mapping
from pathlib import Path

from thawline.tracking._base import RunStatus, TrackingReport

__all__ = ["TensorBoardTracker"]


class TensorBoardTracker:
    """Writes one trial to ``<home>/tensorboard/<study>/trial-007``; a resumed trial adds a file to the same folder.

    TensorBoard has no artifacts: :meth:`log_artifact` does nothing, MLflow keeps the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._params: dict[str, str] = {}
        self._last: dict[str, float] = {}
        self._report: TrackingReport | None = None
        from torch.utils.tensorboard.writer import SummaryWriter  # seconds: only where it is used

        self._writer = SummaryWriter(str(folder), flush_secs=10)

    @classmethod
    def for_trial(cls, home: Path, *, study: str, number: int) -> "TensorBoardTracker":
        """The tracker of one trial, at the place that ``thawline ui`` shows."""
        return cls(home / "tensorboard" / study / f"trial-{number:03d}")

    def log_params(self, params: Mapping[str, str]) -> None:
        """Keep the hyperparameters; they are written at :meth:`close`, together with the values they led to."""
        self._params |= params

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Write tags as texts."""
        for name, value in tags.items():
            self._writer.add_text(name, value)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, timestamp_ms: int | None = None) -> None:
        """Write scalars."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step, walltime=None if timestamp_ms is None else timestamp_ms / 1000)
            self._last[name] = float(value)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Do nothing: TensorBoard keeps no files."""

    def close(self, status: RunStatus) -> TrackingReport:
        """Write hyperparameters with the last value of each metric, and close the file."""
        if self._report is None:
            self._report = TrackingReport()
            finite = {f"hparam/{name}": value for name, value in self._last.items() if math.isfinite(value)}
            if self._params:
                # Numbers as numbers, so that TensorBoard draws axes; run_name="." keeps them in this run.
                hyperparameters = {name: _number(value) for name, value in self._params.items()}
                self._writer.add_hparams({**hyperparameters, "status": status}, finite, run_name=".")
            self._writer.close()
        return self._report


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text
