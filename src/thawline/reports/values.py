"""The values of a study's report, which are also ``report.json``.

Everything but the study's name, its metric and its trials may be missing; the report then leaves it out.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from thawline.backbones import DepthCost
from thawline.data import DataKind, ImageShapes, TextTable
from thawline.exceptions import StudyError
from thawline.tracking.media import Predictions

__all__ = [
    "Baselines",
    "Calibration",
    "Criterion",
    "DataSummary",
    "Explanation",
    "FileProblem",
    "LabelDoctor",
    "LearningCurve",
    "Mistake",
    "Promotion",
    "Provenance",
    "StudyReport",
    "SuspectLabel",
    "TrialPoint",
]

Address = Annotated[str, Field(pattern=r"^https?://")]
"""A link for the reader; a report loads nothing from it."""


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


Measured = Annotated[float | None, AfterValidator(_finite)]
"""``None`` where there is no value, or none that could be drawn."""


class _Value(BaseModel):
    # Reports are filled from mappings that hold more, such as a verdict's; pictures are base64 in JSON.
    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
        ser_json_bytes="base64",
        val_json_bytes="base64",
    )


class TrialPoint(_Value):
    """One trial, as figures and leaderboard show it."""

    number: int
    state: Literal["complete", "pruned", "failed", "paused", "running"]
    freeze_depth: int = Field(ge=0)
    learning_rate: float | None = Field(gt=0)
    """``None`` of a linear probe, which has none."""
    value: Measured = None
    """Best validation value of the study's metric; of a pruned trial, the best before it was stopped."""
    backbone: str = ""
    others: dict[str, str | int | float] = Field(default_factory=dict)
    """Further hyperparameters by name; the leaderboard shows those that differ between trials."""
    best_epoch: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    memory_bytes: float | None = None
    """Peak memory of its training, if it was measured."""
    reason: str = ""
    """Why it ended before its last epoch, or failed."""
    link: Address | None = None
    """Where its record can be seen."""

    @property
    def is_probe(self) -> bool:
        """Whether it is a linear probe, fitted to convergence, not trained."""
        return self.others.get("policy") == "probe"

    @model_validator(mode="after")
    def _has_a_rate_if_it_is_trained(self) -> Self:
        if self.is_probe != (self.learning_rate is None):
            raise ValueError("has a learning rate, unless it is a linear probe (policy: probe), which has none")
        return self


class LearningCurve(_Value):
    """The metrics of a trial's epochs."""

    trial: int
    metrics: dict[str, tuple[Measured, ...]]
    """``train/loss``, ``val/accuracy`` and so on: a value for each epoch, from the first."""


class FileProblem(_Value):
    """A problem of a file, a folder, or a line of a table."""

    path: str
    """Of a line with its number, such as ``messages.csv:17``."""
    reason: str


class DataSummary(_Value):
    """The data: ``DataSummary.model_validate(thawline.data.report_json(manifest))``."""

    path: str
    digest: str
    kind: DataKind = "images"
    layout: str = ""
    """What was found and done, in words."""
    classes: dict[str, dict[str, int]]
    """Of each class, the number of images or texts in ``train``, ``validation`` and ``test``."""
    table: TextTable | None = None
    """Of texts: their columns and lengths."""
    shapes: ImageShapes | None = None
    """Of images: their formats and sizes."""
    problems: dict[str, tuple[FileProblem, ...]] = Field(default_factory=dict)
    """By kind, such as ``bad`` and ``duplicate``."""

    def size(self, split: str) -> int:
        """Number of images or texts in a split."""
        return sum(counts.get(split, 0) for counts in self.classes.values())


class Calibration(_Value):
    """The number that logits are divided by, and what that does to the calibration error on held-out folds."""

    temperature: float = Field(gt=0)
    items: int
    helps: bool = True
    """Whether it is used; otherwise the logits stay as they are."""
    error_before: float
    error_after: float


class Criterion(_Value):
    """One criterion of the promotion, its value, and what was required."""

    name: str
    passed: bool
    value: str
    threshold: str


class Baselines(_Value):
    """The best trial's value on validation, and the baselines."""

    best_trial: Measured
    majority_class: Measured
    """Of answering the most frequent class of the training split every time."""
    linear_probe: Measured = None


class Promotion(_Value):
    """The promotion decision on the best trial's model: ``Promotion.model_validate(promotion_outcome.as_dict())``.

    That mapping is the artifact ``promotion/verdict.json`` of the run too.
    """

    model: str
    version: str
    outcome: str
    reason: str
    judged_against: str | None = None
    """Version of the champion that it was compared with; ``None`` if there was none."""
    criteria: tuple[Criterion, ...] = ()
    calibration: Calibration | None = None
    majority_class: dict[str, Measured] | None = None
    """Metrics of answering the most frequent class of the training split every time, on the test split."""
    validation: Baselines | None = None


