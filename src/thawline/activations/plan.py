"""What to store: pure arithmetic on what was measured."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from thawline.activations.store import StoredType
from thawline.config import TrainConfig

__all__ = ["Plan", "Profile", "make_plan"]

_HALF_PRECISION_LIMIT = 6000.0
"""A tenth of the largest number in half precision: other rows may have larger ones than those profiled."""


_LARGEST_EXACT = 3
"""How many times as many numbers as the image a boundary may have that is stored without asking what it saves. Larger
ones come after the first few layers, which cost about as much as reading their activations."""


class Profile(BaseModel):
    """What one backbone costs on this machine, in the best of the ways to compute it that were tried.

    A row is an image, or a text of the mean length.
    """

    model_config = ConfigDict(frozen=True)

    precision: str
    """``fp32``, ``bf16`` or ``fp16``."""
    channels_last: bool
    groups: tuple[str, ...]
    """Names of the layer groups."""
    forward: tuple[float, ...]
    """Seconds a row through each layer group, and through the head, in evaluation mode."""
    training: tuple[float, ...]
    """Seconds a row forward and backward, the same."""
    parameters: tuple[int, ...]
    """Number of parameters, the same."""
    numbers: tuple[int, ...]
    """Numbers of a row that are stored after each layer group."""
    computed_as: tuple[StoredType, ...]
    """Their type, the same."""
    largest: tuple[float, ...]
    """The largest absolute value among them, the same."""
    input_seconds: float
    """To read and prepare a row for the network."""
    step_seconds: float
    """Of the optimizer, for one parameter."""
    read_bytes_per_second: float
    """Stored activations, in the order of training, from the machine's memory to where they are computed with."""
    resident_bytes: int = 0
    """Bytes of them that a GPU can keep at once; 0 on a CPU."""
    resident_bytes_per_second: float | None = None
    """The same of those that it keeps."""
    write_bytes_per_second: float
    """Checkpoints and activations, with their checksums."""
    start_seconds: float
    """To build the backbone for a trial."""


