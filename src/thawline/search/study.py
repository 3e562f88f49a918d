"""The study: what was tried, what to try next, what to stop. The one file that imports Optuna.

Values go in and out; Optuna's handles stay inside. Trials are kept in a journal file in Thawline's home, which several
processes may append to and which ``optuna-dashboard`` reads.
"""

import inspect
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from thawline.config import SearchConfig, StudyConfig
from thawline.exceptions import ConfigError, StudyError
from thawline.search.space import default_point, sample
from thawline.search.trial import TrialResult
from thawline.training import METRIC_DIRECTIONS, EpochResult, Hyperparameters

__all__ = ["Asked", "Study", "TrialRecord", "check_sampling", "latest_study", "study_names"]

optuna.logging.set_verbosity(optuna.logging.WARNING)
_log = logging.getLogger(__name__)

# Their sequence of points hangs on one seed for the whole study; they keep their place in the storage.
_FINITE = {"GridSampler", "BruteForceSampler"}
_ONE_SEED = _FINITE | {"QMCSampler"}


@dataclass(frozen=True)
class Asked:
    """A trial to run: new, or begun by a process that died."""

    number: int
    hyperparameters: Hyperparameters
    resumed: bool


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the leaderboard shows it."""

    number: int
    state: Literal["complete", "pruned", "failed", "running"]
    hyperparameters: Hyperparameters
    value: float | None
    """Best validation value of the study's metric; of a pruned trial, the best before it was stopped."""
    result: TrialResult | None


class Study:
    """One search, by name. Opening it does not lock it; :meth:`exclusive` does."""

    def __init__(self, study: optuna.Study, config: SearchConfig, depths: Mapping[str, int], home: Path) -> None:
        self._study = study
        self._config = config
        self._depths = depths
        self._home = home

    @classmethod
    def open(cls, home: Path, name: str, config: SearchConfig, depths: Mapping[str, int], fingerprint: str) -> "Study":
        """Create the study, or go on with the one of that name.

        Raises:
            StudyError: if a study of that name was made with other data or settings.
        """
        study = optuna.create_study(
            study_name=name,
            storage=_storage(home),
            direction=METRIC_DIRECTIONS[config.study.metric],
            pruner=_pruner(config.study),
            load_if_exists=True,
        )
        known = study.user_attrs.get("fingerprint")
        if known is None:
            study.set_user_attr("config", config.model_dump(mode="json"))
            study.set_user_attr("metric", config.study.metric)
            study.set_user_attr("fingerprint", fingerprint)
            study.enqueue_trial(default_point(config, depths))
        elif known != fingerprint:
            changed = _changes(study.user_attrs["config"], config)
            raise StudyError(
                f"The study {name!r} was made with {changed}, so its trials cannot be compared with new ones. "
                "Give this one another --study name, or go back to the settings it was made with."
            )
        return cls(study, config, depths, home)

    @classmethod
    def load(cls, home: Path, name: str, config: SearchConfig, depths: Mapping[str, int]) -> "Study":
        """Open a study that exists, in another thread or process."""
        study = optuna.load_study(study_name=name, storage=_storage(home), pruner=_pruner(config.study))
        return cls(study, config, depths, home)

    @property
    def name(self) -> str:
        """Name of the study."""
        return self._study.study_name

    @property
    def maximises(self) -> bool:
        """Whether a larger value is better."""
        return self._study.direction == optuna.study.StudyDirection.MAXIMIZE

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the study for this process: whatever is RUNNING in it then is left over from one that died.

        Raises:
            StudyError: if another process holds it.
        """
        folder = self._home / "studies" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "study.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise StudyError(
                f"The study {self.name!r} is being run by another process. "
                "Wait for it, stop it, or give this one another --study name."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def unfinished(self) -> list[Asked]:
        """Trials that a process which died had begun, in order. Call it only while holding the study."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        asked = []
        for trial in running:
            attributes = trial.user_attrs.get("hyperparameters")
            if attributes is None:  # died while it was being sampled: nothing was trained
                self._study.tell(trial.number, state=TrialState.FAIL)
            else:
                asked.append(Asked(trial.number, Hyperparameters(**attributes), resumed=True))
        return asked

    def ask(self) -> Asked:
        """Sample the next trial."""
        with _quiet():
            self._study.sampler = _sampler(self._config.study, len(self._study.get_trials(deepcopy=False)))
            trial = self._study.ask()
            hyperparameters = sample(trial, self._config, self._depths)
        trial.set_user_attr("hyperparameters", hyperparameters.as_dict())
        return Asked(trial.number, hyperparameters, resumed=False)

    def report(self, number: int, result: EpochResult) -> bool:
        """Record an epoch's validation value; returns whether the trial should be pruned. Idempotent."""
        trial = self._trial(number)
        value = result.metrics[f"val/{self._config.study.metric}"]
        if result.epoch not in self._stored(number).intermediate_values:
            trial.report(value, step=result.epoch)
        return trial.should_prune() and result.epoch < self._config.train.epochs

    def reported_epochs(self, number: int) -> int:
        """Epochs of a trial that were reported."""
        return len(self._stored(number).intermediate_values)

    def tell(self, result: TrialResult) -> None:
        """Record how a trial ended; a trial that was told already is left as it is."""
        trial = self._trial(result.number)
        if self._stored(result.number).state.is_finished():
            return
        trial.set_user_attr("result", asdict(result))
        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[result.state]
        value = result.value if result.state == "complete" else None
        try:
            self._study.tell(result.number, value, state=state)
        except RuntimeError as error:
            # Samplers of finite sequences (grid, brute force) end a study like this. The trial is stored by then.
            if "Study.stop" not in str(error):
                raise
            self._study.set_user_attr("exhausted", True)

    def records(self) -> list[TrialRecord]:
        """All trials, best first: complete ones by value, then pruned, running and failed ones."""
        return _ranked(self._study)

    def finished(self) -> int:
        """Trials that ended, however they did: what the budget counts."""
        return sum(record.state != "running" for record in self.records())

    @property
    def exhausted(self) -> bool:
        """Whether the sampler has nothing left to try, as a grid does."""
        return bool(self._study.user_attrs.get("exhausted"))

    @property
    def draws_ahead(self) -> bool:
        """Whether several trials may be drawn before the first has ended. A grid would begin its points anew."""
        return self._config.study.sampler not in _FINITE

    def best(self) -> TrialRecord | None:
        """The best complete trial."""
        return next((record for record in self.records() if record.state == "complete"), None)

    def _stored(self, number: int) -> FrozenTrial:
        """The trial as it stands in the storage."""
        return self._study.get_trials(deepcopy=False)[number]

    def _trial(self, number: int) -> optuna.Trial:
        """Optuna's handle of a trial that may have been asked for by another process."""
        return optuna.Trial(self._study, self._stored(number)._trial_id)


