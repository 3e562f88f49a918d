"""Plan what to store, by pure arithmetic on measurements."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from thawline.activations.store import StoredType
from thawline.config import TrainConfig
from thawline.durations import roughly

__all__ = ["Compilation", "Plan", "Profile", "make_plan"]

_HALF_PRECISION_LIMIT = 6000.0
"""A tenth of the largest half-precision value: other rows may have larger values than the profiled ones."""


_LARGEST_EXACT = 3
"""Maximum size of a boundary's activations, relative to the image, for storing it without a cost estimate. Larger ones
occur only after the first few layers, which cost about as much as reading their activations."""


class Compilation(BaseModel):
    """Cost and speed-up of compiling a network for training."""

    model_config = ConfigDict(frozen=True)

    seconds: float
    """Time for compiling the whole network, forward and backward."""
    gain: float
    """Speed-up factor of training."""


class Profile(BaseModel):
    """The costs of one backbone on this machine, in the fastest tried configuration.

    A row is an image, or a text of the mean length.
    """

    model_config = ConfigDict(frozen=True)

    precision: str
    """``fp32``, ``bf16`` or ``fp16``."""
    channels_last: bool
    groups: tuple[str, ...]
    """Names of the layer groups."""
    forward: tuple[float, ...]
    """Seconds per row for each layer group and the head, in evaluation mode."""
    training: tuple[float, ...]
    """Seconds per row for forward and backward, likewise."""
    parameters: tuple[int, ...]
    """Number of parameters, likewise."""
    numbers: tuple[int, ...]
    """Number of stored values per row after each layer group."""
    computed_as: tuple[StoredType, ...]
    """Type of the values, likewise."""
    largest: tuple[float, ...]
    """Largest absolute value, likewise."""
    input_seconds: float
    """Seconds for reading and preparing a row."""
    step_seconds: float
    """Seconds of the optimizer per parameter."""
    read_bytes_per_second: float
    """Speed of reading stored activations in training order, from the page cache to the device."""
    resident_bytes: int = 0
    """Bytes of activations that a GPU can cache; 0 on a CPU."""
    resident_bytes_per_second: float | None = None
    """Speed of reading cached activations."""
    write_bytes_per_second: float
    """Speed of writing checkpoints and activations, including checksums."""
    start_seconds: float
    """Seconds for building the backbone of a trial."""
    compilation: Compilation | None = None
    """``None`` if it was not requested, or is not possible."""
    not_compiled: str = ""
    """Why compilation is not possible."""


class Plan(BaseModel):
    """Which activations are stored, how training computes, and the expected costs."""

    model_config = ConfigDict(frozen=True)

    profile: Profile
    boundaries: tuple[int, ...] = ()
    """Boundaries at which activations are stored, as numbers of layer groups."""
    stored_as: dict[int, StoredType] = {}
    bytes: int = 0
    train_rows: int
    validation_rows: int
    epochs: int
    batch_size: int
    views: int | None
    """Number of stored views of every training row; ``None`` if each epoch has a new view, so that none is stored."""
    trials: int
    seconds: float | None = None
    """Time limit of a search without a limit on trials: :attr:`trials` then estimates how many fit."""
    devices: int = 1
    """Number of GPUs per trial; their communication is not counted."""
    depths: dict[int, float]
    """The freeze depths of epochs, each with its share of all epochs; the shares add up to 1."""

    def boundary_for(self, depth: int) -> int:
        """The last stored boundary from which a trial of this freeze depth can start; 0 for images or tokens."""
        return max((boundary for boundary in self.boundaries if boundary <= depth), default=0)

    def share_from_start(self) -> float:
        """The share of all epochs that train from images or tokens, without stored activations."""
        if self.views is None:
            return 1.0
        return sum(share for depth, share in self.depths.items() if self.boundary_for(depth) == 0)

    def trial_seconds(self, depths: Sequence[int]) -> float:
        """Expected duration of a trial, given the freeze depth of each of its epochs."""
        return self.profile.start_seconds + sum(map(self._epoch_seconds, depths)) - self._saved(depths)

    def epoch_seconds(self) -> list[float]:
        """Expected duration of an epoch, by freeze depth from 0."""
        return [self._mean_epoch_seconds(depth) for depth in range(len(self.profile.groups) + 1)]

    def compiles(self, depths: Sequence[int]) -> bool:
        """Whether compilation makes a trial faster overall, given the freeze depth of each epoch."""
        return self._saved(depths) > 0

    def fill_seconds(self) -> float:
        """Expected duration of filling the store."""
        if not self.boundaries:
            return 0.0
        forward = self.profile.input_seconds + sum(self.profile.forward[: max(self.boundaries)])
        passes = self.validation_rows + (self.views or 0) * self.train_rows
        return passes * forward + self.bytes / self.profile.write_bytes_per_second

    def search_seconds(self) -> float:
        """Expected duration of the search if every trial trains to the end."""
        epoch = sum(share * self._mean_epoch_seconds(depth) for depth, share in self.depths.items())
        return self.fill_seconds() + self.trials * (self.profile.start_seconds + self.epochs * epoch)

    def trials_within(self, seconds: float) -> int:
        """Expected number of trials within this time if every trial trains to the end; at least 1."""
        one = self.model_copy(update={"trials": 1}).search_seconds() - self.fill_seconds()
        return max(1, int((seconds - self.fill_seconds()) / one))

    def for_time(self, seconds: float) -> "Plan":
        """The same plan for a search with this time limit."""
        return self.model_copy(update={"seconds": seconds, "trials": self.trials_within(seconds)})

    def without_store(self) -> "Plan":
        """The same plan if every trial computes everything itself."""
        return self.model_copy(update={"boundaries": (), "bytes": 0})

    def why_not_compiled(self) -> str:
        """The reason why no trial is compiled; empty if trials at some freeze depths are."""
        compilation = self.profile.compilation
        if compilation is None:
            return self.profile.not_compiled or "the study was started without train.compile"
        if self._compiled_depths():
            return ""
        return (
            f"it takes about {roughly(compilation.seconds)}, and training is then {compilation.gain:.1f} times as fast"
        )

    def _compiled_depths(self) -> list[int]:
        return [depth for depth in sorted(self.depths) if self.compiles([depth] * self.epochs)]

    def without_compilation(self) -> "Plan":
        """The same plan if trials are not compiled."""
        return self.model_copy(update={"profile": self.profile.model_copy(update={"compilation": None})})

    def for_probes(self) -> "Plan":
        """The same plan for a search with linear probes only, which need only the head's input."""
        deepest = len(self.profile.groups)
        kept = tuple(boundary for boundary in self.boundaries if boundary == deepest)
        size = sum(self.bytes_of(boundary) for boundary in kept)
        return self.model_copy(update={"boundaries": kept, "bytes": size, "depths": {deepest: 1.0}, "epochs": 1})

    def seconds_without_store(self) -> float:
        """Expected duration of the search if nothing were stored."""
        return self.without_store().search_seconds()

    def lines(self) -> list[str]:
        """The plan in two sentences."""
        profile = self.profile
        way = f"{profile.precision}, channels last" if profile.channels_last else profile.precision
        if compiled := self._compiled_depths():
            way += f", compiled at freeze depth {', '.join(map(str, compiled))}"
        if self.devices > 1:
            way += f", each trial on {self.devices} GPUs"
        if not self.boundaries:
            return [
                f"plan: stores nothing, trains in {way}",
                f"plan: {self._expected()} if no trial is stopped early",
            ]
        names = ", ".join(profile.groups[boundary - 1] for boundary in self.boundaries)
        return [
            f"plan: stores activations after {names}: {_size(self.bytes)}; trains in {way}",
            f"plan: {self._expected()}{self._saving()} if no trial is stopped early",
        ]

    def _expected(self) -> str:
        """The expected duration of the search, or its number of trials."""
        if self.seconds is None:
            return f"search about {roughly(self.search_seconds())}"
        count = self.trials_within(self.seconds)
        return f"about {count} trial{'' if count == 1 else 's'} in {roughly(self.seconds)}"

    def _saving(self) -> str:
        """The time saved by the store, phrased like :meth:`_expected`."""
        if self.seconds is None:
            planned, without = roughly(self.search_seconds()), roughly(self.seconds_without_store())
        else:
            counts = self.trials_within(self.seconds), self.without_store().trials_within(self.seconds)
            planned, without = map(str, counts)
        return f" instead of {without}," if planned != without else ""

    def bytes_of(self, boundary: int) -> int:
        """Size of the activations stored at a boundary."""
        return self._row_bytes(boundary) * (self.validation_rows + (self.views or 0) * self.train_rows)

    def _row_bytes(self, boundary: int) -> int:
        return self.profile.numbers[boundary - 1] * (4 if self.stored_as[boundary] == "float32" else 2)

    def _mean_epoch_seconds(self, depth: int) -> float:
        """Mean for a trial that trains all epochs at one freeze depth, compiled if that is faster."""
        return self._epoch_seconds(depth) - self._saved([depth] * self.epochs) / self.epochs

    def _saved(self, depths: Sequence[int]) -> float:
        """Seconds that a trial saves by compilation; 0 if compiling takes longer than it saves.

        Assumes the same compilation time and speed-up for every layer group, and no hits in PyTorch's compilation
        cache.
        """
        compilation, deepest = self.profile.compilation, len(self.profile.groups)
        thawed = [depth for depth in depths if depth < deepest]  # with the head only, nothing is compiled
        if compilation is None or not thawed:
            return 0.0
        training = sum(self.train_rows * sum(self.profile.training[depth:]) for depth in thawed) / self.devices
        compiling = sum(compilation.seconds * (deepest + 1 - depth) / (deepest + 1) for depth in set(thawed))
        return max(0.0, training * (1 - 1 / compilation.gain) - compiling)

    def _epoch_seconds(self, depth: int) -> float:
        """Seconds per epoch without compilation."""
        profile = self.profile
        stored = self.boundary_for(depth)
        from_start = 0 if self.views is None else stored
        training = self._input_seconds(from_start) + sum(profile.forward[from_start:depth])
        validation = self._input_seconds(stored) + sum(profile.forward[stored:])
        free = sum(profile.parameters[depth:])
        steps = self.train_rows / self.batch_size
        # Heads are trained together on one device.
        devices = self.devices if depth < len(profile.groups) else 1
        return (
            self.train_rows * (training + sum(profile.training[depth:])) / devices
            + self.validation_rows * validation / devices
            + steps * free * profile.step_seconds
            + 12 * free / profile.write_bytes_per_second  # a checkpoint: weights and two moments
        )

    def _input_seconds(self, boundary: int) -> float:
        if boundary == 0:
            return self.profile.input_seconds
        profile = self.profile
        if profile.resident_bytes_per_second is not None and self.bytes_of(boundary) <= profile.resident_bytes:
            return self._row_bytes(boundary) / profile.resident_bytes_per_second
        return self._row_bytes(boundary) / profile.read_bytes_per_second


