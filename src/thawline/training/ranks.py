"""The processes that train one network together, each on a device of its own: PyTorch's ``DistributedDataParallel``.

Each has the whole network and computes a part of every batch; what they exchange is gradients, and everything by which
they could decide differently. So they take the same steps, and are at the same point of the training.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from thawline.training.results import Decision, EpochResult

__all__ = ["ALONE", "Place", "Ranks", "device_of_rank", "joined"]

_T = TypeVar("_T")

_TIMEOUT = timedelta(days=1)
"""Of an exchange. Whether a process hangs is for its driver to judge, who ends them all."""

_SYNC_BUFFERS = ("forward_sync_buffers", "broadcast_buffers")
"""Names of one option of newer and older versions of PyTorch."""


@dataclass(frozen=True)
class Place:
    """Which one of several processes this is, and where they meet."""

    rank: int
    """From 0. The first one writes checkpoints and tells what happens."""
    count: int
    meeting: Path
    """A file of this machine that does not exist yet."""


def device_of_rank(device: str, rank: int) -> str:
    """The device of one of the processes, given that of the first, such as ``cuda:2`` or ``cpu``."""
    kind, _, index = device.partition(":")
    if kind == "auto" and torch.cuda.is_available():
        kind = "cuda"
    return f"cuda:{int(index or 0) + rank}" if kind == "cuda" else device


@contextmanager
def joined(place: Place | None, device: torch.device) -> Iterator["Ranks"]:
    """Meet the other processes for the time of the block; alone there is nobody to meet.

    Nobody listens on a network: they find each other by a file, and connect on this machine.

    Args:
        place: which one this is; ``None`` if it is the only one. After an exception in its block a process is of no
            use to the others, who may wait for it: it must be ended, and they too.
        device: the one of this process. On GPUs gradients are exchanged by NCCL, else by gloo.
    """
    if place is None:
        yield ALONE
        return
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=dist.FileStore(str(place.meeting), place.count),  # type: ignore[attr-defined]
        rank=place.rank,
        world_size=place.count,
        timeout=_TIMEOUT,
    )
    ranks = Ranks(place.rank, place.count)
    yield ranks
    ranks.any_of(False)  # none closes its connections while another needs them
    dist.destroy_process_group()


@dataclass(frozen=True)
class Ranks:
    """One of the processes that train a network, and what it does with the others.

    Methods that exchange something must be called by all, in the same order. Alone they do nothing.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0

    def own(self, parts: Sequence[_T]) -> Sequence[_T]:
        """The parts of this process, of those that are shared out in turn. Where there is none for it, the first: it
        has to compute something to take part in the exchange, and :meth:`has_own` says that it does not count."""
        return parts[self.rank :: self.count] or parts[:1]

    def has_own(self, parts: Sequence[object]) -> bool:
        """Whether any of these are for this process."""
        return self.rank < len(parts)

    def own_seed(self, seed: int) -> int:
        """Of this process's random generators, given the first one's: dropout must not drop the same everywhere."""
        return seed if self.is_first else int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0])

    def network(self, network: nn.Module) -> nn.Module:
        """The same network, whose backward pass leaves in every process the sum of the gradients of all."""
        if self.count == 1:
            return network
        # Its buffers are the same everywhere (see `average`): nothing is sent for them.
        known = signature(DistributedDataParallel.__init__).parameters
        options: dict[str, Any] = {next(name for name in _SYNC_BUFFERS if name in known): False}
        together = DistributedDataParallel(network, **options)
        together.register_comm_hook(None, _sum_gradients)
        return together

    def exchanging(self, network: nn.Module, now: bool) -> AbstractContextManager[object]:
        """Within the block, a forward and backward pass adds to this process's gradients; they are exchanged only if
        it is the last of its parts of a batch."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) and not now else nullcontext()

    def totals(self, sums: Tensor, own: int) -> list[float]:
        """Sums, on the host.

        Args:
            sums: ``[n]``, on the device.
            own: of the first so many each process has taken its own part, and of the rest all have the same.
        """
        if self.count > 1:
            together = sums[:own].double()
            dist.all_reduce(together)
            sums = torch.cat([together, sums[own:]])
        return list(sums.tolist())

    def any_of(self, wish: bool) -> bool:
        """Whether any process has a wish. On the CPU: a GPU is not waited for."""
        if self.count == 1:
            return wish
        wishes = torch.tensor(int(wish))
        dist.all_reduce(wishes)
        return bool(wishes)

    def asking_first(self, ask: Callable[[EpochResult], Decision]) -> Callable[[EpochResult], Decision]:
        """A question that only the first process asks; its answer is that of all."""
        if self.count == 1:
            return ask
        possible = list(Decision)

        def answer(result: EpochResult) -> Decision:
            decided = torch.tensor(possible.index(ask(result)) if self.is_first else 0)
            dist.broadcast(decided, src=0)
            return possible[int(decided)]

        return answer

    def average(self, statistics: Sequence[Tensor]) -> None:
        """Replace statistics that each process has gathered of its own parts, such as batch-norms', by their mean."""
        if self.count == 1 or not statistics:
            return
        flat = torch.cat([each.reshape(-1) for each in statistics])
        dist.all_reduce(flat)
        parts = torch.split(flat / self.count, [each.numel() for each in statistics])
        for each, mean in zip(statistics, parts, strict=True):
            each.copy_(mean.view_as(each))

    def gathered(self, logits: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        """The logits ``[N, num_classes]`` of all parts, in their order.

        Args:
            logits: ``[n, num_classes]`` of each part that is :meth:`own`.
            sizes: rows of each part, of all processes.
        """
        if self.count == 1:
            return torch.cat(list(logits))
        whole = logits[0].new_zeros(sum(sizes), logits[0].shape[1])
        if self.has_own(sizes):
            for place, part in zip(self.own(torch.split(whole, list(sizes))), logits, strict=True):
                place.copy_(part)
        dist.all_reduce(whole)
        return whole

    def all_states(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The states of all processes' random generators, those of the first under their own names."""
        named = dict(states)
        if self.count == 1:
            return named
        for name, state in states.items():
            found = [torch.empty_like(state) for _ in range(self.count)]
            dist.all_gather(found, state)
            named |= {f"{name}/{rank}": other for rank, other in enumerate(found) if rank}
        return named

    def own_states(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's of :meth:`all_states`; empty if there were fewer processes then."""
        if self.is_first:
            return {name: state for name, state in states.items() if "/" not in name}
        end = f"/{self.rank}"
        return {name.removesuffix(end): state for name, state in states.items() if name.endswith(end)}

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        """Run the block in the first process, then in the others: what it leaves on the disk, they find."""
        if not self.is_first:
            self.any_of(False)
        yield
        if self.is_first:
            self.any_of(False)


ALONE = Ranks()
"""The only process."""


def _sum_gradients(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """In place of their mean: the loss of a part is divided by the rows of the whole batch already."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None  # noqa: S101  it is asynchronous
    done: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
    return done