def study_names(home: Path) -> list[str]:
    """Names of all studies in Thawline's home, the oldest first."""
    if not _journal(home).exists():
        return []
    return optuna.get_all_study_names(_storage(home))


def latest_study(home: Path) -> str:
    """Name of the study whose last trial began last.

    Raises:
        StudyError: if there is none.
    """
    studies = optuna.get_all_study_summaries(storage=_storage(home)) if _journal(home).exists() else []
    if not studies:
        raise StudyError(f"There is no study in {home} yet. `thawline search DATA` makes one.")
    started = [(s.datetime_start.timestamp() if s.datetime_start else 0.0, s.study_name) for s in studies]
    return max(started)[1]


def load_records(home: Path, name: str) -> tuple[str, list[TrialRecord]]:
    """The metric of a study and its trials, best first.

    Raises:
        StudyError: if there is no study of that name.
    """
    names = study_names(home)
    if name not in names:
        known = f"Known: {', '.join(names)}." if names else "`thawline search DATA` makes one."
        raise StudyError(f"There is no study {name!r} in {home}. {known}")
    study = optuna.load_study(study_name=name, storage=_storage(home))
    return str(study.user_attrs["metric"]), _ranked(study)


def check_sampling(config: StudyConfig) -> None:
    """Refuse a sampler or pruner that Optuna does not have, or options that it does not take.

    Raises:
        ConfigError: naming the key, the value and what is possible.
    """
    _sampler(config, 0)
    _pruner(config)


def _ranked(study: optuna.Study) -> list[TrialRecord]:
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    order = {"complete": 0, "pruned": 1, "running": 2, "failed": 3}
    records = [r for t in study.get_trials(deepcopy=False) if (r := _record(t)) is not None]
    return sorted(
        records,
        key=lambda r: (order[r.state], sign * r.value if r.value is not None else float("inf"), r.number),
    )


