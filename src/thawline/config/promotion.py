"""The section ``promotion``."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from thawline.config.model import Model, PlainName

__all__ = ["GateRules", "PromotionConfig"]


class GateRules(Model):
    """The criteria by which a challenger replaces the champion; both are measured on the same images or texts."""

    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"] = "accuracy"
    """Metric on the test split on which a challenger must beat the champion."""
    minimum_gain: Annotated[float, Field(ge=0)] = 0.0
    """Minimum gain; 0.01 is one point of accuracy."""
    significance: Annotated[float, Field(gt=0, le=1)] = 0.04
    """Probability of promoting, by chance, a challenger that is no better: the gain must be above 0 in all but this
    fraction of resampled test sets. 1 requires no evidence beyond the gain itself."""
    max_recall_loss: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Maximum loss of recall in any class; not counted are a single image or text of a small class, and what chance
    explains with that many classes."""
    max_calibration_loss: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Maximum increase of the expected calibration error, beyond what chance explains on this test set."""
    max_latency_ratio: Annotated[float, Field(gt=0)] = 5.0
    """Maximum latency of a single image or text, relative to the champion's."""
    max_size_ratio: Annotated[float, Field(gt=0)] = 10.0
    """Maximum size of the package, relative to the champion's."""
    max_quantisation_loss: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Maximum loss of the metric in an int8 copy, which must stay below it in all but ``significance`` of resampled
    test sets; that needs some 300 test images for 0.01, and 100 for 0.03."""


class PromotionConfig(GateRules):
    """Registration and promotion of the best trial."""

    model: PlainName | None = None
    """Name in the MLflow model registry; by default the name of the data folder."""
    further: tuple[Path, ...] = ()
    """Further folders of labelled images, ``FOLDER/<class>/…``, or tables of labelled texts, on which the challenger
    must not be significantly worse."""
    exports: tuple[Literal["auto", "pt2", "onnx", "int8"], ...] = ("auto",)
    """Further formats to package the model in, each verified against the PyTorch model: ``torch.export`` (``pt2``) and
    ONNX (which needs ``pip install 'thawline[onnx]'``). With ``onnx``, ``serve``, ``score`` and ``predict`` run ONNX
    Runtime or OpenVINO if they are faster. ``auto`` is ``onnx`` for images if that is installed and the network can be
    exported, else nothing. ``int8`` includes ``onnx`` and quantises each new champion: the copy is a version of its
    own, which must be faster and lose no more than ``max_quantisation_loss``. An empty list exports nothing."""
    coverage: Annotated[float, Field(gt=0, lt=1)] | None = 0.9
    """Target coverage of prediction sets (the classes that an image or text may belong to): the fraction of sets that
    contain the true class; calibrated on the validation set. ``null`` disables the sets."""
    unknown: Annotated[float, Field(gt=0, lt=1)] | None = 0.05
    """Maximum fraction of images or texts of the known classes that are flagged ``unknown``, that is, unlike all
    training examples; calibrated on the validation set. ``null`` disables the flag."""
    approve: bool = False
    """Require approval by a person before the champion is replaced: the flow pauses until it is approved or declined in
    Prefect's UI."""
    approve_minutes: Annotated[float, Field(gt=0)] = 1440.0
    """Minutes to wait for approval; without it the champion stays."""
