"""Classification metrics from logits."""

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

    Balanced accuracy is the mean recall over classes in ``labels``; macro F1 is the mean F1 over classes that occur or
    are predicted.
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
    """The confusion matrix, int64 ``[classes, classes]``, by true class (row) and predicted class (column).

    Not scikit-learn's, which takes two seconds of CPU time to load, before the first trial of every search.
    """
    pairs = np.asarray(truth, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def per_class_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """``precision``, ``recall``, ``f1`` and ``support`` per class, ``[classes]``, from a confusion matrix.

    Precision is NaN for a class that is never predicted, recall for one that does not occur, F1 if both apply.
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