def _record(trial: FrozenTrial) -> TrialRecord | None:
    attributes = trial.user_attrs.get("hyperparameters")
    if attributes is None:  # enqueued, or died while it was being sampled
        return None
    stored = trial.user_attrs.get("result")
    result = TrialResult(**stored) if stored else None
    states: dict[TrialState, Literal["complete", "pruned", "failed", "running"]] = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
    }
    return TrialRecord(
        number=trial.number,
        state=states.get(trial.state, "running"),
        hyperparameters=Hyperparameters(**attributes),
        value=result.value if result else None,
        result=result,
    )


def _changes(known: Mapping[str, Any], config: SearchConfig) -> str:
    """Which settings a study was made with that differ now, for people."""
    now = config.model_dump(mode="json")
    differing = [
        f"{section}.{key}={json.dumps(known[section].get(key))}"
        for section in ("backbone", "train", "space", "study")
        for key in now[section]
        if known[section].get(key) != now[section][key] and key not in {"name", "trials", "timeout_minutes", "workers"}
    ]
    return ", ".join(differing) or "other data"


def _journal(home: Path) -> Path:
    return home / "optuna.journal"


def _storage(home: Path) -> JournalStorage:
    home.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(_journal(home))))


class GPSamplerWithPruned(optuna.samplers.GPSampler):
    """Optuna's ``GPSampler``, which also learns from pruned trials.

    Optuna's own sees complete and running trials alone: where trials are pruned it learns nothing, and asks for the
    very same point again. Here a pruned trial counts with the last value it reported, a little less than it would have
    reached: it was below the median all the same.
    """

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that are modelled together."""
        return super().infer_relative_search_space(*_pruned_as_complete(study, trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Ask the model."""
        return super().sample_relative(*_pruned_as_complete(study, trial), search_space)


def _pruned_as_complete(study: optuna.Study, asking: FrozenTrial) -> tuple[optuna.Study, FrozenTrial]:
    """A copy of the study in memory in which pruned trials are complete, and that copy of the trial that asks."""
    copy = optuna.create_study(direction=study.direction)
    others = [t for t in study.get_trials(deepcopy=True) if t.number != asking.number]
    for trial in others:
        if trial.state is TrialState.PRUNED and trial.value is not None:
            trial.state = TrialState.COMPLETE
        if trial.state is not TrialState.WAITING:
            copy.add_trial(trial)
    copy.add_trial(asking)
    return copy, copy.get_trials(deepcopy=False)[-1]


def _sampler(config: StudyConfig, trials: int) -> BaseSampler:
    """A sampler seeded by the study's seed and the number of trials so far.

    One sampler for all trials would, after a restart, draw the numbers of the first trials again.
    """
    options = dict(config.sampler_options)
    kind = _class_of(optuna.samplers, config.sampler, BaseSampler, "study.sampler")
    if kind is optuna.samplers.GPSampler:
        kind = GPSamplerWithPruned
        # With several backbones each has a depth of its own, which the model cannot hold: drawn at random, as meant.
        options.setdefault("warn_independent_sampling", False)
    if "seed" in inspect.signature(kind).parameters:
        offset = 0 if config.sampler in _ONE_SEED else trials
        options.setdefault("seed", (config.seed * 100_003 + offset) % 2**32)
    sampler = _built(kind, options, "study.sampler_options")
    assert isinstance(sampler, BaseSampler)  # noqa: S101  narrows the type
    return sampler


def _pruner(config: StudyConfig) -> BasePruner:
    kind = _class_of(optuna.pruners, config.pruner, BasePruner, "study.pruner")
    pruner = _built(kind, config.pruner_options, "study.pruner_options")
    assert isinstance(pruner, BasePruner)  # noqa: S101  narrows the type
    return pruner


def _class_of(module: Any, name: str, base: type, key: str) -> type:
    kind = getattr(module, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, base) and kind is not base):
        known = ", ".join(n for n in module.__all__ if inspect.isclass(getattr(module, n)) and n != base.__name__)
        raise ConfigError(f"{key}: Optuna has no {name!r}. It has {known}.")
    return kind


def _built(kind: type, options: Mapping[str, Any], key: str) -> object:
    try:
        with _quiet():
            return kind(**options)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"{key}: {kind.__name__} does not take {dict(options)}: {error}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna marks much that people use every day as experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