class Plan(BaseModel):
    """Where the frozen prefix is stored, how training computes, and what that should cost."""

    model_config = ConfigDict(frozen=True)

    profile: Profile
    boundaries: tuple[int, ...] = ()
    """Numbers of layer groups after which activations are stored."""
    stored_as: dict[int, StoredType] = {}
    bytes: int = 0
    train_rows: int
    validation_rows: int
    epochs: int
    batch_size: int
    views: int | None
    """Views of every training row that are stored; ``None`` if each epoch has a new one and none is."""
    trials: int
    seconds: float | None = None
    """Time for the search where that, and no number of trials, ends it: :attr:`trials` are then those that fit."""
    devices: int = 1
    """GPUs that compute a trial's rows at the same time; what they send each other is not counted."""
    depths: dict[int, float]
    """The freeze depths that epochs have, each with its share of all epochs; the shares add up to 1."""

    def boundary_for(self, depth: int) -> int:
        """The last stored boundary that a trial of this freeze depth can begin at; 0 for images or tokens."""
        return max((boundary for boundary in self.boundaries if boundary <= depth), default=0)

    def share_from_start(self) -> float:
        """Of all epochs, the share that is trained from images or tokens, with nothing stored of training rows."""
        if self.views is None:
            return 1.0
        return sum(share for depth, share in self.depths.items() if self.boundary_for(depth) == 0)

    def trial_seconds(self, depths: Sequence[int]) -> float:
        """What a trial should take from its start to its end, by the freeze depth of each of its epochs."""
        return self.profile.start_seconds + sum(map(self._epoch_seconds, depths))

    def epoch_seconds(self) -> list[float]:
        """What an epoch should take, by freeze depth from 0 on."""
        return [self._epoch_seconds(depth) for depth in range(len(self.profile.groups) + 1)]

    def fill_seconds(self) -> float:
        """What filling the store should take."""
        if not self.boundaries:
            return 0.0
        forward = self.profile.input_seconds + sum(self.profile.forward[: max(self.boundaries)])
        passes = self.validation_rows + (self.views or 0) * self.train_rows
        return passes * forward + self.bytes / self.profile.write_bytes_per_second

    def search_seconds(self) -> float:
        """What the whole search should take if every trial trains to its end."""
        epoch = sum(share * self._epoch_seconds(depth) for depth, share in self.depths.items())
        return self.fill_seconds() + self.trials * (self.profile.start_seconds + self.epochs * epoch)

    def trials_within(self, seconds: float) -> int:
        """How many trials there should be time for if every one trains to its end; at least 1."""
        one = self.model_copy(update={"trials": 1}).search_seconds() - self.fill_seconds()
        return max(1, int((seconds - self.fill_seconds()) / one))

    def for_time(self, seconds: float) -> "Plan":
        """The same for a search that ends when this time is spent."""
        return self.model_copy(update={"seconds": seconds, "trials": self.trials_within(seconds)})

    def without_store(self) -> "Plan":
        """The same where every trial computes everything by itself."""
        return self.model_copy(update={"boundaries": (), "bytes": 0})

    def for_probes(self) -> "Plan":
        """The same for a search that ends with the linear probe, which needs only what is before the head."""
        deepest = len(self.profile.groups)
        kept = tuple(boundary for boundary in self.boundaries if boundary == deepest)
        size = sum(self.bytes_of(boundary) for boundary in kept)
        return self.model_copy(update={"boundaries": kept, "bytes": size, "depths": {deepest: 1.0}, "epochs": 1})

    def seconds_without_store(self) -> float:
        """What the whole search should take if nothing was stored."""
        return self.without_store().search_seconds()

    def lines(self) -> list[str]:
        """The plan in two sentences."""
        profile = self.profile
        way = f"{profile.precision}, channels last" if profile.channels_last else profile.precision
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
        """How long the search takes, or how many trials it has."""
        if self.seconds is None:
            return f"search about {_duration(self.search_seconds())}"
        count = self.trials_within(self.seconds)
        return f"about {count} trial{'' if count == 1 else 's'} in {_duration(self.seconds)}"

    def _saving(self) -> str:
        """What the store saves, in the words of :meth:`_expected`."""
        if self.seconds is None:
            planned, without = _duration(self.search_seconds()), _duration(self.seconds_without_store())
        else:
            counts = self.trials_within(self.seconds), self.without_store().trials_within(self.seconds)
            planned, without = map(str, counts)
        return f" instead of {without}," if planned != without else ""

    def bytes_of(self, boundary: int) -> int:
        """Size of what is stored after a boundary."""
        return self._row_bytes(boundary) * (self.validation_rows + (self.views or 0) * self.train_rows)

    def _row_bytes(self, boundary: int) -> int:
        return self.profile.numbers[boundary - 1] * (4 if self.stored_as[boundary] == "float32" else 2)

    def _epoch_seconds(self, depth: int) -> float:
        profile = self.profile
        stored = self.boundary_for(depth)
        from_start = 0 if self.views is None else stored
        training = self._input_seconds(from_start) + sum(profile.forward[from_start:depth])
        validation = self._input_seconds(stored) + sum(profile.forward[stored:])
        free = sum(profile.parameters[depth:])
        steps = self.train_rows / self.batch_size
        # Heads are trained together, on one.
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
    """Choose the boundaries to store: the deepest, then one after the other the one that saves the most time for its
    bytes.

    Where results must be exact, no decision may depend on timings: a layer that sees another number of images at
    once may differ in the last bits, so where a trial begins must not depend on how busy the machine was. Then all
    boundaries are stored that are not much larger than the image, the deepest first.

    Args:
        profile: what was measured.
        config: epochs, batch size, and whether results must be exact.
        train_rows: their number.
        validation_rows: their number.
        views: views of each training row, at least 1; ``None`` if every epoch has a new one.
        trials: number of trials that are left.
        devices: see :attr:`Plan.devices`.
        depths: see :attr:`Plan.depths`.
        budget: bytes that may be stored; 0 stores nothing.
        input_numbers: numbers a row has as the network sees it.
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
    # The linear probe is fitted to it, however few trials freeze everything; it is the smallest of all.
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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
