"""Predictions of each example's class from its features, by probes that have not seen it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from thawline.data.splits import place

__all__ = ["FOLDS", "folds_of", "out_of_fold"]

FOLDS = 5
_COMPONENTS = 256
"""Number of principal components. With the 1,280 features of an EfficientNet, they found the same labels as all
features, in a third of the time."""
_FITTED = 20_000
"""Maximum number of rows for fitting the components."""
_PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01)
"""L2 penalties on the mean loss, the strongest first. Wrong labels require a strong one; it is chosen by the likelihood
of the held-out labels, including wrong ones, so that no clean data are needed."""
_STEPS = 60

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def folds_of(keys: Sequence[str], labels: Ints) -> Ints:
    """The fold of each example, ``[N]`` from 0, stratified by class, with examples of one key together.

    Otherwise copies of an image would leak their labels to each other.

    Args:
        keys: keys of examples that must stay together, ``[N]``; see :func:`thawline.data.splits.keys`.
        labels: ``[N]``.
    """
    label_of = dict(zip(reversed(keys), reversed(labels.tolist()), strict=True))  # the first label of each key
    order = sorted(label_of, key=lambda key: (label_of[key], place(key), key))
    fold_of = {key: number % FOLDS for number, key in enumerate(order)}
    return np.array([fold_of[key] for key in keys])


def out_of_fold(features: npt.NDArray[np.float32], labels: Ints, folds: Ints, classes: int) -> Floats:
    """The probability of each class for each example, from a linear probe on the other folds: ``[N, classes]``.

    Multinomial logistic regression on the principal components of standardised features.

    Args:
        features: ``[N, F]``.
        labels: ``[N]``, some of them wrong.
        folds: ``[N]``, from :func:`folds_of`.
        classes: number of classes.
    """
    rows, targets = _components(features), torch.from_numpy(labels)
    probes = [_Probe(rows[folds != fold], targets[torch.from_numpy(folds != fold)], classes) for fold in range(FOLDS)]
    best, lowest = np.empty((len(labels), classes)), np.inf
    for penalty in _PENALTIES:
        found = np.empty((len(labels), classes))
        for fold, probe in enumerate(probes):
            found[folds == fold] = probe.solved(penalty).probabilities(rows[folds == fold])
        loss = -np.log(np.maximum(found[np.arange(len(labels)), labels], 1e-12)).mean()
        if loss >= lowest:
            break
        best, lowest = found, loss
    return best


class _Probe:
    """A probe on some rows, solved for a sequence of penalties with warm starts."""

    def __init__(self, rows: Tensor, labels: Tensor, classes: int) -> None:
        self._rows, self._labels = rows, labels
        self._weight = torch.zeros(classes, rows.shape[1], requires_grad=True)
        self._bias = torch.zeros(classes, requires_grad=True)

    def solved(self, penalty: float) -> "_Probe":
        """Fit with this L2 penalty, and return self."""
        optimizer = torch.optim.LBFGS(
            [self._weight, self._bias],
            max_iter=_STEPS,
            history_size=10,
            tolerance_grad=1e-3,
            tolerance_change=1e-6,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            scores = F.linear(self._rows, self._weight, self._bias)
            loss = F.cross_entropy(scores, self._labels) + 0.5 * penalty * self._weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return self

    @torch.no_grad()
    def probabilities(self, rows: Tensor) -> Floats:
        """``[n, classes]``."""
        scores: Floats = F.linear(rows, self._weight, self._bias).double().softmax(1).numpy()
        return scores


def _components(features: npt.NDArray[np.float32]) -> Tensor:
    """Standardised features, projected onto their principal components: float32 ``[N, at most 256]``."""
    sample = np.sort(np.random.default_rng(0).permutation(len(features))[:_FITTED])
    fitted = torch.from_numpy(np.asarray(features[sample]))
    deviation, mean = torch.std_mean(fitted, 0, correction=0)
    deviation[deviation <= 1e-6 * mean.abs() + 1e-12] = 1.0  # constant features
    kept = min(_COMPONENTS, *fitted.shape)
    if kept == fitted.shape[1]:
        return (torch.from_numpy(np.asarray(features)) - mean) / deviation
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        _, _, directions = torch.pca_lowrank((fitted - mean) / deviation, kept, center=False)
    parts = np.array_split(features, max(1, len(features) // _FITTED))
    return torch.cat([((torch.from_numpy(np.asarray(part)) - mean) / deviation) @ directions for part in parts])
