"""Where trials may run at the same time: a slot for each, on devices of its own where there are several."""

import torch

from thawline.config import SearchConfig
from thawline.exceptions import ConfigError

__all__ = ["Slots", "check_devices", "threads_per_trial"]


class Slots:
    """The slots of one search. A trial takes one for as long as it runs, so that no two trials fight for a device.

    Not thread-safe: the one thread that submits trials takes and gives back.
    """

    def __init__(self, config: SearchConfig, *, gpus: int | None = None) -> None:
        """Lay out the slots.

        Args:
            config: ``study.workers``, ``study.workers_per_gpu``, ``train.device`` and ``execution``.
            gpus: how many this machine has; by default as torch counts them.
        """
        self._free = _devices(config, torch.cuda.device_count() if gpus is None else gpus)
        self.count = len(self._free)

    def take(self) -> str:
        """The first device of a free slot; there is one as long as fewer than :attr:`count` are taken."""
        return self._free.pop(0)

    def give_back(self, device: str) -> None:
        """Let the next trial have it."""
        self._free.append(device)


def threads_per_trial(config: SearchConfig) -> int:
    """CPU threads of one trial: those that share the cores must not each start as many as there are cores."""
    if config.execution.kind != "local":
        return max(1, int(config.execution.cpus))
    return max(1, torch.get_num_threads() // Slots(config).count)


def check_devices(config: SearchConfig, *, gpus: int | None = None) -> None:
    """Refuse ``train.devices_per_trial`` where there are not so many.

    Args:
        config: ``train`` and ``execution``.
        gpus: how many this machine has; by default as torch counts them.

    Raises:
        ConfigError: saying how many there are.
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
    """A device for each slot, GPU after GPU in turn."""
    study, device = config.study, config.train.device
    if config.execution.kind != "local":  # its machines are told apart there; drawn together, run together
        return [device] * (study.batch if study.workers == "auto" else study.workers)
    if device != "auto" or gpus == 0:
        share = study.workers_per_gpu if device.startswith("cuda") else 1
        return [device] * (share if study.workers == "auto" else study.workers)
    each = config.train.devices_per_trial
    firsts = range(0, gpus - each + 1, each)  # of neighbours: they are the most likely to have a fast connection
    slots = [f"cuda:{gpu}" for _ in range(study.workers_per_gpu) for gpu in firsts]
    wanted = len(slots) if study.workers == "auto" else study.workers
    return [slots[i % len(slots)] for i in range(wanted)]
