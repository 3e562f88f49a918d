"""Before the first trial: profile, plan, store the frozen activations, and fit linear probes to them."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from thawline import backbones
from thawline.activations import ActivationStore, Plan, StoredSplits, make_plan
from thawline.activations.profile import profile
from thawline.backbones import Preprocessing
from thawline.config import SearchConfig
from thawline.data import DecodedImages, Split, write_atomically
from thawline.exceptions import StudyError
from thawline.search.events import Note, Phase, counting, emit
from thawline.search.prepare import Prepared, image_preprocessing
from thawline.search.probing import ProbeFile, probe_curve
from thawline.search.slots import Slots, threads_per_trial
from thawline.search.space import PORTFOLIO, depth_shares
from thawline.search.spec import build_backbone
from thawline.search.study import Study
from thawline.search.worker import WorkerCrashed, call_with_retries
from thawline.training import (
    Augmentation,
    Hyperparameters,
    Inputs,
    Runtime,
    open_inputs,
    runtime_for,
    set_up_process,
)

__all__ = ["known_plan", "store_activations"]

_TOO_LITTLE_TIME = (
    "plan: that is fewer trials ({trials}) than the probe and the first points of every search ({first}): use "
    "a longer --timeout, a smaller network, smaller images, or fewer epochs"
)


def store_activations(prepared: Prepared, study: Study, home: Path) -> dict[str, StoredSplits]:
    """Profile and plan each backbone, and fill the store; the plan is kept with the study.

    Trials do not depend on it: if its process dies repeatedly, they compute everything themselves, and a warning is
    logged.

    Returns:
        For each backbone, where its trials find their inputs; empty if no trials remain.

    Raises:
        StudyError: if the pretrained weights differ from those at the start of the study.
    """
    config, count = prepared.config, len(prepared.config.backbones)
    most, deadline = config.study.most_trials, study.deadline()
    left = None if most is None else max(most - study.finished(), study.begun())
    if left == 0:
        return {}
    seconds = 0.0 if deadline is None else max(0.0, deadline - time.time()) * Slots(config).count
    stored = {}
    for name in prepared.config.backbones:
        request = _Request(
            config=prepared.config,
            backbone=name,
            classes=len(prepared.manifest.classes),
            data=prepared.inputs[name],
            depths=depth_shares(prepared.config, prepared.depths, name),
            trials=None if left is None else max(1, left // count),
            seconds=seconds / count,
            only_probes=left is not None and left <= study.unfinished_probes(),
            threads=threads_per_trial(prepared.config),
            store=home / "cache" / "activations",
            plan=_plan_path(home, study.name, name),
            probe=ProbeFile.path(home, study.name, name),
            weights=study.weights_of(name),
        )
        stored[name] = _stored(request)
        if (plan := stored[name].plan) is not None and not prepared.config.train.exact:
            study.keep_seconds(name, plan.epoch_seconds())
        if stored[name].weights:
            study.keep_weights(name, stored[name].weights)
    return stored


def _stored(request: "_Request") -> StoredSplits:
    title = f"storing activations of {request.backbone}"
    try:
        splits: StoredSplits = call_with_retries(
            _plan_and_fill, request, retries=request.config.study.retries, title=title
        )
    except WorkerCrashed as error:
        note = f"no activations of {request.backbone} are stored, so every trial computes them: {error}"
        emit(Note(note, "warning"))
        return request.nothing_stored()
    return splits


@dataclass(frozen=True)
class _Request:
    """The worker's inputs."""

    config: SearchConfig
    backbone: str
    classes: int
    data: Path
    """File of decoded images or tokenized texts."""
    depths: dict[int, float]
    trials: int | None
    """Remaining trials; ``None`` if only time ends the search."""
    seconds: float
    """Remaining seconds of all slots for trials of this backbone; only used if the number of trials is unlimited."""
    only_probes: bool
    """Whether the search consists of linear probes only."""
    threads: int
    store: Path
    plan: Path
    probe: Path
    weights: str | None
    """Digest of the weights at the start of the study; ``None`` for a new study."""

    def build_backbone(self) -> backbones.Backbone:
        return build_backbone(self.config, self.backbone, self.classes)

    def with_budget(self, plan: Plan) -> Plan:
        """A plan for the remaining trials, on their current number of devices."""
        plan = plan.model_copy(update={"devices": self.devices()})
        if not self.config.train.compile:  # the study may have been started with it
            plan = plan.without_compilation()
        if self.trials is None:
            return plan.for_time(self.seconds)
        return plan.model_copy(update={"seconds": None, "trials": self.trials})

    def devices(self) -> int:
        """Devices that speed up a trial: processes on one CPU share its cores."""
        train = self.config.train
        return train.devices_per_trial if runtime_for(train).device.type == "cuda" else 1

    def preprocessing(self) -> Preprocessing | None:
        """Preprocessing of images; ``None`` for texts, whose tokens need none."""
        return image_preprocessing(self.config, self.backbone)

    def splits(self, plan: Plan | None, weights: str) -> StoredSplits:
        return StoredSplits(
            folder=self.store,
            budget=self.config.activations.budget_bytes,
            plan=plan,
            data=self.data,
            backbone=self.backbone,
            weights=weights,
            preprocessing=self.preprocessing(),
            augmentations=_augmentations(self.config),
        )

    def nothing_stored(self) -> StoredSplits:
        """For trials that compute everything, in the precision of the study's start."""
        plan = _known_plan(self.plan)
        return self.splits(plan.without_store() if plan is not None else None, weights="")


