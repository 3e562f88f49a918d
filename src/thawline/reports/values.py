"""The values of a study's report, which are also saved as ``report.json``.

Everything except the study's name, metric and trials may be missing; the report then leaves it out.
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
"""A link for the reader; the report loads nothing from it."""


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


Measured = Annotated[float | None, AfterValidator(_finite)]
"""``None`` if there is no value, or if it is not finite."""


class _Value(BaseModel):
    # Reports are filled from mappings with further keys, such as a verdict's; images are base64 in JSON.
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
    """``None`` for a linear probe, which has none."""
    value: Measured = None
    """Best validation value of the study's metric; for a pruned trial, the best before it was pruned."""
    backbone: str = ""
    others: dict[str, str | int | float] = Field(default_factory=dict)
    """Further hyperparameters by name; the leaderboard shows those that differ between trials."""
    best_epoch: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    memory_bytes: float | None = None
    """Peak training memory, if it was measured."""
    reason: str = ""
    """Reason for an early end or failure."""
    link: Address | None = None
    """Page of its record."""

    @property
    def is_probe(self) -> bool:
        """Whether it is a linear probe, which is fitted to convergence instead of trained."""
        return self.others.get("policy") == "probe"

    @model_validator(mode="after")
    def _has_a_rate_if_it_is_trained(self) -> Self:
        if self.is_probe != (self.learning_rate is None):
            raise ValueError("a trial has a learning rate, unless it is a linear probe (policy: probe)")
        return self


class LearningCurve(_Value):
    """The metrics of a trial's epochs."""

    trial: int
    metrics: dict[str, tuple[Measured, ...]]
    """``train/loss``, ``val/accuracy`` and so on: a value for each epoch, from the first."""


class FileProblem(_Value):
    """A problem with a file, a folder, or a line of a table."""

    path: str
    """For a line, with its number, such as ``messages.csv:17``."""
    reason: str


class DataSummary(_Value):
    """The data: ``DataSummary.model_validate(thawline.data.report_json(manifest))``."""

    path: str
    digest: str
    kind: DataKind = "images"
    layout: str = ""
    """Description of the layout that was found."""
    classes: dict[str, dict[str, int]]
    """Number of images or texts in ``train``, ``validation`` and ``test``, by class."""
    table: TextTable | None = None
    """For texts: their columns and lengths."""
    shapes: ImageShapes | None = None
    """For images: their formats and sizes."""
    problems: dict[str, tuple[FileProblem, ...]] = Field(default_factory=dict)
    """By kind, such as ``bad`` and ``duplicate``."""

    def size(self, split: str) -> int:
        """Number of images or texts in a split."""
        return sum(counts.get(split, 0) for counts in self.classes.values())


class Calibration(_Value):
    """The temperature by which logits are divided, and its effect on the calibration error on held-out folds."""

    temperature: float = Field(gt=0)
    items: int
    helps: bool = True
    """Whether it is used; otherwise the logits stay unchanged."""
    error_before: float
    error_after: float


class Criterion(_Value):
    """One criterion of the promotion, with its value and threshold."""

    name: str
    passed: bool
    value: str
    threshold: str


class Baselines(_Value):
    """The best trial's value on validation, and the baselines."""

    best_trial: Measured
    majority_class: Measured
    """Value of always predicting the most frequent class of the training split."""
    linear_probe: Measured = None


class Promotion(_Value):
    """The promotion decision on the best trial's model: ``Promotion.model_validate(promotion_outcome.as_dict())``.

    That mapping is also the run's artifact ``promotion/verdict.json``.
    """

    model: str
    version: str
    outcome: str
    reason: str
    judged_against: str | None = None
    """Version of the champion at that time; ``None`` if there was none."""
    criteria: tuple[Criterion, ...] = ()
    calibration: Calibration | None = None
    majority_class: dict[str, Measured] | None = None
    """Metrics on the test split of always predicting the most frequent class of the training split."""
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
    """A misclassified image or text, as returned by :func:`~thawline.reports.worst_mistakes`."""

    picture: bytes | None = None
    """Encoded as JPEG or PNG, at most 160 px wide and high; ``None`` for a text."""
    text: str | None = None
    """The beginning of the text on one line; ``None`` for an image."""
    file: str
    """For a text, with its line, such as ``messages.csv:17``."""
    label: str
    """Its true class."""
    predicted: str
    probability: float
    """Probability of the predicted class."""
    label_probability: float
    """Probability of the true class."""

    @model_validator(mode="after")
    def _shows_one_thing(self) -> Self:
        if (self.picture is None) == (self.text is None):
            raise ValueError("a mistake has either a picture or a text")
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
    """The label check on frozen features; see :class:`thawline.labels.LabelCheck`."""

    examples: int
    """Number of images or texts that were checked."""
    listed: int
    """Number of labels that the features contradict."""
    noise: float
    """Estimated share of wrong labels, listed or not; 0 to 1."""
    accuracy: float
    """Share of labels that the features predict correctly; 0 to 1."""
    is_doubtful: bool
    """Whether the features separate the classes so badly that most suspects may be right."""
    file: str = ""
    """Name of the CSV with all suspects, beside the report; empty if there are none."""
    suspects: tuple[SuspectLabel, ...] = ()
    """The first suspects, the least likely label first."""


class Explanation(_Value):
    """An explanation of a prediction, as an image."""

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
    """The differences."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of Python, the platform and libraries."""


class StudyReport(_Value):
    """All values of a study's report."""

    format: Literal[1] = 1
    study: str
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"]
    """The validation metric that the study optimises."""
    trials: tuple[TrialPoint, ...]
    """In any order."""
    created: str = ""
    """Time of the report, as text."""
    links: dict[str, Address] = Field(default_factory=dict)
    """Further pages: addresses by name."""
    layer_groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Names of the layer groups, from the input on, by backbone."""
    costs: dict[str, tuple[DepthCost, ...]] = Field(default_factory=dict)
    """Cost of every freeze depth, by backbone."""
    probe_curves: dict[str, dict[int, Measured]] = Field(default_factory=dict)
    """By backbone and freeze depth, the validation metric of a linear probe on the frozen features, for depths with
    stored activations."""
    curves: tuple[LearningCurve, ...] = ()
    """Learning curves of a few trials, the best first."""
    importance: dict[str, float] = Field(default_factory=dict)
    """The importance of each hyperparameter, 0 to 1: its share of the variance."""
    importance_ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Intervals that contain the importance in four of five resamples of the trials; missing in old reports."""
    test: _Predictions | None = None
    """The calibrated predictions of the best trial's model for the held-out images or texts, at least one."""
    mistakes: tuple[Mistake, ...] = ()
    labels: LabelDoctor | None = None
    """``None`` if the features were not stored."""
    explanations: tuple[Explanation, ...] = ()
    promotion: Promotion | None = None
    data: DataSummary | None = None
    provenance: Provenance | None = None

    @property
    def temperature(self) -> float | None:
        """The temperature by which the model's logits are divided; ``None`` without calibration."""
        calibration = self.promotion.calibration if self.promotion else None
        return calibration.temperature if calibration and calibration.helps else None

    def to_json(self) -> str:
        """The report as JSON for :meth:`from_json`: arrays as lists, images as base64."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str) -> "StudyReport":
        """Read the output of :meth:`to_json`.

        Raises:
            StudyError: if it is not a report, with the reasons.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, each['loc'])) or 'the text'}: {each['msg']}"
                for each in error.errors(include_url=False)
            )
            raise StudyError(
                f"This version of Thawline cannot read the report: {wrong}. To write a new report, run the search "
                "again."
            ) from None
