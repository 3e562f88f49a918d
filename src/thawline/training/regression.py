"""L2-penalised logistic regression by L-BFGS on standardised features, which need not fit in memory."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CHUNK", "Regression", "scores_of"]

CHUNK = 200_000_000
"""Bytes of features per computation."""


class Regression:
    """The regression of one training split, solved for successive penalties with warm starts."""

    def __init__(
        self,
        values: np.ndarray,
        labels: np.ndarray,
        classes: int,
        device: torch.device,
        class_weights: Tensor | None,
        *,
        bias: bool,
        in_memory: int,
        chunk: int,
    ) -> None:
        """Set the training split.

        Args:
            values: features ``[N, F]``, single precision, possibly in a file.
            labels: ``[N]``, from 0.
            classes: number of classes.
            device: device to compute on.
            class_weights: class weights of the loss, ``[classes]``.
            bias: whether the classifier has a bias.
            in_memory: maximum bytes of standardised features in memory; more are read again for each evaluation.
            chunk: bytes of features per computation.
        """
        self._values, self._device, self._bias = values, device, bias
        self._labels = torch.from_numpy(labels)
        self._class_weights = None if class_weights is None else class_weights.to(device)
        self._rows = max(1, chunk // (4 * values.shape[1]))
        self._mean, self._deviation = self._moments()
        kept = values.nbytes <= in_memory
        self._kept = list(self._standardised()) if kept else None
        count = torch.bincount(self._labels, minlength=classes).to(device, torch.float32)
        self._total = float((count if self._class_weights is None else count * self._class_weights).sum())
        self._weight = torch.zeros(classes, values.shape[1], device=device, requires_grad=True)
        self._offset = torch.zeros(classes, device=device, requires_grad=bias)

    def solve(self, penalty: float) -> tuple[Tensor, Tensor, dict[str, float], float]:
        """Weight and bias for unscaled features, on the CPU, and their results on the training rows: loss, accuracy and
        the lowest score."""
        free = [self._weight, self._offset] if self._bias else [self._weight]
        optimizer = torch.optim.LBFGS(
            free,
            max_iter=500,
            history_size=10,
            tolerance_grad=1e-4,
            tolerance_change=1e-7,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = 0.5 * penalty * self._weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            for standardised, labels in self._chunks():
                part = self._loss(standardised, labels)
                part.backward()  # type: ignore[no-untyped-call]
                loss = loss.detach() + part.detach()
            return loss.detach()

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        loss = correct = lowest = 0.0
        with torch.no_grad():
            for standardised, labels in self._chunks():
                loss += float(self._loss(standardised, labels))
                scores = self._scores(standardised)
                correct += float((scores.argmax(1) == labels).sum())
                lowest = min(lowest, float(scores.min()))
            weight = (self._weight / self._deviation).cpu()
            offset = self._offset.cpu() - weight @ self._mean.cpu()
        return weight, offset, {"loss": loss, "accuracy": correct / len(self._labels)}, lowest

    def _scores(self, standardised: Tensor) -> Tensor:
        return F.linear(standardised, self._weight, self._offset)

    def _loss(self, standardised: Tensor, labels: Tensor) -> Tensor:
        """The contribution of these rows to the mean cross-entropy."""
        scores = self._scores(standardised)
        return F.cross_entropy(scores, labels, weight=self._class_weights, reduction="sum") / self._total

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._kept) if self._kept is not None else self._standardised()

    def _standardised(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self._values), self._rows):
            rows = torch.from_numpy(np.array(self._values[start : start + self._rows])).to(self._device)
            yield (rows - self._mean) / self._deviation, self._labels[start : start + self._rows].to(self._device)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each feature; 0 and 1 if the classifier has no bias to compensate for a mean.

        A constant feature gets a deviation of 1.
        """
        total = np.zeros(self._values.shape[1])
        squares = np.zeros(self._values.shape[1])
        parts = [self._values[s : s + self._rows] for s in range(0, len(self._values), self._rows)]
        for part in parts if self._bias else []:
            total += part.sum(0, dtype=np.float64)
        mean = total / len(self._values)
        for part in parts:
            squares += np.square(part - mean, dtype=np.float64).sum(0)
        deviation = np.sqrt(squares / len(self._values))
        deviation[deviation <= 1e-6 * np.abs(mean) + 1e-12] = 1.0
        made = (torch.from_numpy(moment.astype(np.float32)).to(self._device) for moment in (mean, deviation))
        first, second = made
        return first, second


def scores_of(values: np.ndarray, weight: Tensor, bias: Tensor, chunk: int = CHUNK) -> Tensor:
    """Scores ``[N, classes]`` for features ``[N, F]``, computed in chunks."""
    rows = max(1, chunk // (4 * values.shape[1]))
    parts = (torch.from_numpy(np.array(values[s : s + rows])) for s in range(0, len(values), rows))
    return torch.cat([F.linear(part, weight, bias) for part in parts])
