"""Checkpoints: one safetensors file each, with checksummed tensors, and everything else as JSON in the header.

A checkpoint is written to a temporary name, synced and renamed, so a reader sees a complete one or none; after a power
cut the previous one still exists. It contains no pickle.

GPU tensors are copied, then a thread writes them while training continues (ADR 47).
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from thawline.backbones import Backbone
from thawline.exceptions import CheckpointError
from thawline.training.runtime import on_cpu

__all__ = [
    "Checkpoint",
    "CheckpointFolder",
    "Stepper",
    "load_checkpoint",
    "load_model",
    "load_optimizer",
    "pack_model",
    "pack_optimizer",
]

_FORMAT = "thawline-checkpoint-2"
_FILE = re.compile(r"epoch-(\d{4,})\.safetensors")
_WITHIN = "within-epoch.safetensors"
_PARTS = ("model", "optimizer", "random_states", "trained")


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to resume training as if it had never stopped."""

    epoch: int
    """Number of finished epochs; also the index of the next epoch to train or resume."""
    model: dict[str, Tensor]
    """The non-frozen part of the module's ``state_dict``, see :func:`pack_model`."""
    optimizer: dict[str, Tensor]
    """Tensors of the optimizer's state, see :func:`pack_optimizer`."""
    random_states: dict[str, Tensor]
    state: dict[str, Any]
    """JSON: optimizer groups, scheduler, scaler, freeze depth, value, history of metrics, resolved configuration."""
    trained: dict[str, Tensor] = field(default_factory=dict)
    """If ``model`` contains averages, the weights to resume training from; else empty."""


class Stepper(NamedTuple):
    """The objects that take an optimizer step, whose states belong together."""

    optimizer: Optimizer
    schedule: LambdaLR
    scaler: GradScaler


