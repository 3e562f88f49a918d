"""The processes that train one network together, each on its own device, with PyTorch's ``DistributedDataParallel``.

Each has the complete network and computes a part of every batch. They exchange gradients, and everything on which their
decisions depend, so they take the same steps and stay in sync.
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
"""Timeout of an exchange. Its driver detects a process that hangs, and ends them all."""

_SYNC_BUFFERS = ("forward_sync_buffers", "broadcast_buffers")
"""Names of an option in newer and older versions of PyTorch."""


@dataclass(frozen=True)
class Place:
    """The rank of a process, and the meeting point of all."""

    rank: int
    """From 0. The first process writes checkpoints and reports."""
    count: int
    meeting: Path
    """A file on this machine that does not exist yet."""


def device_of_rank(device: str, rank: int) -> str:
    """The device of a process, given that of the first, such as ``cuda:2`` or ``cpu``."""
    kind, _, index = device.partition(":")
    if kind == "auto" and torch.cuda.is_available():
        kind = "cuda"
    return f"cuda:{int(index or 0) + rank}" if kind == "cuda" else device


@contextmanager
def joined(place: Place | None, device: torch.device) -> Iterator["Ranks"]:
    """Join the other processes within the block, if there are any.

    They do not listen on a network: they find each other through a file, and connect on this machine.

    Args:
        place: the rank of this process; ``None`` if it is the only one. After an exception in its block, this process
            and the others, which may be waiting for it, must be ended.
        device: device of this process. GPUs exchange gradients with NCCL, other devices with gloo.
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
    ranks.any_of(False)  # no process closes connections that another still needs
    dist.destroy_process_group()


@dataclass(frozen=True)
class Ranks:
    """One of the processes that train a network, and its communication with the others.

    Methods that communicate must be called by all processes in the same order. With a single process they do nothing.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process reports for all."""
        return self.rank == 0

    def own(self, parts: Sequence[_T]) -> Sequence[_T]:
        """The parts of this process, as they are distributed in turn. If there is none for it, the first: it must
        compute something to take part in the exchange, and :meth:`has_own` tells that it does not count."""
        return parts[self.rank :: self.count] or parts[:1]

    def has_own(self, parts: Sequence[object]) -> bool:
        """Whether any of these are for this process."""
        return self.rank < len(parts)

    def own_seed(self, seed: int) -> int:
        """The seed of this process's generators, given that of the first: dropout must differ between processes."""
        return seed if self.is_first else int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0])

    def network(self, network: nn.Module) -> nn.Module:
        """Wrap a network so that its backward pass sums the gradients of all processes."""
        if self.count == 1:
            return network
        # Buffers are the same in all processes (see `average`) and are not broadcast.
        known = signature(DistributedDataParallel.__init__).parameters
        options: dict[str, Any] = {next(name for name in _SYNC_BUFFERS if name in known): False}
        together = DistributedDataParallel(network, **options)
        together.register_comm_hook(None, _sum_gradients)
        return together

    def exchanging(self, network: nn.Module, now: bool) -> AbstractContextManager[object]:
        """Within the block, forward and backward passes accumulate local gradients; they are exchanged only in the last
        part of a batch."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) and not now else nullcontext()

    def totals(self, sums: Tensor, own: int) -> list[float]:
        """Sums over processes, on the host.

        Args:
            sums: ``[n]``, on the device.
            own: number of leading sums that are local to each process; the rest are the same in all.
        """
        if self.count > 1:
            together = sums[:own].double()
            dist.all_reduce(together)
            sums = torch.cat([together, sums[own:]])
        return list(sums.tolist())

    def any_of(self, wish: bool) -> bool:
        """Whether the flag is set in any process. Exchanged on the CPU, without a GPU sync."""
        if self.count == 1:
            return wish
        wishes = torch.tensor(int(wish))
        dist.all_reduce(wishes)
        return bool(wishes)

    def asking_first(self, ask: Callable[[EpochResult], Decision]) -> Callable[[EpochResult], Decision]:
        """Wrap a callback so that only the first process calls it, and all get its result."""
        if self.count == 1:
            return ask
        possible = list(Decision)

        def answer(result: EpochResult) -> Decision:
            decided = torch.tensor(possible.index(ask(result)) if self.is_first else 0)
            dist.broadcast(decided, src=0)
            return possible[int(decided)]

        return answer

    def average(self, statistics: Sequence[Tensor]) -> None:
        """Replace statistics of local parts, such as batch-norms', by their mean over processes."""
        if self.count == 1 or not statistics:
            return
        flat = torch.cat([each.reshape(-1) for each in statistics])
        dist.all_reduce(flat)
        parts = torch.split(flat / self.count, [each.numel() for each in statistics])
        for each, mean in zip(statistics, parts, strict=True):
            each.copy_(mean.view_as(each))

    def gathered(self, logits: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        """The logits ``[N, num_classes]`` of all parts, in order.

        Args:
            logits: ``[n, num_classes]`` of each part of :meth:`own`.
            sizes: number of rows of each part of all processes.
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
        """The states of all processes' random generators; those of the first keep their names."""
        named = dict(states)
        if self.count == 1:
            return named
        for name, state in states.items():
            found = [torch.empty_like(state) for _ in range(self.count)]
            dist.all_gather(found, state)
            named |= {f"{name}/{rank}": other for rank, other in enumerate(found) if rank}
        return named

    def own_states(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's states from :meth:`all_states`; empty if there were fewer processes."""
        if self.is_first:
            return {name: state for name, state in states.items() if "/" not in name}
        end = f"/{self.rank}"
        return {name.removesuffix(end): state for name, state in states.items() if name.endswith(end)}

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        """Run the block in the first process, then in the others, which find its files."""
        if not self.is_first:
            self.any_of(False)
        yield
        if self.is_first:
            self.any_of(False)


ALONE = Ranks()
"""A single process."""


def _sum_gradients(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Sum instead of average: a part's loss is already divided by the rows of the whole batch."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None  # noqa: S101  it is asynchronous
    done: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
    return done
