"""The parts of the retraining flow: detect changes, and start a search from the last champion."""

import csv
import hashlib
import io
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from thawline import backbones
from thawline.config import SEARCHABLE, ResolvedConfig, SearchConfig, SearchSpace
from thawline.data import DataKind, Manifest, data_state, markdown_text
from thawline.exceptions import ConfigError, DataError, StudyError
from thawline.registry import MlflowRegistry, Outcome
from thawline.search.events import Note, emit
from thawline.search.prepare import complete, fetch_data, read_data
from thawline.search.space import depth_range, point_of
from thawline.search.version_config import config_of_version
from thawline.search.winner import SearchOutcome
from thawline.tracking import MlflowStore, connect, resolve_uri

__all__ = [
    "RetrainOutcome",
    "Retraining",
    "alone_at_home",
    "conclude_retraining",
    "model_of",
    "plan_retraining",
    "read_changes",
]

End = Literal["promoted", "held", "rejected", "skipped"]

_ENDS: dict[Outcome, End] = {Outcome.PROMOTE: "promoted", Outcome.HOLD: "held", Outcome.REJECT: "rejected"}
_RECIPE = "thawline.recipe"
"""Tag of a version: fingerprint of the data and of the original recipe, before the space was narrowed."""
_RACY_SECONDS = 2.0
"""A file may change again within the resolution of its time stamp, which is two seconds on some file systems."""
_FACTOR = 3.0
"""Factor by which a narrowed space extends around the champion's learning rate."""


@dataclass(frozen=True)
class Retraining:
    """The plan for retraining a model."""

    config: ResolvedConfig
    """The search's configuration, starting with the champion's hyperparameters."""
    recipe: str
    """Fingerprint of the data and of the original recipe."""
    store: MlflowStore
    reason: str | None
    """Why no training is needed, in a sentence; ``None`` if training is needed."""


@dataclass(frozen=True)
class RetrainOutcome:
    """The result of a retraining."""

    model: str
    reason: str
    """Why it was skipped, or the verdict's."""
    search: SearchOutcome | None
    """``None`` if it was skipped."""

    @property
    def end(self) -> End:
        """How it ended, as a value of ``retrain.notify_on``."""
        return _ENDS[self.search.promotion.verdict.outcome] if self.search else "skipped"

    @property
    def title(self) -> str:
        """``photos version 3: promoted``."""
        version = f" version {self.search.promotion.version}" if self.search else ""
        return f"{self.model}{version}: {self.end}"

    def lines(self) -> list[str]:
        """The result in sentences."""
        return self.search.lines() if self.search else [f"Skipped: {self.reason}."]

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        searched = self.search.as_dict() if self.search else None
        return {"model": self.model, "end": self.end, "reason": self.reason, "search": searched}

    def as_markdown(self) -> str:
        """The same as a page."""
        return "\n\n".join([f"# {self.title}", *map(markdown_text, self.lines())])


def read_changes(config: SearchConfig, home: Path, *, racy_seconds: float = _RACY_SECONDS) -> Manifest:
    """The manifest of the data. Unchanged data are not read again.

    Unchanged means that every file that a scan reads has the same path, size, modification time and change time, see
    :func:`thawline.data.data_state`. Listing 100,000 files takes a second or two, reading them takes minutes, so a
    schedule may check every few minutes. A folder on object storage is mirrored first, which also lists it.

    Args:
        config: the recipe.
        home: Thawline's home.
        racy_seconds: a file that was changed less than this before it was read may change again within the resolution
            of its time stamp, so it is read again the next time.

    Raises:
        DataError: if the data cannot be trained on.
    """
    fetch_data(config)
    settings = config.data.model_dump_json(exclude={"workers"})
    folder = home / "cache" / "manifests" / hashlib.sha256(settings.encode()).hexdigest()[:16]
    state, newest = data_state(config.data)
    known = folder / f"{state}.json"
    if known.exists():
        try:
            return Manifest.from_json(known)
        except DataError as error:
            emit(Note(f"{error} Reading the data again.", "warning"))
    began = time.time()
    manifest = read_data(config)
    shutil.rmtree(folder, ignore_errors=True)  # manifests of former states of the data
    if newest < began - racy_seconds and data_state(config.data)[0] == state:
        manifest.to_json(known)
    return manifest


