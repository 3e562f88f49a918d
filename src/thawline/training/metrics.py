"""Metrics of a classifier from its logits, by scikit-learn."""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

__all__ = ["classification_metrics", "confusion", "per_class_scores"]


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss, accuracy, balanced accuracy, macro F1 and, with more than five classes, top-5 accuracy.

    Args:
        logits: ``[N, num_classes]``, fp32, on the CPU.
        labels: ``[N]``, int64.

    Balanced accuracy is the mean recall of the classes that occur in ``labels``; macro F1 that of the
    classes that occur or are predicted.
    """
    truth, predicted = labels.numpy(), logits.argmax(1).numpy()
    scores = per_class_scores(confusion(predicted, truth, logits.shape[1]))
    metrics = {
        "loss": float(F.cross_entropy(logits, labels)),
        "accuracy": float((predicted == truth).mean()),
        "balanced_accuracy": float(np.nanmean(scores["recall"])),
        "macro_f1": float(np.nanmean(scores["f1"])),
    }
    if logits.shape[1] > 5:
        hits = (logits.topk(5, dim=1).indices == labels[:, None]).any(1)
        metrics["top5_accuracy"] = float(hits.float().mean())
    return metrics


def confusion(predicted: Sequence[int] | np.ndarray, truth: Sequence[int] | np.ndarray, classes: int) -> np.ndarray:
    """int64 ``[classes, classes]``: how many of each class (row) are predicted as which (column)."""
    from sklearn.metrics import confusion_matrix

    matrix: np.ndarray = confusion_matrix(truth, predicted, labels=range(classes))
    return matrix


def per_class_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """``precision``, ``recall``, ``f1`` and ``support`` of each class, ``[classes]``, from a confusion matrix.

    Precision is NaN for a class that is never named, recall for one that does not occur, F1 for one that is neither.
    """
    right, named, support = confusion.diagonal(), confusion.sum(0), confusion.sum(1)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        shares: np.ndarray = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
        return shares

    return {
        "precision": share(right, named),
        "recall": share(right, support),
        "f1": share(2 * right, named + support),
        "support": support,
    }
