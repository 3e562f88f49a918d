"""Records observations during a trial: always gradient flow; histograms and examples while there is time for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from thawline.data import DecodedImages, Manifest, texts_of
from thawline.pictures import label_grid
from thawline.reports import excerpt
from thawline.tracking import Tracker
from thawline.tracking.media import Histogram, Image, Table
from thawline.training import Observation, per_class_scores

__all__ = ["ObservationRecorder", "ShownText", "choose_rows", "record_classes", "texts_to_show"]

_EXAMPLES = 16
_COLUMNS, _SIDE = 4, 80
"""Pictures per row of a sheet, and the side of each in pixels: encoding them costs more than anything else here."""


@dataclass(frozen=True)
class ShownText:
    """A validation text that is shown in every epoch."""

    row: int
    """Its row in the validation split."""
    text: str
    """The start of the text."""
    label: int


@dataclass(frozen=True)
class _Answers:
    """The network's predictions for some examples, ``[n]`` each; ``order`` begins with the largest loss."""

    predicted: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray
    order: list[int]


class ObservationRecorder:
    """Records the observations of one trial."""

    def __init__(
        self,
        tracker: Tracker,
        *,
        images: Path | None = None,
        texts: Sequence[ShownText] = (),
        classes: tuple[str, ...],
        seed: int,
    ) -> None:
        """Set the file of decoded images, or the texts to show, the class names, and the study's seed."""
        self._tracker, self._images, self._texts = tracker, images, texts
        self._classes, self._seed = classes, seed

    def __call__(self, observation: Observation) -> None:
        """Record one epoch's observation."""
        tracker = self._tracker
        means = {f"gradient/{name}": norm for name, norm in observation.mean_norms.items()}
        tracker.log_metrics(means, step=observation.epoch)
        for i, step in enumerate(observation.steps.tolist()):
            norms = {f"gradient_step/{name}": float(norms[i]) for name, norms in observation.norms.items()}
            tracker.log_metrics({name: norm for name, norm in norms.items() if np.isfinite(norm)}, step=step)
        if observation.in_detail:
            for kind, distributions in (("weights", observation.weights), ("gradients", observation.gradients)):
                for name, found in distributions.items():
                    tracker.log_media(f"{kind}/{name}", Histogram(found.counts, found.edges), step=observation.epoch)
            if self._texts:
                tracker.log_media("val/texts", self._table(observation), step=observation.epoch)
            elif self._images is not None:
                tracker.log_media("val/pictures", self._draw(observation, *self._pictures), step=observation.epoch)

    @cached_property
    def _pictures(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, images and labels of the validation pictures shown in every epoch."""
        assert self._images is not None  # noqa: S101  only they are drawn
        images, labels = DecodedImages.open(self._images).split("validation")
        rows = choose_rows(labels, _EXAMPLES, self._seed)
        return rows, images[rows], labels[rows]

    def _draw(self, observation: Observation, rows: np.ndarray, images: np.ndarray, labels: np.ndarray) -> Image:
        """The pictures with their labels, worst mistake first."""
        answers = _answers(observation, rows, labels)
        captions = [
            f"{answers.probabilities[i]:.0%} {self._classes[answers.predicted[i]]}\nis {self._classes[labels[i]]}"
            for i in answers.order
        ]
        wrong = [bool(answers.predicted[i] != labels[i]) for i in answers.order]
        pixels = label_grid(images[answers.order], captions, wrong, _COLUMNS, side=_SIDE)
        return Image(pixels, f"epoch {observation.epoch}: {sum(wrong)} of {len(wrong)} wrong, largest loss first")

    def _table(self, observation: Observation) -> Table:
        """The texts with their labels, worst mistake first. MLflow keeps the latest epoch's table."""
        rows, labels = (np.array([getattr(each, name) for each in self._texts]) for name in ("row", "label"))
        answers = _answers(observation, rows, labels)
        return Table(
            {
                "text": [self._texts[i].text for i in answers.order],
                "label": [self._classes[labels[i]] for i in answers.order],
                "predicted": [self._classes[answers.predicted[i]] for i in answers.order],
                "probability": [float(answers.probabilities[i]) for i in answers.order],
                "loss": [float(answers.losses[i]) for i in answers.order],
                "epoch": [observation.epoch] * len(self._texts),
            }
        )


def texts_to_show(manifest: Manifest, seed: int) -> tuple[ShownText, ...]:
    """Choose some distinct validation texts, the same for every trial of a study; reads the table.

    Raises:
        DataError: if the table has changed since it was scanned.
    """
    rows = manifest.of("validation")
    different = np.sort(np.unique([row.digest for row in rows], return_index=True)[1])
    labels = np.array([row.label for row in rows])
    chosen = different[choose_rows(labels[different], _EXAMPLES, seed)].tolist()
    texts = texts_of(manifest, [rows[i] for i in chosen])
    return tuple(ShownText(i, excerpt(text), rows[i].label) for i, text in zip(chosen, texts, strict=True))


def _answers(observation: Observation, rows: np.ndarray, labels: np.ndarray) -> _Answers:
    logits = observation.logits[torch.from_numpy(rows)]
    losses = F.cross_entropy(logits, torch.from_numpy(labels), reduction="none").numpy()
    probabilities, predicted = (values.numpy() for values in logits.softmax(1).max(1))
    return _Answers(predicted, probabilities, losses, np.argsort(-losses, kind="stable").tolist())


def choose_rows(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows of at most ``count`` examples, balanced over classes as far as possible; deterministic for a seed."""
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(labels))
    # Number of examples of the same class before each: the first of every class, then the second of every class, …
    turns = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        of_class = shuffled[labels[shuffled] == label]
        turns[of_class] = np.arange(len(of_class))
    rows: np.ndarray = np.sort(shuffled[np.argsort(turns[shuffled], kind="stable")][:count])
    return rows


def record_classes(tracker: Tracker, confusion: np.ndarray, classes: tuple[str, ...], *, step: int) -> None:
    """Record the confusion matrix and the metrics per class.

    Args:
        tracker: the trial's tracker.
        confusion: int ``[C, C]``, number of examples by true class (rows) and predicted class (columns).
        classes: class names, in order.
        step: epoch of the weights that predicted.
    """
    # A folder name cannot contain a slash, so no class has this name.
    columns: dict[str, list[str | int | float | None]] = {"true / named": list(classes)}
    columns |= {name: confusion[:, i].tolist() for i, name in enumerate(classes)}
    tracker.log_media("validation/confusion", Table(columns), step=step)
    scores = {
        name: [None if np.isnan(value) else value for value in values.tolist()]
        for name, values in per_class_scores(confusion).items()
    }
    tracker.log_media("validation/classes", Table({"class": list(classes), **scores}), step=step)
