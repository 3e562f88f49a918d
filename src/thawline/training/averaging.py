"""An exponential moving average of the weights, which is measured and kept in their place."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["WeightAverage"]


class WeightAverage:
    """The average of some tensors of a module over the steps of its training.

    Torch's ``AveragedModel`` copies the whole module. Here what is frozen is neither copied nor averaged, and what is
    thawed later joins.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Average nothing yet; ``decay`` is the share of the average that a step keeps, in (0, 1)."""
        self._module, self._decay = module, decay
        self._present: dict[str, Tensor] = {}
        self._averages: dict[str, Tensor] = {}

    @property
    def names(self) -> frozenset[str]:
        """What is averaged."""
        return frozenset(self._averages)

    def follow(self, names: Iterable[str]) -> None:
        """Average these parameters and buffers too, beginning with what they are now; again, to start over."""
        state = self._module.state_dict()
        for name in names:
            self._present[name], self._averages[name] = state[name], state[name].clone()

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Update the average after a step, given the number of steps so far.

        The first steps count for more, as in TensorFlow's ``tf.train.ExponentialMovingAverage`` with ``num_updates``:
        with a decay of 0.999 a training of a few hundred steps would else be measured by what it began with.
        """
        numbers = [name for name, average in self._averages.items() if average.is_floating_point()]
        take_in = get_ema_multi_avg_fn(min(self._decay, (1 + steps) / (10 + steps)))  # type: ignore[no-untyped-call]
        take_in([self._averages[name] for name in numbers], [self._present[name] for name in numbers], None)
        for name in self._averages.keys() - set(numbers):  # how many batches a batch-norm has seen
            self._averages[name].copy_(self._present[name])

    @contextmanager
    def in_place(self) -> Iterator[dict[str, Tensor]]:
        """Give the module the averages within the block; yields copies of the weights that training continues with."""
        trained = {name: tensor.clone() for name, tensor in self._present.items()}
        self.set(self._averages)
        try:
            yield trained
        finally:
            self.set(trained)

    @torch.no_grad()
    def set(self, values: Mapping[str, Tensor]) -> None:
        """Give the module these values of what is averaged; the averages stay what they are."""
        for name, value in values.items():
            self._present[name].copy_(value)