def _predictions(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    try:
        labels, classes = np.asarray(value["labels"], dtype=np.int64), tuple(value["classes"])
        return Predictions(labels, np.asarray(value["probabilities"], dtype=float), classes)
    except KeyError as error:
        raise ValueError(f"has no {error}") from None


def _plain_predictions(value: Predictions) -> dict[str, Any]:
    return {
        "labels": value.labels.tolist(),
        "probabilities": value.probabilities.tolist(),
        "classes": list(value.classes),
    }


_Predictions = Annotated[InstanceOf[Predictions], BeforeValidator(_predictions), PlainSerializer(_plain_predictions)]


class Mistake(_Value):
    """A misclassified image or text; :func:`~thawline.reports.worst_mistakes` makes them."""

    picture: bytes | None = None
    """Encoded as JPEG or PNG, at most 160 px wide and high; ``None`` of a text."""
    text: str | None = None
    """Its beginning, in one line; ``None`` of an image."""
    file: str
    """Of a text with its line, such as ``messages.csv:17``."""
    label: str
    """Its true class."""
    predicted: str
    probability: float
    """Of the predicted class."""
    label_probability: float
    """Of the true class."""

    @model_validator(mode="after")
    def _shows_one_thing(self) -> Self:
        if (self.picture is None) == (self.text is None):
            raise ValueError("holds either a picture or a text")
        return self


class SuspectLabel(_Value):
    """An image or text whose label the frozen features contradict."""

    picture: bytes | None = None
    """As :attr:`Mistake.picture`."""
    text: str | None = None
    """As :attr:`Mistake.text`."""
    file: str
    """As :attr:`Mistake.file`."""
    split: str
    label: str
    suggested: str
    label_probability: float
    suggested_probability: float


class LabelDoctor(_Value):
    """What the frozen features say of the labels; see :class:`thawline.labels.LabelCheck`."""

    examples: int
    """Number of images or texts that were judged."""
    listed: int
    """Number of labels that the features contradict."""
    noise: float
    """Share of labels that seems to be wrong, listed or not; 0 to 1."""
    accuracy: float
    """Share of labels that were predicted from the features; 0 to 1."""
    is_doubtful: bool
    """Whether the features tell the classes so badly that what they contradict may well be right."""
    file: str = ""
    """Name of the CSV beside the report that holds them all; empty where there are none."""
    suspects: tuple[SuspectLabel, ...] = ()
    """The first of them, the least likely label first."""


class Explanation(_Value):
    """An explanation of a prediction, as a picture."""

    picture: bytes
    """Encoded as JPEG or PNG."""
    caption: str


class Provenance(_Value):
    """How to reproduce the study."""

    command: str = ""
    """Ready to paste into a shell."""
    config: str = ""
    """The whole configuration, as a recipe."""
    commit: str = ""
    dirty: bool | None = None
    """Whether tracked files differed from the commit; ``None`` if that is not known."""
    diff: str = ""
    """By what they differed."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of Python, of the platform and of libraries."""


class StudyReport(_Value):
    """All values of a study's report."""

    format: Literal[1] = 1
    study: str
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"]
    """That the study optimises, on validation."""
    trials: tuple[TrialPoint, ...]
    """In any order."""
    created: str = ""
    """When the report was made, in words."""
    links: dict[str, Address] = Field(default_factory=dict)
    """Further places to look at: addresses by what is there."""
    layer_groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Of each backbone, the names of its layer groups from the input on."""
    costs: dict[str, tuple[DepthCost, ...]] = Field(default_factory=dict)
    """Of each backbone, what every freeze depth costs."""
    probe_curves: dict[str, dict[int, Measured]] = Field(default_factory=dict)
    """Of each backbone, the metric on validation of a linear probe after the frozen layer groups, by freeze depth;
    of those depths whose activations were stored."""
    curves: tuple[LearningCurve, ...] = ()
    """Of a few trials, the best first."""
    importance: dict[str, float] = Field(default_factory=dict)
    """The importance of each hyperparameter, 0 to 1: its share of the variance."""
    test: _Predictions | None = None
    """The calibrated predictions of the best trial's model for the held-out images or texts, at least one."""
    mistakes: tuple[Mistake, ...] = ()
    labels: LabelDoctor | None = None
    """``None`` where the features were not stored."""
    explanations: tuple[Explanation, ...] = ()
    promotion: Promotion | None = None
    data: DataSummary | None = None
    provenance: Provenance | None = None

    @property
    def temperature(self) -> float | None:
        """That the model's logits are divided by; ``None`` if they are not."""
        calibration = self.promotion.calibration if self.promotion else None
        return calibration.temperature if calibration and calibration.helps else None

    def to_json(self) -> str:
        """The report as JSON, which :meth:`from_json` reads: arrays as lists, pictures as base64."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str) -> "StudyReport":
        """Read what :meth:`to_json` wrote.

        Raises:
            StudyError: if it is not a report, naming what is wrong with it.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, each['loc'])) or 'the text'}: {each['msg']}"
                for each in error.errors(include_url=False)
            )
            raise StudyError(
                f"This is not a report that this version of Thawline can read: {wrong}. The search that wrote it "
                "writes a new one when it is run again."
            ) from None