def make_plan(
    profile: Profile,
    config: TrainConfig,
    *,
    train_rows: int,
    validation_rows: int,
    views: int | None,
    trials: int,
    devices: int = 1,
    depths: Mapping[int, float],
    budget: int,
    input_numbers: int,
) -> Plan:
    """Choose the boundaries to store: the deepest, then greedily the one that saves the most time per byte.

    If results must be exact, no decision may depend on timings: a layer's last bits may depend on the batch size, so a
    trial's boundary must not depend on the load of the machine. Then all boundaries that are not much larger than the
    image are stored, deepest first.

    Args:
        profile: the measurements.
        config: epochs, batch size, and whether results must be exact.
        train_rows: number of training rows.
        validation_rows: number of validation rows.
        views: number of views of each training row, at least 1; ``None`` if every epoch has a new one.
        trials: number of remaining trials.
        devices: see :attr:`Plan.devices`.
        depths: see :attr:`Plan.depths`.
        budget: bytes that may be stored; 0 stores nothing.
        input_numbers: number of values per row of the network's input.
    """
    deepest = len(profile.groups)
    stored_as: dict[int, StoredType] = {b: _stored_as(profile, b, config.exact) for b in range(1, deepest + 1)}
    plan = Plan(
        profile=profile,
        stored_as=stored_as,
        train_rows=train_rows,
        validation_rows=validation_rows,
        epochs=config.epochs,
        batch_size=config.batch_size,
        views=views,
        trials=trials,
        devices=devices,
        depths=dict(depths),
    )
    candidates = sorted(depths.keys() - {0})
    # The linear probe always needs it, even if few trials freeze everything; it is the smallest.
    if 0 < plan.bytes_of(deepest) <= budget:
        plan = _with(plan, deepest)
        candidates = [boundary for boundary in candidates if boundary != deepest]
    if config.exact:
        for boundary in reversed(candidates):
            small = profile.numbers[boundary - 1] <= _LARGEST_EXACT * input_numbers
            if small and plan.bytes + plan.bytes_of(boundary) <= budget:
                plan = _with(plan, boundary)
        return plan
    while candidates:
        plans = [_with(plan, boundary) for boundary in candidates]
        paying = [p for p in plans if p.bytes <= budget and p.search_seconds() < plan.search_seconds()]
        if not paying:
            break
        before = plan
        plan = max(paying, key=lambda p: (before.search_seconds() - p.search_seconds()) / (p.bytes - before.bytes))
        candidates = [boundary for boundary in candidates if boundary not in plan.boundaries]
    return plan


def _with(plan: Plan, boundary: int) -> Plan:
    boundaries = tuple(sorted((*plan.boundaries, boundary)))
    return plan.model_copy(update={"boundaries": boundaries, "bytes": plan.bytes + plan.bytes_of(boundary)})


def _stored_as(profile: Profile, boundary: int, exact: bool) -> StoredType:
    computed, largest = profile.computed_as[boundary - 1], profile.largest[boundary - 1]
    if exact or computed != "float32" or largest > _HALF_PRECISION_LIMIT:
        return computed
    return "float16"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