class CheckpointFolder:
    """The checkpoints of one trial: the last, and the best ``keep`` by value. Others are removed."""

    def __init__(self, path: Path, *, keep: int, maximise: bool) -> None:
        self.path = path
        self._keep = keep
        self._sign = 1.0 if maximise else -1.0
        self._owed: list[Checkpoint] = []
        self._problem: str | None = None
        self._writing: Future[None] | None = None
        path.mkdir(parents=True, exist_ok=True)
        for leftover in path.glob("*.tmp"):
            leftover.unlink(missing_ok=True)  # another process of the trial may be faster

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint atomically, then remove those that are neither the last nor among the best.

        Raises:
            OSError: if the disk is full or not writable; existing checkpoints are untouched.
        """
        self.wait()
        return self._save(_fetch(checkpoint)())

    def _save(self, checkpoint: Checkpoint) -> Path:
        target = self.path / f"epoch-{checkpoint.epoch:04d}.safetensors"
        self._write(checkpoint, target)
        self._remove_surplus(last=target)
        return target

    @property
    def problem(self) -> str | None:
        """Why checkpoints are missing on disk; ``None`` if none are missing."""
        self.wait()
        return self._problem

    def keep(self, checkpoint: Checkpoint) -> None:
        """Save a checkpoint; if the disk is full, keep it in memory and retry with the next one.

        Of the unwritten checkpoints, the best and the last are kept. GPU tensors are copied, and a thread writes them
        while training continues; methods that read or write those files wait for the thread first.

        Raises:
            Exception: the error of the thread's previous write, unless the disk was full.
        """
        self.wait()
        fetch = _fetch(checkpoint)
        if all(tensor.device.type == "cpu" for tensor in checkpoint.model.values()):
            self._save_or_owe(fetch())  # a thread would compete with training for the CPU
            return
        writer = ThreadPoolExecutor(1, thread_name_prefix="thawline-checkpoint")
        self._writing = writer.submit(lambda: self._save_or_owe(fetch()))
        writer.shutdown(wait=False)

    @property
    def is_writing(self) -> bool:
        """Whether the thread is still writing the last checkpoint."""
        return self._writing is not None and not self._writing.done()

    def settle(self) -> None:
        """Wait for the current write, and retry those that failed because the disk was full."""
        self.wait()
        self._save_or_owe()

    def wait(self) -> None:
        """Wait for the current write.

        Raises:
            Exception: the error of that write, unless the disk was full; raised once.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _save_or_owe(self, checkpoint: Checkpoint | None = None) -> None:
        waiting, self._owed, self._problem = [*self._owed, *([checkpoint] if checkpoint else [])], [], None
        for each in waiting:
            try:
                self._save(each)
            except OSError as error:
                self._problem = error.strerror or str(error)
                self._owed.append(_in_memory(each) if each is checkpoint else each)
        if len(self._owed) > 2:
            best = max(self._owed, key=lambda each: (self._sign * float(each.state["value"]), -each.epoch))
            self._owed = [each for each in self._owed if each is best or each is self._owed[-1]]

    def save_within(self, checkpoint: Checkpoint) -> None:
        """Save the state of an unfinished epoch; valid until the next :meth:`save`.

        Raises:
            OSError: as :meth:`save`.
        """
        self.wait()
        self._write(_fetch(checkpoint)(), self.path / _WITHIN)

    def within(self, epoch: int) -> Checkpoint | None:
        """The saved state of the unfinished epoch with this index; ``None`` without one.

        Does not wait: a write in progress is of the previous epoch.
        """
        try:
            checkpoint = load_checkpoint(self.path / _WITHIN)
        except CheckpointError:
            return None
        return checkpoint if checkpoint.epoch == epoch else None

    def _write(self, checkpoint: Checkpoint, target: Path) -> None:
        tensors = _tensors_of(checkpoint)
        header = {
            "format": _FORMAT,
            "epoch": str(checkpoint.epoch),
            "sha256": _digest(tensors, checkpoint.state),
            "state": json.dumps(checkpoint.state),
        }
        temporary = target.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                file.write(save(tensors, metadata=header))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(self.path)

    def last(self) -> Checkpoint | None:
        """The newest complete checkpoint; damaged ones are skipped. ``None`` if there is none."""
        self.wait()
        for path in reversed(self._files()):
            try:
                return load_checkpoint(path)
            except CheckpointError:
                continue
        return None

    def best(self) -> Path | None:
        """The complete checkpoint with the best value; the earlier of two equals."""
        self.wait()
        readable = [(path, self._value(path)) for path in self._files()]
        ranked = [(value, path) for path, value in readable if value is not None]
        return max(ranked, key=lambda item: item[0])[1] if ranked else None

    def _files(self) -> list[Path]:
        return sorted((path for path in self.path.iterdir() if _FILE.fullmatch(path.name)), key=_epoch_of)

    def _value(self, path: Path) -> float | None:
        try:
            with safe_open(path, "pt") as file:
                return self._sign * float(json.loads(file.metadata()["state"])["value"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            return None

    def _remove_surplus(self, last: Path) -> None:
        values = {path: self._value(path) for path in self._files()}
        ranked = sorted(
            (p for p, v in values.items() if v is not None), key=lambda p: (-(values[p] or 0.0), _epoch_of(p))
        )
        for path in set(values) - set(ranked[: self._keep]) - {last}:
            path.unlink()
        (self.path / _WITHIN).unlink(missing_ok=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify it.

    Raises:
        CheckpointError: if the file is missing, incomplete, changed, or not a checkpoint of Thawline.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error}") from None
    if header.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version: its format is {header.get('format')!r}.")
    state = json.loads(header["state"])
    if _digest(tensors, state) != header["sha256"]:
        raise CheckpointError(f"The checkpoint {path} is damaged: its checksum does not match its content.")
    return Checkpoint(epoch=int(header["epoch"]), state=state, **_parts_of(tensors))


def _tensors_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All tensors, by their names in the file."""
    return {f"{part}/{name}": tensor for part in _PARTS for name, tensor in getattr(checkpoint, part).items()}


def _parts_of(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Undo :func:`_tensors_of`."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for name, tensor in tensors.items():
        part, _, key = name.partition("/")
        parts[part][key] = tensor
    return parts


def _fetch(checkpoint: Checkpoint) -> Callable[[], Checkpoint]:
    """Start copying tensors from a device; see :func:`thawline.training.runtime.on_cpu`."""
    tensors = on_cpu(_tensors_of(checkpoint))
    return lambda: _with_tensors(checkpoint, tensors())


def _in_memory(checkpoint: Checkpoint) -> Checkpoint:
    """A copy that is not changed by further training."""
    return _with_tensors(checkpoint, {name: tensor.clone() for name, tensor in _tensors_of(checkpoint).items()})


def _with_tensors(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """The same checkpoint with other tensors, by their names in the file."""
    return Checkpoint(epoch=checkpoint.epoch, state=checkpoint.state, **_parts_of(tensors))


def pack_model(backbone: Backbone, freeze_depth: int) -> dict[str, Tensor]:
    """The tensors that training at a freeze depth may change; the frozen ones still have their initial values."""
    frozen = {name for group in backbone.layer_groups[:freeze_depth] for name in group.tensors}
    return {name: tensor for name, tensor in backbone.module.state_dict().items() if name not in frozen}


def load_model(checkpoint: Checkpoint, backbone: Backbone) -> None:
    """Copy the checkpoint's tensors into a freshly created backbone with the same pretrained weights.

    Raises:
        CheckpointError: if it has another architecture, or was trained with other frozen weights.
    """
    expected = pack_model(backbone, checkpoint.state["freeze_depth"])
    if expected.keys() != checkpoint.model.keys():
        differing = sorted(expected.keys() ^ checkpoint.model.keys())
        raise CheckpointError(f"The checkpoint is of a different network: {', '.join(differing[:5])} are not in both.")
    if checkpoint.state["weights_digest"] != backbone.weights_digest:
        raise CheckpointError(
            f"The checkpoint was trained from the weights {checkpoint.state['weights_digest']}, but the given ones are "
            f"{backbone.weights_digest}. Use the weights of the study."
        )
    # Into the module's own state_dict, which has the version numbers that MNASNet requires.
    state = backbone.module.state_dict()
    state.update(checkpoint.model)
    backbone.module.load_state_dict(state)


def pack_optimizer(stepper: Stepper) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the states of optimizer, schedule and scaler into tensors and JSON."""
    content = stepper.optimizer.state_dict()
    tensors, plain = {}, {}
    for index, entries in content["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{key}"] = value
            else:
                plain[f"{index}/{key}"] = value
    schedule_state = {k: v for k, v in stepper.schedule.state_dict().items() if k != "lr_lambdas"}
    return tensors, {
        "optimizer_groups": content["param_groups"],
        "optimizer_values": plain,
        "schedule": schedule_state,
        "scaler": stepper.scaler.state_dict(),
    }


def load_optimizer(checkpoint: Checkpoint, stepper: Stepper) -> None:
    """Undo :func:`pack_optimizer` on new objects of the same configuration."""
    entries: dict[int, dict[str, Any]] = {}
    for key, value in {**checkpoint.optimizer, **checkpoint.state["optimizer_values"]}.items():
        index, _, name = key.partition("/")
        entries.setdefault(int(index), {})[name] = value
    # Whether it is fused depends on the device, which may differ now.
    saved = zip(checkpoint.state["optimizer_groups"], stepper.optimizer.param_groups, strict=True)
    groups = [{**group, "fused": own["fused"]} for group, own in saved]
    stepper.optimizer.load_state_dict({"state": entries, "param_groups": groups})
    for parameter, state in stepper.optimizer.state.items():
        for name, value in state.items():
            # A fused kernel uses the parameter's memory format; a checkpoint has the contiguous one.
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    lambdas = [None] * len(stepper.optimizer.param_groups)
    stepper.schedule.load_state_dict({**checkpoint.state["schedule"], "lr_lambdas": lambdas})
    stepper.scaler.load_state_dict(checkpoint.state["scaler"])


def _digest(tensors: dict[str, Tensor], state: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _epoch_of(path: Path) -> int:
    match = _FILE.fullmatch(path.name)
    assert match is not None  # noqa: S101  callers pass only files that matched
    return int(match.group(1))


def _sync_folder(path: Path) -> None:
    """Sync a folder, without which a rename may not reach the disk; unavailable and unnecessary on Windows."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
