"""Baselines for a result: the majority class and a linear probe."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from thawline.data import DataKind
from thawline.registry.scores import SMALLEST_PROBABILITY, Scores, label_metrics

__all__ = ["Baselines", "majority_class"]


@dataclass(frozen=True)
class Baselines:
    """The best trial of a study and its baselines, on validation."""

    metric: str
    """The study's metric, of which all values are."""
    best_trial: float
    majority_class: float
    linear_probe: float | None = None
    """Value of the best linear probe; ``None`` if the study has no complete one."""
    best_is_probe: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)

    def sentence(self) -> str:
        """``Validation accuracy: 0.9748 (linear probe 0.8129, majority class 0.1007)``."""
        beside = ["this is the linear probe"] if self.best_is_probe else []
        if self.linear_probe is not None and not self.best_is_probe:
            beside = [f"linear probe {self.linear_probe:.4f}"]
        beside.append(f"majority class {self.majority_class:.4f}")
        name = self.metric.replace("_", " ").replace("f1", "F1")
        return f"Validation {name}: {self.best_trial:.4f} ({', '.join(beside)})"


def majority_class(train_classes: Mapping[str, int], labels: Sequence[str], *, kind: DataKind = "images") -> Scores:
    """The scores of a model that always predicts the most frequent class of the training split.

    Its probabilities are the class frequencies there. It has neither a calibration error nor a speed. Only classes that
    occur among the labels are predicted, because a folder without the majority class would give no comparison.

    Args:
        train_classes: number of images or texts per class in the training split.
        labels: class names of the scored items, at least one.
        kind: kind of the items.
    """
    total = sum(train_classes.values())
    shares = {name: count / total for name, count in train_classes.items()}
    name = max(sorted(shares.keys() & set(labels)) or sorted(shares), key=shares.__getitem__)
    predicted = (name,) * len(labels)
    losses = np.array([-math.log(max(shares.get(label, 0.0), SMALLEST_PROBABILITY)) for label in labels])
    metrics, recalls = label_metrics(labels, predicted)
    return Scores(
        metrics={"loss": float(losses.mean()), **metrics},
        recalls=recalls,
        labels=tuple(labels),
        predicted=predicted,
        losses=losses,
        confidence=np.full(len(labels), shares[name]),
        classes=tuple(shares),
        kind=kind,
    )