@contextmanager
def alone_at_home(model: str, home: Path) -> Iterator[None]:
    """Within the block, exclude other retrainings of the model that use this home.

    Raises:
        StudyError: if one is running.
    """
    lock = FileLock(home / "locks" / f"retrain-{model}.lock", timeout=0)
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        raise StudyError(f"{model} is being retrained by another process") from None
    try:
        yield
    finally:
        lock.release()


def model_of(config: SearchConfig) -> str:
    """Name of the registered model that a search adds a version to; it depends on the path, not on the contents."""
    root = config.data.path.expanduser().absolute()
    kind: DataKind = "texts" if root.is_file() else "images"
    anything = Manifest(root=root, classes=(), rows=(), problems=(), digest="", layout="", kind=kind)
    return complete(config, anything)[0].promotion.model


def plan_retraining(config: SearchConfig, manifest: Manifest, home: Path, *, busy: str | None = None) -> Retraining:
    """Decide whether training is needed, and where the search starts.

    No training is needed if data and recipe are those of the model's last study with a verdict. A study that died
    before its verdict is resumed: the same data and recipe give the same name.

    Args:
        config: the recipe.
        manifest: its data.
        home: Thawline's home.
        busy: a description of another retraining of the model that is in progress; then nothing is trained either.

    Raises:
        TrackingError: if the store cannot be reached.
        RegistryError: if the registry fails.
    """
    named, recipe = complete(config, manifest)
    model = named.promotion.model
    store = connect(resolve_uri(config.tracking, home), home=home, experiment=config.tracking.experiment)
    registry = MlflowRegistry(store)
    known = registry.has(model)
    reason = busy or (_unchanged(registry, model, recipe, manifest) if known else None)
    if known and reason is None:
        config = _from_champion(registry, model, config)
    return Retraining(_named(config, manifest), recipe, store, reason)


def conclude_retraining(plan: Retraining, outcome: SearchOutcome | None) -> RetrainOutcome:
    """The result of a plan; records which recipe led to this verdict, for the next time.

    Args:
        plan: the plan.
        outcome: outcome of the search; ``None`` if it was skipped.

    Raises:
        RegistryError: if the registry fails.
    """
    if outcome is None:
        return RetrainOutcome(plan.config.promotion.model, plan.reason or "", None)
    for judged in filter(None, (outcome.promotion, outcome.quantised)):
        MlflowRegistry(plan.store).set_tags(outcome.model, judged.version, {_RECIPE: plan.recipe})
    return RetrainOutcome(outcome.model, outcome.promotion.verdict.reason, outcome)


def _unchanged(registry: MlflowRegistry, model: str, recipe: str, manifest: Manifest) -> str | None:
    """Why no training is needed, or ``None``. The last study to register a version gave it an alias."""
    version = registry.challenger(model) or registry.newest(model)
    tags = registry.tags(model, version)
    verdict = tags.get("thawline.verdict")
    if verdict is None:
        emit(Note(f"{model} version {version} was never judged: its study is resumed if nothing has changed"))
        return None
    undecided = verdict == Outcome.PROMOTE and "thawline.previous_champion" not in tags
    if undecided and registry.champion(model) != version:
        emit(Note(f"{model} version {version} was not promoted in time: its study is resumed if nothing has changed"))
        return None
    trained = tags.get(_RECIPE) or _recipe_of_study(registry, model, version)
    if trained == recipe:
        return (
            f"nothing has changed since {model} version {version} (verdict: {verdict}): the same recipe, the same data "
            f"(digest {manifest.digest[:12]})"
        )
    same_data = tags.get("thawline.data_digest") == manifest.digest
    emit(Note(f"the {'recipe' if same_data else 'data'} changed since {model} version {version}"))
    return None


def _recipe_of_study(registry: MlflowRegistry, model: str, version: str) -> str | None:
    """Fingerprint of the search that trained a version, from its recorded settings."""
    digest = registry.tags(model, version).get("thawline.data_digest")
    try:
        config = config_of_version(registry, model, version)
    except ConfigError:  # recorded by a Thawline with other settings: a different recipe
        return None
    return config.fingerprint(digest) if config is not None and digest is not None else None


def _named(config: SearchConfig, manifest: Manifest) -> ResolvedConfig:
    """Fill in the names. An explicit study name gets a suffix that changes with the data."""
    named, fingerprint = complete(config, manifest)
    if config.study.name is None:
        return named
    name = f"{config.study.name[:90]}-{fingerprint[:6]}"
    return ResolvedConfig.of(config, study=name, model=named.promotion.model)


