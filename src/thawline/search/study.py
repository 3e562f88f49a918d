"""The study: its trials, which to try next, which to stop.

Values go in and out; Optuna's handles stay inside.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from thawline import logs
from thawline.config import SearchConfig
from thawline.exceptions import StudyError
from thawline.search.first_trials import enqueue_first_trials
from thawline.search.gp_sampler import PAUSED
from thawline.search.importance import Importance, importances_of
from thawline.search.paused import RESUMED_AFTER, PausedTrials
from thawline.search.records import BEGUN, Asked, TrialRecord, ranked
from thawline.search.sampling import (
    FINITE,
    PROBE,
    pruner_of,
    quiet,
    sampler_of,
    without_probes,
)
from thawline.search.slices import Slices
from thawline.search.space import kept_backbones, point_of, probe_of, sample, with_backbones
from thawline.search.storage import PASSING, Claims, LeaseLost, lease_of, open_storage, patiently, storage_of
from thawline.search.trial_result import TrialResult
from thawline.training import METRIC_DIRECTIONS, Decision, EpochResult, Hyperparameters

__all__ = ["Asked", "Study"]

optuna.logging.set_verbosity(optuna.logging.WARNING)
if logs.chosen() is logs.LogFormat.json:
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
_log = logging.getLogger(__name__)


class Study:
    """One search, by name. Opening it does not claim it; :meth:`held` does.

    Writes are retried for minutes while the storage is locked, restarting or full, see :func:`patiently`; reports are
    deferred meanwhile, so training continues.
    """

    def __init__(self, study: optuna.Study, claims: Claims, config: SearchConfig) -> None:
        self._study = study
        self._claims = claims
        self._config = config
        self.depths: Mapping[str, int] = study.user_attrs["depths"]
        """Number of layer groups of each backbone."""
        self._opened = time.time()
        self._seconds_before = float(study.user_attrs.get("seconds", 0.0))
        self._waiting: dict[int, list[EpochResult]] = {}
        self.paused = PausedTrials(study, claims, config)
        self.slices = Slices.of(study, config, lambda: self._may_draw(config.study.most_trials))
        """With freeze-thaw, the schedule of epochs; else ``None``."""

    @classmethod
    def open(
        cls,
        home: Path,
        name: str,
        config: SearchConfig,
        depths: Mapping[str, int],
        fingerprint: str,
        ranking: Mapping[str, float] | None = None,
    ) -> "Study":
        """Create the study, or resume the one of that name.

        Args:
            home: Thawline's home.
            name: name of the study.
            config: the search; :attr:`config` is restricted to the backbones that are tried.
            depths: number of layer groups of each backbone.
            fingerprint: fingerprint of everything that must not change when a study is resumed.
            ranking: several backbones, best first, with their values. The study keeps the first ranking it is given.

        Raises:
            StudyError: if a study with that name has other data or settings, or the storage cannot be opened.
            ConfigError: if a point of ``study.enqueue`` is not in the search space.
        """
        points = [point_of(point, config, depths) for point in config.study.enqueue]
        storage = storage_of(home, config.study.storage)
        claims = storage.claims(name)
        with claims.alone("open"):
            study = optuna.create_study(
                study_name=name,
                storage=storage.optuna,
                direction=METRIC_DIRECTIONS[config.study.metric],
                pruner=pruner_of(config.study),
                load_if_exists=True,
            )
            if "depths" not in study.user_attrs:
                study.set_user_attr("depths", dict(depths))
            known = study.user_attrs.get("fingerprint")
            if known is None and "backbones" not in study.user_attrs:
                study.set_user_attr("ranking", list((ranking or {}).items()))  # as pairs: JSON objects have no order
                study.set_user_attr("backbones", kept_backbones(config, ranking or ()))
            if known is None:
                study.set_user_attr("config", config.without_passwords().model_dump(mode="json"))
                study.set_user_attr("metric", config.study.metric)
                patiently(enqueue_first_trials, study, _searched(study, config), points, depths)
                study.set_user_attr("fingerprint", fingerprint)
            elif known != fingerprint:
                changed = _changes(study.user_attrs["config"], config)
                raise StudyError(
                    f"The study {name!r} was made with {changed}, so its trials cannot be compared with new ones. "
                    "Give this one another --study name, or restore the original settings."
                )
        return cls(study, claims, _searched(study, config))

    @classmethod
    def known_ranking(cls, home: Path, name: str, url: str | None) -> dict[str, float]:
        """The initial ranking of a study, best first; empty without one."""
        storage = open_storage(home, url, create=False)
        if storage is None or name not in optuna.get_all_study_names(storage.optuna):
            return {}
        return _ranking(optuna.load_study(study_name=name, storage=storage.optuna))

    @classmethod
    def load(cls, home: Path, name: str, config: SearchConfig) -> "Study":
        """Open an existing study, in another thread or process."""
        storage = storage_of(home, config.study.storage)
        study = patiently(optuna.load_study, study_name=name, storage=storage.optuna, pruner=pruner_of(config.study))
        return cls(study, storage.claims(name), config)

    @property
    def config(self) -> SearchConfig:
        """The search, with the tried backbones in the order of their ranking."""
        return self._config

    @property
    def name(self) -> str:
        """Name of the study."""
        return self._study.study_name

    def weights_of(self, backbone: str) -> str | None:
        """Digest of a backbone's pretrained weights in this study; ``None`` if not known yet."""
        digest: str | None = self._study.user_attrs.get(f"weights:{backbone}")
        return digest

    def keep_weights(self, backbone: str, digest: str) -> None:
        """Set the result of :meth:`weights_of`."""
        if self.weights_of(backbone) is None:
            patiently(self._study.set_user_attr, f"weights:{backbone}", digest)

    def keep_seconds(self, backbone: str, seconds: Sequence[float]) -> None:
        """Store the seconds per epoch by freeze depth, from 0, once: choices based on them must stay consistent."""
        if f"seconds:{backbone}" not in self._study.user_attrs:
            patiently(self._study.set_user_attr, f"seconds:{backbone}", list(seconds))

    @property
    def recorded_in(self) -> tuple[str, str] | None:
        """The study's MLflow store, without a password, and its run there; ``None`` before it is recorded."""
        known = self._study.user_attrs.get("recorded_in")
        return None if known is None else (str(known[0]), str(known[1]))

    def keep_recorded_in(self, store: str, run_id: str) -> None:
        """Set the value of :attr:`recorded_in`."""
        if self.recorded_in != (store, run_id):
            patiently(self._study.set_user_attr, "recorded_in", [store, run_id])

    @contextmanager
    def held(self) -> Iterator[None]:
        """Claim the study while working on it, and count the time.

        Raises:
            StudyError: if another process has claimed it. In a database, several may share it.
        """
        with self._claims.held(self._note_seconds):
            try:
                yield
            finally:
                with suppress(*PASSING):
                    self._note_seconds()

    @property
    def seconds(self) -> float:
        """Total run time of the study over all restarts; for a killed process, up to its last update."""
        return self._seconds_before + time.time() - self._opened

    def deadline(self) -> float | None:
        """When the time limit is reached, in seconds of :func:`time.time`; ``None`` without a limit."""
        minutes = self._config.study.timeout_minutes
        return self._opened - self._seconds_before + 60 * minutes if minutes else None

    def _note_seconds(self) -> None:
        # The longest of several concurrent searches counts: this is time, not work.
        if self.seconds > float(self._study.user_attrs.get("seconds", 0.0)):
            self._study.set_user_attr("seconds", round(self.seconds, 1))

    def unfinished(self) -> list[Asked]:
        """Claim the unfinished trials of dead processes, in order; with freeze-thaw, except for paused ones.

        Call it only inside :meth:`held`.
        """
        return patiently(self._unfinished)

    def _unfinished(self) -> list[Asked]:
        asked = []
        with self._claims.alone("draw"):  # otherwise a trial that is being drawn would look like one of a dead process
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if self._is_paused(trial) or not self._claims.take(lease_of(trial.number)):
                    continue
                trial = self._stored(trial.number)  # noqa: PLW2901  as it stands now that nobody else can write it
                # Another search may have ended or paused it, and released it, after it was listed here.
                if trial.state.is_finished() or self._is_paused(trial):
                    self._claims.release(lease_of(trial.number))
                    continue
                attributes = trial.user_attrs.get("hyperparameters")
                if attributes is None:  # the process died while sampling it: finish that
                    asked.append(self._sampled(trial.number))
                else:
                    together = tuple(trial.user_attrs.get("together", ()))
                    begun = bool(trial.intermediate_values) or bool(together) or BEGUN in trial.user_attrs
                    seconds = (trial.user_attrs.get(PAUSED) or {}).get("seconds", 0.0)
                    asked.append(Asked(trial.number, Hyperparameters(**attributes), begun, together, seconds))
        return asked

    def _is_paused(self, trial: FrozenTrial) -> bool:
        """Whether the schedule of freeze-thaw decides when a trial resumes. Without it, no trial stays paused."""
        return self.slices is not None and bool(trial.user_attrs.get(PAUSED))

    def draw(self, count: int, *, trials: int | None) -> list[Asked]:
        """Sample the next trials, at most ``count``, while the study has fewer than ``trials`` in all.

        The budget applies to all searches that share the study, over all restarts; ``None`` for no limit.
        """
        asked: list[Asked] = []
        with self._claims.alone("draw"):
            for _ in range(count):
                if not self._may_draw(trials):
                    break
                asked.append(patiently(self._sampled))
        return asked

    def _may_draw(self, trials: int | None) -> bool:
        return not self.exhausted and (trials is None or patiently(self.drawn) < trials)

    def drawn(self) -> int:
        """Number of trials drawn so far, in any state."""
        return sum(trial.state is not TrialState.WAITING for trial in self._study.get_trials(deepcopy=False))

    def unfinished_probes(self) -> int:
        """Number of linear probes that are not fitted yet; they come before everything else."""
        trials = self._study.get_trials(deepcopy=False)
        return sum(PROBE in trial.user_attrs and not trial.state.is_finished() for trial in trials)

    def _sampled(self, number: int | None = None) -> Asked:
        """Draw a new trial, or finish drawing one that has a number already: the result is seeded by its number."""
        trials = self._study.get_trials(deepcopy=False)
        waiting = [trial.number for trial in trials if trial.state is TrialState.WAITING]
        drawn = min(waiting, default=len(trials)) if number is None else number
        with quiet():
            self._study.sampler = sampler_of(self._config.study, drawn, self._seconds_by_depth())
            trial = self._study.ask() if number is None else self._trial(number)
            probed = trial.user_attrs.get(PROBE)
            if probed is not None:
                hyperparameters = probe_of(self._config, self.depths, probed)
            else:
                hyperparameters = sample(trial, self._config, self.depths)
        self._claims.take(lease_of(trial.number))
        trial.set_user_attr("hyperparameters", hyperparameters.as_dict())
        return Asked(trial.number, hyperparameters, resumed=False)

    def end_paused(self, *, out_of_time: bool) -> None:
        """End the paused trials, which will not be resumed; see :meth:`PausedTrials.left`."""
        for result in self.paused.left(self.records(), out_of_time=out_of_time):
            self.tell(result)

    def _seconds_by_depth(self) -> list[float] | None:
        """Seconds per epoch by freeze depth, if sampling depends on it: with one backbone and a time budget."""
        backbone, *others = self._config.backbones
        timed = self._config.study.timeout_minutes is not None and not others
        return self._study.user_attrs.get(f"seconds:{backbone}") if timed else None

    def report(self, number: int, result: EpochResult) -> Decision:
        """Record an epoch's validation value, and return whether the trial continues. Idempotent.

        If the storage cannot be written now, the value is stored with the next one; the trial continues meanwhile.

        Raises:
            LeaseLost: if another search took over the trial, because this one did not renew its lease in time.
        """
        if self._claims.lost(lease_of(number)):
            raise LeaseLost(f"Another search took over trial {number}.")
        waiting = self._waiting.setdefault(number, [])
        waiting.append(result)
        try:
            if PROBE in self._stored(number).user_attrs:
                return Decision.CONTINUE  # no epochs: pruners use it for comparison
            self._report(number)
            frozen = self._stored(number).user_attrs["hyperparameters"]["freeze_depth"]
            if result.metrics.get("train/freeze_depth", frozen) > frozen:
                return Decision.CONTINUE  # while thawing, a trial is not comparable with one thawed from the start
            return self._decide(number, result.epoch) if result.epoch < self._config.train.epochs else Decision.CONTINUE
        except UpdateFinishedTrialError:
            raise LeaseLost(f"Another search took over trial {number}, and has ended it.") from None
        except PASSING as error:
            _log.warning("the study cannot be written (%s); trial %d continues", error, number)
            return Decision.CONTINUE

    def _decide(self, number: int, epoch: int) -> Decision:
        stored = self._stored(number)
        if self.slices is None:
            seen = optuna.Trial(without_probes(self._study), stored._trial_id)
            return Decision.PRUNE if seen.should_prune() else Decision.CONTINUE
        # Heads that are trained together end together; and for epochs in a checkpoint, only the last counts. A resumed
        # trial trains an epoch: the search that chose it may know of fewer new trials than are stored.
        known = max(stored.intermediate_values)
        if stored.user_attrs.get("together") or epoch < known or epoch <= stored.user_attrs.get(RESUMED_AFTER, 0):
            return Decision.CONTINUE
        return Decision.CONTINUE if self.slices.next(training=number) == number else Decision.PAUSE

    def _report(self, number: int) -> None:
        waiting = self._waiting.get(number, [])
        while waiting:
            epoch = waiting[0].epoch
            if epoch not in self._stored(number).intermediate_values:
                value = waiting[0].metrics[f"val/{self._config.study.metric}"]
                self._trial(number).report(value, step=epoch)
            waiting.pop(0)

    def reported_epochs(self, number: int) -> int:
        """Number of reported epochs of a trial."""
        return len(patiently(self._stored, number).intermediate_values)

    def tell(self, result: TrialResult) -> None:
        """Record how a trial ended, or that it is paused; has no effect on a trial that was already recorded."""
        if result.state == "paused":
            self.paused.pause(result)
        else:
            patiently(self._tell, result)

    def _tell(self, result: TrialResult) -> None:
        trial, lost = self._trial(result.number), self._claims.lost(lease_of(result.number))
        if not lost and not self._stored(result.number).state.is_finished():
            trial.set_user_attr("result", asdict(result))
            if not self.draws_ahead:  # the sampler of a grid ends the study; a resumed process has drawn nothing yet
                self._study.sampler = sampler_of(self._config.study, result.number, None)
            states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
            value = result.value if result.state == "complete" else None
            try:
                self._study.tell(result.number, value, state=states[result.state])
            except RuntimeError as error:
                # Finite samplers (grid, brute force) end a study this way. The trial is already stored.
                if "Study.stop" not in str(error):
                    raise
                patiently(self._study.set_user_attr, "exhausted", True)
        self._claims.release(lease_of(result.number))
        self._note_seconds()

    def begin(self, numbers: Sequence[int]) -> None:
        """Record that trials start. With freeze-thaw, this search keeps a trial until it is paused."""
        for number in numbers:
            patiently(self._trial(number).set_user_attr, BEGUN, True)
            self.paused.resumed(number)

    def join(self, numbers: Sequence[int]) -> None:
        """Record that these trials are trained together: to be bit-equal after a kill, they must resume together."""
        for number in numbers:
            patiently(self._trial(number).set_user_attr, "together", list(numbers))

    def others_run(self) -> bool:
        """Whether another live search is running a trial of this study."""
        running = patiently(self._study.get_trials, deepcopy=False, states=(TrialState.RUNNING,))
        return any(patiently(self._claims.taken_by_others, lease_of(trial.number)) for trial in running)

    def alone(self, name: str) -> AbstractContextManager[None]:
        """Within the block, no other search that shares the study is in a block of this name."""
        return self._claims.alone(name)

    def records(self) -> list[TrialRecord]:
        """All trials, best first; see :func:`ranked`."""
        return patiently(ranked, self._study)

    def finished(self) -> int:
        """Number of ended trials, in any state, which counts against the budget."""
        return sum(record.ended for record in self.records())

    def begun(self) -> int:
        """Number of trials that were drawn and have not ended, paused ones included."""
        return len(patiently(self._study.get_trials, deepcopy=False, states=(TrialState.RUNNING,)))

    @property
    def exhausted(self) -> bool:
        """Whether the sampler has nothing left to try, as with a grid."""
        return bool(patiently(lambda: self._study.user_attrs).get("exhausted"))

    @property
    def draws_ahead(self) -> bool:
        """Whether several trials may be drawn before the first has ended, which would restart a grid."""
        return self._config.study.sampler not in FINITE

    def best(self) -> TrialRecord | None:
        """The best complete trial with a checkpoint."""
        complete = (record for record in self.records() if record.state == "complete")
        return next((record for record in complete if record.result and record.result.checkpoint), None)

    def importances(self) -> dict[str, Importance]:
        """The importance of each hyperparameter, see :func:`importances_of`."""
        return importances_of(self._study)

    def _stored(self, number: int) -> FrozenTrial:
        """The trial as stored."""
        return self._study.get_trials(deepcopy=False)[number]

    def _trial(self, number: int) -> optuna.Trial:
        """Optuna's handle of a trial, which another process may have drawn."""
        return optuna.Trial(self._study, self._stored(number)._trial_id)


def _searched(study: optuna.Study, config: SearchConfig) -> SearchConfig:
    """The search with the study's initial backbones."""
    return with_backbones(config, study.user_attrs.get("backbones", config.backbones))


def _ranking(study: optuna.Study) -> dict[str, float]:
    return {str(name): float(value) for name, value in study.user_attrs.get("ranking", [])}


def _changes(known: Mapping[str, Any], config: SearchConfig) -> str:
    """A readable list of settings that differ from those of the study."""
    differing = [
        f"{section}.{key}={json.dumps(known[section].get(key))}"
        for section, values in config.comparable().items()
        for key, value in values.items()
        if known[section].get(key) != value
    ]
    return ", ".join(differing) or "other data"
