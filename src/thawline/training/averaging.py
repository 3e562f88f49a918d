"""An exponential moving average of the weights, which is evaluated and saved in their place."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["WeightAverage"]


class WeightAverage:
    """The average of a module's tensors over training steps.

    Torch's ``AveragedModel`` copies the whole module. This class neither copies nor averages frozen tensors, and adds
    tensors when they are thawed.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Create an empty average; ``decay`` is the share of the average that a step keeps, in (0, 1)."""
        self._module, self._decay = module, decay
        self._present: dict[str, Tensor] = {}
        self._averages: dict[str, Tensor] = {}

    @property
    def names(self) -> frozenset[str]:
        """Names of the averaged tensors."""
        return frozenset(self._averages)

    def follow(self, names: Iterable[str]) -> None:
        """Also average these parameters and buffers, starting from their current values; call again to start over."""
        state = self._module.state_dict()
        for name in names:
            self._present[name], self._averages[name] = state[name], state[name].clone()

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Update the average after a step, given the number of steps so far.

        The first steps have more weight, as in TensorFlow's ``tf.train.ExponentialMovingAverage`` with ``num_updates``.
        Otherwise, with a decay of 0.999, a few hundred steps would hardly change the initial weights.
        """
        numbers = [name for name, average in self._averages.items() if average.is_floating_point()]
        take_in = get_ema_multi_avg_fn(min(self._decay, (1 + steps) / (10 + steps)))  # type: ignore[no-untyped-call]
        take_in([self._averages[name] for name in numbers], [self._present[name] for name in numbers], None)
        for name in self._averages.keys() - set(numbers):  # a batch-norm's count of batches
            self._averages[name].copy_(self._present[name])

    @contextmanager
    def in_place(self) -> Iterator[dict[str, Tensor]]:
        """Load the averages into the module within the block; yields copies of the weights to resume training from."""
        trained = {name: tensor.clone() for name, tensor in self._present.items()}
        self.set(self._averages)
        try:
            yield trained
        finally:
            self.set(trained)

    @torch.no_grad()
    def set(self, values: Mapping[str, Tensor]) -> None:
        """Load these values into the module's averaged tensors; the averages do not change."""
        for name, value in values.items():
            self._present[name].copy_(value)