# ---------------------------------------------------------------------------------------- starting from the champion


def _from_champion(registry: MlflowRegistry, model: str, config: SearchConfig) -> SearchConfig:
    """Try the champion's hyperparameters first and, if the recipe requires it, search only near them."""
    version = registry.champion(model)
    if version is None:
        return config
    champion = _hyperparameters(registry, model, version)
    if champion is None or champion["backbone"] not in config.backbones:
        why = "are not recorded" if champion is None else f"are of the backbone {champion['backbone']}"
        emit(Note(f"the search starts from scratch: the hyperparameters of {model} version {version} {why}"))
        return config
    if champion.get("policy") == "probe":
        emit(Note(f"the champion, {model} version {version}, is a linear probe: every search starts with one"))
        return config
    config = _narrowed(config, champion) if config.retrain.narrow else config
    point = _point(config, champion)
    values = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                       for name, value in point.items())  # fmt: skip
    emit(Note(f"the search starts with the champion, {model} version {version}: {values}"))
    study = config.study.model_copy(update={"enqueue": (point, *config.study.enqueue)})
    return config.model_copy(update={"study": study})


def _hyperparameters(registry: MlflowRegistry, model: str, version: str) -> dict[str, str] | None:
    """Hyperparameters of a version's trial, from its row in the study's leaderboard."""
    text, trial = registry.study_file(model, version, "leaderboard.csv"), registry.tags(model, version)
    rows = csv.DictReader(io.StringIO(text or ""))
    return next((row for row in rows if row["trial"] == trial.get("thawline.trial")), None)


def _point(config: SearchConfig, champion: Mapping[str, str]) -> dict[str, Any]:
    """The champion's hyperparameters that are in the search space, clipped to its ranges."""
    space, backbone = config.space, champion["backbone"]
    low, high = _depths(config, backbone)
    point: dict[str, Any] = {"freeze_depth": min(max(int(champion["freeze_depth"]), low), high)}
    if space.backbone is not None:
        point["backbone"] = backbone
    for name, row in SEARCHABLE.items():
        opened = space.opened(name)
        if opened is not None and name in champion and (near := row.nearest(champion[name], opened)) is not None:
            point[name] = near
    return point


def _narrowed(config: SearchConfig, champion: Mapping[str, str]) -> SearchConfig:
    """The part of the recipe's space near the champion, with the champion's backbone only."""
    space, (low, high) = config.space, _depths(config, champion["backbone"])
    slowest, fastest = space.learning_rate
    depth = min(max(int(champion["freeze_depth"]), low), high)
    rate = min(max(float(champion["learning_rate"]), slowest), fastest)
    near = {
        "backbone": None,
        "freeze_depth": (max(depth - 1, low), min(depth + 1, high)),
        "learning_rate": (max(rate / _FACTOR, slowest), min(rate * _FACTOR, fastest)),
    }
    narrow = config.model_copy(
        update={
            "backbone": config.backbone.model_copy(
                update={
                    "name": champion["backbone"],
                    "weights": config.backbone.weights_of(champion["backbone"]),
                }
            ),
            "space": SearchSpace.model_validate({**space.model_dump(), **near}),
        }
    )
    points = _points_within(narrow, config)
    return narrow.model_copy(update={"study": config.study.model_copy(update={"enqueue": points})})


def _points_within(narrow: SearchConfig, wide: SearchConfig) -> tuple[dict[str, Any], ...]:
    """The recipe's points within the narrowed space, which has a fixed backbone; the others are dropped.

    Raises:
        ConfigError: if a point is outside the recipe's space too.
    """
    backbone = narrow.backbone.name
    depths = {name: backbones.depth_of(name) for name in wide.backbones}
    within = []
    for point in wide.study.enqueue:
        point_of(point, wide, depths)  # an invalid point must not be mistaken for one far from the champion
        if point.get("backbone", backbone) != backbone:
            continue
        rest = {name: value for name, value in point.items() if name != "backbone"}
        with suppress(ConfigError):
            point_of(rest, narrow, depths)
            within.append(rest)
    if left_out := len(wide.study.enqueue) - len(within):
        emit(Note(f"study.enqueue: {left_out} of {len(wide.study.enqueue)} points are not near the champion: skipped"))
    return tuple(within)


def _depths(config: SearchConfig, backbone: str) -> tuple[int, int]:
    return depth_range(config, {backbone: backbones.depth_of(backbone)}, backbone)
