"""Slots for concurrent trials, each with its own devices if there are several."""

import torch

from thawline.config import SearchConfig
from thawline.exceptions import ConfigError

__all__ = ["Slots", "check_devices", "threads_per_trial"]


class Slots:
    """The slots of one search. A running trial occupies one, so that no two trials compete for a device.

    Not thread-safe: only the thread that submits trials takes and returns slots.
    """

    def __init__(self, config: SearchConfig, *, gpus: int | None = None) -> None:
        """Lay out the slots.

        Args:
            config: ``study.workers``, ``study.workers_per_gpu``, ``train.device`` and ``execution``.
            gpus: number of GPUs of this machine; by default torch's count.
        """
        self._free = _devices(config, torch.cuda.device_count() if gpus is None else gpus)
        self.count = len(self._free)

    def take(self) -> str:
        """Take a free slot, and return its first device; one is free if fewer than :attr:`count` are taken."""
        return self._free.pop(0)

    def give_back(self, device: str) -> None:
        """Return a slot for the next trial."""
        self._free.append(device)


def threads_per_trial(config: SearchConfig) -> int:
    """CPU threads per trial: concurrent trials must not each start as many threads as there are cores."""
    if config.execution.kind != "local":
        return max(1, int(config.execution.cpus))
    return max(1, torch.get_num_threads() // Slots(config).count)


def check_devices(config: SearchConfig, *, gpus: int | None = None) -> None:
    """Refuse ``train.devices_per_trial`` if there are fewer devices.

    Args:
        config: ``train`` and ``execution``.
        gpus: number of GPUs of this machine; by default torch's count.

    Raises:
        ConfigError: with the available number.
    """
    count, execution = config.train.devices_per_trial, config.execution
    kind, _, first = config.train.device.partition(":")
    wanted = f"train.devices_per_trial={count}"
    if count == 1:
        return
    if execution.kind == "dask":
        raise ConfigError(f"{wanted} needs execution.kind local or ray: Dask's workers cannot start processes.")
    if kind == "cpu":
        return
    if kind not in {"auto", "cuda"}:
        raise ConfigError(f"{wanted} needs GPUs of NVIDIA or AMD, or train.device=cpu, but got {config.train.device}.")
    if execution.kind == "ray":
        if execution.gpus != count:
            raise ConfigError(
                f"{wanted} needs execution.gpus={count}, so that Ray gives every trial as many GPUs, but got "
                f"{execution.gpus:g}. Set it, or train.device=cpu."
            )
        return
    there = max(0, (torch.cuda.device_count() if gpus is None else gpus) - int(first or 0))
    if there < count:
        beyond = f" from {config.train.device} on" if first else ""
        raise ConfigError(
            f"{wanted}, but this machine has {there} GPU{'' if there == 1 else 's'}{beyond}. Lower it, or set "
            "train.device=cpu, which trains in as many processes of the CPU and is no faster than one."
        )


def _devices(config: SearchConfig, gpus: int) -> list[str]:
    """A device for each slot, cycling through the GPUs."""
    study, device = config.study, config.train.device
    if config.execution.kind != "local":  # the cluster assigns devices; a batch drawn together runs together
        return [device] * (study.batch if study.workers == "auto" else study.workers)
    if device != "auto" or gpus == 0:
        share = study.workers_per_gpu if device.startswith("cuda") else 1
        return [device] * (share if study.workers == "auto" else study.workers)
    each = config.train.devices_per_trial
    firsts = range(0, gpus - each + 1, each)  # adjacent GPUs are the most likely to be connected by a fast link
    slots = [f"cuda:{gpu}" for _ in range(study.workers_per_gpu) for gpu in firsts]
    wanted = len(slots) if study.workers == "auto" else study.workers
    return [slots[i % len(slots)] for i in range(wanted)]
