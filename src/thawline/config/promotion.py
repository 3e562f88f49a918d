"""The section ``promotion``."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from thawline.config.model import Model, PlainName

__all__ = ["GateRules", "PromotionConfig"]


class GateRules(Model):
    """What a challenger must fulfil to become champion; both are measured on the same images or texts."""

    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"] = "accuracy"
    """Metric on the test split by which a challenger must beat the champion."""
    minimum_gain: Annotated[float, Field(ge=0)] = 0.0
    """By how much at least; 0.01 is one point of accuracy."""
    significance: Annotated[float, Field(gt=0, le=1)] = 0.04
    """How often chance alone may promote a challenger that is no better: the gain must be above 0 in all but this share
    of resampled test sets. 1 asks for no evidence beyond the gain itself."""
    max_recall_loss: Annotated[float, Field(ge=0, le=1)] = 0.1
    """How much recall any class may lose; a single image or text of a small class is not counted as a loss, nor is what
    chance makes of so many classes."""
    max_calibration_loss: Annotated[float, Field(ge=0, le=1)] = 0.05
    """How much the expected calibration error may grow, beyond what chance explains on this test set."""
    max_latency_ratio: Annotated[float, Field(gt=0)] = 5.0
    """How many times longer than the champion a single image or text may take."""
    max_size_ratio: Annotated[float, Field(gt=0)] = 10.0
    """How many times larger than the champion the package may be."""


class PromotionConfig(GateRules):
    """What happens to the best trial."""

    model: PlainName | None = None
    """Name in the MLflow model registry; by default the name of the data folder."""
    further: tuple[Path, ...] = ()
    """Further folders of labelled images, ``FOLDER/<class>/…``, or tables of labelled texts, on which the challenger
    must not be worse beyond chance."""
    exports: tuple[Literal["pt2", "onnx"], ...] = ()
    """Further formats to package the model in, each compared with the network: ``torch.export`` and ONNX (which needs
    ``pip install 'thawline[onnx]'``). With ``onnx``, ``serve``, ``score`` and ``predict`` compute by ONNX Runtime
    where it is faster."""
    approve: bool = False
    """Whether a person must agree before the champion is replaced: the flow pauses until somebody answers in Prefect's
    UI."""
    approve_minutes: Annotated[float, Field(gt=0)] = 1440.0
    """How long the flow waits for that answer; without one the champion stays."""
