"""The study: what was tried, what to try next, what to stop.

Values go in and out; Optuna's handles stay inside.
"""

import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from thawline.search.gp_sampler import PAUSED
from thawline.search.records import BEGUN, Asked, TrialRecord, importances_of, ranked
from thawline.search.sampling import (
    FINITE,
    PROBE,
    pruner_of,
    quiet,
    sampler_of,
    without_probes,
)
from thawline.search.slices import Slices, lease_of
from thawline.search.space import default_points, kept_backbones, point_of, probe_of, sample, with_backbones
from thawline.search.storage import PASSING, Claims, LeaseLost, open_storage, patiently, storage_of
from thawline.search.trial_result import TrialResult
from thawline.training import METRIC_DIRECTIONS, Decision, EpochResult, Hyperparameters

__all__ = ["Asked", "Study"]

optuna.logging.set_verbosity(optuna.logging.WARNING)
if logs.chosen() is logs.LogFormat.json:
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
_log = logging.getLogger(__name__)


class Study:
    """One search, by name. Opening it claims nothing; :meth:`held` does.

    What is written survives a storage that is locked, restarted or full for minutes, see :func:`patiently`; reports
    wait meanwhile, so that training continues.
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
        self.slices = Slices.of(study, claims, config, lambda: self._may_draw(config.study.most_trials))
        """With freeze-thaw, who trains the next epoch; else ``None``."""

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
            name: of the study.
            config: the search; :attr:`config` is then the same with only the backbones that are tried.
            depths: number of layer groups of each backbone.
            fingerprint: of what must not change when a study is resumed.
            ranking: of several backbones, the best first, and the value of each. The study keeps the first it is given.

        Raises:
            StudyError: if a study of that name was made with other data or settings, or the storage cannot be opened.
            ConfigError: if a point of ``study.enqueue`` is not one of the search space.
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
                if not study.get_trials(deepcopy=False):  # or it died just here the last time
                    searched = _searched(study, config)
                    for backbone in searched.backbones:
                        study.enqueue_trial({}, user_attrs={PROBE: backbone})
                    for point in _without_twins([*points, *default_points(searched, depths)]):
                        study.enqueue_trial(point)
                study.set_user_attr("fingerprint", fingerprint)
            elif known != fingerprint:
                changed = _changes(study.user_attrs["config"], config)
                raise StudyError(
                    f"The study {name!r} was made with {changed}, so its trials cannot be compared with new ones. "
                    "Give this one another --study name, or go back to the settings it was made with."
                )
        return cls(study, claims, _searched(study, config))

    @classmethod
    def known_ranking(cls, home: Path, name: str, url: str | None) -> dict[str, float]:
        """The ranking that a study was begun with, the best first; empty if there is none."""
        storage = open_storage(home, url, create=False)
        if storage is None or name not in optuna.get_all_study_names(storage.optuna):
            return {}
        return _ranking(optuna.load_study(study_name=name, storage=storage.optuna))

    @classmethod
    def load(cls, home: Path, name: str, config: SearchConfig) -> "Study":
        """Open a study that exists, in another thread or process."""
        storage = storage_of(home, config.study.storage)
        study = optuna.load_study(study_name=name, storage=storage.optuna, pruner=pruner_of(config.study))
        return cls(study, storage.claims(name), config)

    @property
    def config(self) -> SearchConfig:
        """The search, with the backbones that are tried in the order of their ranking."""
        return self._config

    @property
    def name(self) -> str:
        """Name of the study."""
        return self._study.study_name

    def weights_of(self, backbone: str) -> str | None:
        """Digest of the pretrained weights that trials of a backbone began with; ``None`` if that is not known yet."""
        digest: str | None = self._study.user_attrs.get(f"weights:{backbone}")
        return digest

    def keep_weights(self, backbone: str, digest: str) -> None:
        """Note what :meth:`weights_of` answers from now on."""
        if self.weights_of(backbone) is None:
            patiently(self._study.set_user_attr, f"weights:{backbone}", digest)

    def keep_seconds(self, backbone: str, seconds: Sequence[float]) -> None:
        """Note what an epoch takes by freeze depth, from 0, once: what is chosen by it must not change on the way."""
        if f"seconds:{backbone}" not in self._study.user_attrs:
            patiently(self._study.set_user_attr, f"seconds:{backbone}", list(seconds))

    @property
    def recorded_in(self) -> tuple[str, str] | None:
        """The MLflow store that the study was begun with, without a password, and its run there; ``None`` before."""
        known = self._study.user_attrs.get("recorded_in")
        return None if known is None else (str(known[0]), str(known[1]))

    def keep_recorded_in(self, store: str, run_id: str) -> None:
        """Note what :attr:`recorded_in` answers from now on."""
        if self.recorded_in != (store, run_id):
            patiently(self._study.set_user_attr, "recorded_in", [store, run_id])

    @contextmanager
    def held(self) -> Iterator[None]:
        """Work on the study: keep other searches from taking its trials, and count the time.

        Raises:
            StudyError: if another process holds it. In a database several may.
        """
        with self._claims.held(self._note_seconds):
            try:
                yield
            finally:
                with suppress(*PASSING):
                    self._note_seconds()

    @property
    def seconds(self) -> float:
        """For how long the study was run, over all restarts; of a process that was killed, up to its last note."""
        return self._seconds_before + time.time() - self._opened

    def deadline(self) -> float | None:
        """When the time is spent, in seconds of :func:`time.time`; ``None`` if there is no limit."""
        minutes = self._config.study.timeout_minutes
        return self._opened - self._seconds_before + 60 * minutes if minutes else None

    def _note_seconds(self) -> None:
        # Of several searches at once the longest counts: this is time, not work.
        if self.seconds > float(self._study.user_attrs.get("seconds", 0.0)):
            self._study.set_user_attr("seconds", round(self.seconds, 1))

    def unfinished(self) -> list[Asked]:
        """Unfinished trials of a process that died, in order, but for paused ones; they are this search's now.

        Call it only inside :meth:`held`.
        """
        return patiently(self._unfinished)

    def _unfinished(self) -> list[Asked]:
        asked = []
        with self._claims.alone("draw"):  # or a trial that is just being drawn would look like one of a dead process
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if trial.user_attrs.get(PAUSED) or not self._claims.take(lease_of(trial.number)):
                    continue
                trial = self._stored(trial.number)  # noqa: PLW2901  as it stands now that nobody else can write it
                if trial.state.is_finished() or trial.user_attrs.get(
                    PAUSED
                ):  # by another search, which released it after it was listed here
                    self._claims.release(lease_of(trial.number))
                    continue
                attributes = trial.user_attrs.get("hyperparameters")
                if attributes is None:  # it died while it was being drawn, and is now drawn to its end
                    asked.append(self._sampled(trial.number))
                else:
                    together = tuple(trial.user_attrs.get("together", ()))
                    begun = bool(trial.intermediate_values) or bool(together) or BEGUN in trial.user_attrs
                    asked.append(Asked(trial.number, Hyperparameters(**attributes), begun, together))
        return asked

    def draw(self, count: int, *, trials: int | None) -> list[Asked]:
        """Sample the next trials, at most ``count``, while the study has fewer than ``trials`` in all.

        The budget holds for all searches that share the study, over every time that they were run; ``None`` is none.
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
        """Trials that were drawn so far, however they ended."""
        return sum(trial.state is not TrialState.WAITING for trial in self._study.get_trials(deepcopy=False))

    def unfinished_probes(self) -> int:
        """Linear probes that are still to be fitted; they come before everything else."""
        trials = self._study.get_trials(deepcopy=False)
        return sum(PROBE in trial.user_attrs and not trial.state.is_finished() for trial in trials)

    def _sampled(self, number: int | None = None) -> Asked:
        """Draw a new trial, or, if it has a number already, finish drawing it: seeded by its number, it is the same."""
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
        """End the trials that are paused, as nobody will resume them; see :meth:`Slices.left`."""
        for result in self.slices.left(self.records(), out_of_time=out_of_time) if self.slices is not None else ():
            self.tell(result)

    def _seconds_by_depth(self) -> list[float] | None:
        """What an epoch takes by freeze depth, where that decides what is drawn: of one backbone, if time is short."""
        backbone, *others = self._config.backbones
        timed = self._config.study.timeout_minutes is not None and not others
        return self._study.user_attrs.get(f"seconds:{backbone}") if timed else None

    def report(self, number: int, result: EpochResult) -> Decision:
        """Record an epoch's validation value; returns whether the trial continues. Idempotent.

        A storage that cannot be written now gets the value with the next one; the trial continues meanwhile.

        Raises:
            LeaseLost: if another search took the trial over, since this one did not respond for too long.
        """
        if self._claims.lost(lease_of(number)):
            raise LeaseLost(f"Another search took trial {number} over.")
        waiting = self._waiting.setdefault(number, [])
        waiting.append(result)
        try:
            if PROBE in self._stored(number).user_attrs:
                return Decision.CONTINUE  # no epochs: what pruners compare others with
            self._report(number)
            frozen = self._stored(number).user_attrs["hyperparameters"]["freeze_depth"]
            if result.metrics.get("train/freeze_depth", frozen) > frozen:
                return Decision.CONTINUE  # what is still to be thawed cannot be compared with what was from the start
            return self._decide(number, result.epoch) if result.epoch < self._config.train.epochs else Decision.CONTINUE
        except UpdateFinishedTrialError:
            raise LeaseLost(f"Another search took trial {number} over, and has ended it.") from None
        except PASSING as error:
            _log.warning("the study cannot be written (%s); trial %d continues", error, number)
            return Decision.CONTINUE

    def _decide(self, number: int, epoch: int) -> Decision:
        stored = self._stored(number)
        if self.slices is None:
            seen = optuna.Trial(without_probes(self._study), stored._trial_id)
            return Decision.PRUNE if seen.should_prune() else Decision.CONTINUE
        # Heads that are trained together end together; and of epochs that a checkpoint holds only the last counts.
        if stored.user_attrs.get("together") or epoch < max(stored.intermediate_values):
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
        """Epochs of a trial that were reported."""
        return len(patiently(self._stored, number).intermediate_values)

    def tell(self, result: TrialResult) -> None:
        """Record how a trial ended, or that it is paused; a trial that was told already is left as it is."""
        if self.slices is not None and result.state == "paused":
            self.slices.pause(result)
        else:
            patiently(self._tell, result)

    def _tell(self, result: TrialResult) -> None:
        trial, lost = self._trial(result.number), self._claims.lost(lease_of(result.number))
        if not lost and not self._stored(result.number).state.is_finished():
            trial.set_user_attr("result", asdict(result))
            states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
            value = result.value if result.state == "complete" else None
            try:
                self._study.tell(result.number, value, state=states[result.state])
            except RuntimeError as error:
                # Samplers of finite sequences (grid, brute force) end a study like this. The trial is stored by then.
                if "Study.stop" not in str(error):
                    raise
                self._study.set_user_attr("exhausted", True)
        self._claims.release(lease_of(result.number))
        self._note_seconds()

    def begin(self, numbers: Sequence[int]) -> None:
        """Note that trials start. With freeze-thaw nobody else trains one until it is paused."""
        for number in numbers:
            patiently(self._trial(number).set_user_attr, BEGUN, True)

    def join(self, numbers: Sequence[int]) -> None:
        """Note that these trials are trained together: to be bit-equal after a kill, they must resume together."""
        for number in numbers:
            patiently(self._trial(number).set_user_attr, "together", list(numbers))

    def others_run(self) -> bool:
        """Whether another live search has a trial of this study."""
        running = patiently(self._study.get_trials, deepcopy=False, states=(TrialState.RUNNING,))
        return any(self._claims.taken_by_others(lease_of(trial.number)) for trial in running)

    def alone(self, name: str) -> AbstractContextManager[None]:
        """Within the block, no other search that shares the study is in a block of this name."""
        return self._claims.alone(name)

    def records(self) -> list[TrialRecord]:
        """All trials, the best first; see :func:`ranked`."""
        return patiently(ranked, self._study)

    def finished(self) -> int:
        """Trials that ended, however they did: what the budget counts."""
        return sum(record.ended for record in self.records())

    @property
    def exhausted(self) -> bool:
        """Whether the sampler has nothing left to try, as a grid does."""
        return bool(self._study.user_attrs.get("exhausted"))

    @property
    def draws_ahead(self) -> bool:
        """Whether several trials may be drawn before the first has ended. A grid would start over."""
        return self._config.study.sampler not in FINITE

    def best(self) -> TrialRecord | None:
        """The best complete trial whose checkpoint was kept."""
        complete = (record for record in self.records() if record.state == "complete")
        return next((record for record in complete if record.result and record.result.checkpoint), None)

    def importances(self) -> dict[str, float]:
        """How much each hyperparameter matters, see :func:`importances_of`."""
        return importances_of(self._study)

    def _stored(self, number: int) -> FrozenTrial:
        """The trial as it stands in the storage."""
        return self._study.get_trials(deepcopy=False)[number]

    def _trial(self, number: int) -> optuna.Trial:
        """Optuna's handle of a trial that may have been asked for by another process."""
        return optuna.Trial(self._study, self._stored(number)._trial_id)


def _searched(study: optuna.Study, config: SearchConfig) -> SearchConfig:
    """With the backbones that the study was begun with."""
    return with_backbones(config, study.user_attrs.get("backbones", config.backbones))


def _without_twins(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points without those that were named before: a retrain begins with the champion's, which may be a default."""
    kept: list[dict[str, Any]] = []
    for point in points:
        if not any(_same_point(point, other) for other in kept):
            kept.append(point)
    return kept


def _same_point(point: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return point.keys() == other.keys() and all(
        math.isclose(value, other[name], rel_tol=1e-6)
        if isinstance(value, float) and isinstance(other[name], int | float)
        else value == other[name]
        for name, value in point.items()
    )


def _ranking(study: optuna.Study) -> dict[str, float]:
    return {str(name): float(value) for name, value in study.user_attrs.get("ranking", [])}


def _changes(known: Mapping[str, Any], config: SearchConfig) -> str:
    """Which settings a study was made with that differ now, for people."""
    differing = [
        f"{section}.{key}={json.dumps(known[section].get(key))}"
        for section, values in config.comparable().items()
        for key, value in values.items()
        if known[section].get(key) != value
    ]
    return ", ".join(differing) or "other data"