def _plan_and_fill(request: _Request) -> StoredSplits:
    """In the worker."""
    config = request.config
    set_up_process(threads=request.threads, seed=config.study.seed, exact=config.train.exact)
    plan = _known_plan(request.plan)
    is_new = plan is None
    if plan is None:
        emit(Phase(f"measuring the layer groups of {request.backbone}"))
        plan = _new_plan(request)
    write_atomically(request.plan, plan.model_dump_json().encode())
    plan = request.with_budget(plan)
    if request.only_probes:
        plan = plan.for_probes()
    if not config.activations.store:
        plan = plan.without_store()
    for line in plan.lines():
        emit(Note(line))
    if config.train.compile and (why := plan.why_not_compiled()):
        emit(Note(f"plan: nothing is compiled: {why}", "warning"))
    # With several backbones only the first has the initial points, and a resumed study already had its own.
    if is_new and plan.seconds is not None and len(config.backbones) == 1 and plan.trials <= len(PORTFOLIO):
        emit(Note(_TOO_LITTLE_TIME.format(trials=plan.trials, first=1 + len(PORTFOLIO)), "warning"))
    if request.preprocessing() is not None and not DecodedImages.open(request.data).are_kept:
        while_stored = "while their activations are stored, and " if plan.boundaries else ""
        emit(Note(f"plan: images are decoded {while_stored}in {plan.share_from_start():.0%} of all training epochs"))
    backbone = request.build_backbone()  # not the profiled one, whose batch-norms have moved
    if request.weights not in (None, backbone.weights_digest):
        raise StudyError(
            f"The study was started with other weights of {request.backbone} (digest {request.weights}, now "
            f"{backbone.weights_digest}), so its trials are not comparable with new ones. Give this one another "
            "--study name, or restore the former weights."
        )
    splits = request.splits(plan, backbone.weights_digest)
    runtime = runtime_for(splits.train_config(config.train))
    refused = splits.fill(
        backbone,
        runtime,
        batch_size=config.train.batch_size,
        exact=config.train.exact,
        on_progress=counting("storing activations"),
    )
    for boundary, reason in refused.items():
        name = plan.profile.groups[boundary - 1]
        emit(Note(f"activations after {name} are not stored, so every trial computes them: {reason}", "warning"))
    emit(Phase("fitting linear probes"))
    curve = probe_curve(backbone, splits, config, runtime, request.probe)
    if len(curve) > 1:
        shown = ", ".join(f"{depth}: {value:.4f}" for depth, value in curve.items())
        emit(Note(f"linear probes by freeze depth, val/{config.study.metric}: {shown}"))
    return splits


def known_plan(home: Path, study: str, backbone: str) -> Plan | None:
    """The plan by which a study of this home computes and stores the activations of a backbone."""
    return _known_plan(_plan_path(home, study, backbone))


def _plan_path(home: Path, study: str, backbone: str) -> Path:
    return home / "studies" / study / f"plan-{backbones.short_name(backbone)}.json"


def _known_plan(path: Path) -> Plan | None:
    """The study's initial plan: with a different precision later on, trials would not be comparable."""
    try:
        return Plan.model_validate_json(path.read_text())
    except (OSError, ValidationError):
        return None


def _new_plan(request: _Request) -> Plan:
    config, preprocessing, augmentations = request.config, request.preprocessing(), _augmentations(request.config)
    stored_views = [len(each.stored_views) for each in augmentations if each.is_storable]

    def inputs(runtime: Runtime, split: Split = "train") -> Inputs:
        return open_inputs(request.data, split, preprocessing, runtime, augmentations[0])

    train = config.train
    store = ActivationStore(request.store, budget=config.activations.budget_bytes)
    hyperparameters = Hyperparameters(
        request.backbone,
        0,
        1e-3,
        train.weight_decay,
        1.0,
        train.optimizer,
        batch_norm=config.batch_norm_of(request.backbone),
    )
    measured = profile(request.build_backbone, inputs, hyperparameters, train, request.plan.parent)
    runtime = runtime_for(train)
    # Texts in another batch are padded to another length, which changes the last bits, so exact searches store nothing.
    may_store = preprocessing is not None or not train.exact
    make = partial(
        make_plan,
        measured,
        train,
        train_rows=len(inputs(runtime)),
        validation_rows=len(inputs(runtime, "validation")),
        views=sum(stored_views) or None,
        devices=request.devices(),
        depths=request.depths,
        budget=store.bytes_allowed() // len(config.backbones) if may_store else 0,
        input_numbers=3 * preprocessing.image_size**2 if preprocessing is not None else 0,
    )
    # A plan for few trials stores little: count only as many trials as there is certainly time for.
    return make(trials=request.trials or make(trials=1).trials_within(request.seconds))


def _augmentations(config: SearchConfig) -> tuple[Augmentation, ...]:
    """The augmentations that trials may use."""
    return tuple(Augmentation.of(config.train, config.study.seed, kind) for kind in config.augmentations)
