"""What is recorded of a trial's inside: gradient flow always, histograms and pictures while there is time for them."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from thawline.data import DecodedImages
from thawline.pictures import label_grid
from thawline.tracking import Tracker
from thawline.tracking.media import Histogram, Image, Table
from thawline.training import Observation, per_class_scores

__all__ = ["ObservationRecorder", "choose_pictures", "record_classes"]

_PICTURES, _COLUMNS, _SIDE = 16, 4, 80
"""Pictures on a sheet, side by side, and the side of each in pixels: encoding them costs more than all else here."""


class ObservationRecorder:
    """Records the observations of one trial."""

    def __init__(self, tracker: Tracker, *, images: Path, classes: tuple[str, ...], seed: int) -> None:
        """Take the file of decoded images, the names of the classes, and the study's seed."""
        self._tracker, self._images, self._classes, self._seed = tracker, images, classes, seed

    def __call__(self, observation: Observation) -> None:
        """Record one epoch's."""
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
            tracker.log_media("val/pictures", self._draw(observation), step=observation.epoch)

    @cached_property
    def _chosen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, images and labels of the validation pictures that are shown in every epoch."""
        images, labels = DecodedImages.open(self._images).split("validation")
        rows = choose_pictures(labels, _PICTURES, self._seed)
        return rows, images[rows], labels[rows]

    def _draw(self, observation: Observation) -> Image:
        """The pictures with their labels, the worst mistake first."""
        rows, images, labels = self._chosen
        logits = observation.logits[torch.from_numpy(rows)]
        losses = F.cross_entropy(logits, torch.from_numpy(labels), reduction="none").numpy()
        probabilities, predicted = (values.numpy() for values in logits.softmax(1).max(1))
        order = np.argsort(-losses, kind="stable")
        captions = [
            f"{probabilities[i]:.0%} {self._classes[predicted[i]]}\nis {self._classes[labels[i]]}" for i in order
        ]
        wrong = [bool(predicted[i] != labels[i]) for i in order]
        pixels = label_grid(images[order], captions, wrong, _COLUMNS, side=_SIDE)
        return Image(pixels, f"epoch {observation.epoch}: {sum(wrong)} of {len(wrong)} wrong, largest loss first")


def choose_pictures(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows of at most ``count`` pictures, as many of each class as can be, the same for the same seed."""
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(labels))
    # How many of its class come before a picture: the first of every class, then the second of every class, …
    turns = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        of_class = shuffled[labels[shuffled] == label]
        turns[of_class] = np.arange(len(of_class))
    rows: np.ndarray = np.sort(shuffled[np.argsort(turns[shuffled], kind="stable")][:count])
    return rows


def record_classes(tracker: Tracker, confusion: np.ndarray, classes: tuple[str, ...], *, step: int) -> None:
    """Record which class is taken for which, and how good each is.

    Args:
        tracker: of the trial.
        confusion: int ``[C, C]``, images of each class (rows) by the class that is named (columns).
        classes: names, in order.
        step: epoch whose weights named them.
    """
    # A folder cannot have a slash in its name, so this is the name of no class.
    columns: dict[str, list[str | int | float | None]] = {"true / named": list(classes)}
    columns |= {name: confusion[:, i].tolist() for i, name in enumerate(classes)}
    tracker.log_media("validation/confusion", Table(columns), step=step)
    scores = {
        name: [None if np.isnan(value) else value for value in values.tolist()]
        for name, values in per_class_scores(confusion).items()
    }
    tracker.log_media("validation/classes", Table({"class": list(classes), **scores}), step=step)
