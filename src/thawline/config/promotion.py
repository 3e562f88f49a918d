"""The section ``promotion``."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from thawline.config.model import Model, PlainName

__all__ = ["GateRules", "PromotionConfig"]


class GateRules(Model):
    """The criteria for a challenger to become champion; both are measured on the same images or texts."""

    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"] = "accuracy"
    """Metric on the test split by which a challenger must beat the champion."""
    minimum_gain: Annotated[float, Field(ge=0)] = 0.0
    """Minimum gain; 0.01 is one point of accuracy."""
    significance: Annotated[float, Field(gt=0, le=1)] = 0.04
    """Probability that chance promotes a challenger that is no better: the gain must be above 0 in all but this
    fraction of resampled test sets. 1 asks for no evidence beyond the gain itself."""
    max_recall_loss: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Maximum loss of recall of any class; a single image or text of a small class is not counted as a loss, nor is
    what chance makes of so many classes."""
    max_calibration_loss: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Maximum increase of the expected calibration error, beyond what chance explains on this test set."""
    max_latency_ratio: Annotated[float, Field(gt=0)] = 5.0
    """Maximum latency of a single image or text, relative to the champion's."""
    max_size_ratio: Annotated[float, Field(gt=0)] = 10.0
    """Maximum size of the package, relative to the champion's."""
    max_quantisation_loss: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Loss of the metric that a copy in int8 must be shown to stay below, in all but ``significance`` of resampled test
    sets; it needs some 300 test images for 0.01, and 100 for 0.03."""


class PromotionConfig(GateRules):
    """Registration and promotion of the best trial."""

    model: PlainName | None = None
    """Name in the MLflow model registry; by default the name of the data folder."""
    further: tuple[Path, ...] = ()
    """Further folders of labelled images, ``FOLDER/<class>/…``, or tables of labelled texts, on which the challenger
    must not be significantly worse."""
    exports: tuple[Literal["auto", "pt2", "onnx", "int8"], ...] = ("auto",)
    """Further formats to package the model in, each compared with the network: ``torch.export`` and ONNX (which needs
    ``pip install 'thawline[onnx]'``). With ``onnx``, ``serve``, ``score`` and ``predict`` compute by ONNX Runtime
    or OpenVINO where they are faster. ``auto`` is ``onnx`` for images wherever that is installed, and does without
    where the network cannot be exported. ``int8`` includes ``onnx``, and quantises each new champion: the copy is a
    version of its own, which must be faster and lose no more than ``max_quantisation_loss``. An empty list leaves all
    out."""
    coverage: Annotated[float, Field(gt=0, lt=1)] | None = 0.9
    """Share of answers whose prediction set, the classes that an image or text may be of, is to hold the true class;
    fitted on validation. ``null`` leaves the sets out."""
    unknown: Annotated[float, Field(gt=0, lt=1)] | None = 0.05
    """Share of images or texts of the known classes that are called unknown, at most; fitted on validation. What is
    unlike all training examples is ``unknown`` in the answers. ``null`` leaves that out."""
    approve: bool = False
    """Whether a person must agree before the champion is replaced: the flow pauses until somebody answers in Prefect's
    UI."""
    approve_minutes: Annotated[float, Field(gt=0)] = 1440.0
    """How long the flow waits for that answer; without one the champion stays."""
