"""The contents of a study, as values: its trials, and the names of all studies."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from thawline import environment
from thawline.exceptions import StudyError
from thawline.search.gp_sampler import PAUSED
from thawline.search.storage import open_storage, storage_of, storage_url
from thawline.search.trial_result import TrialResult
from thawline.training import Hyperparameters

__all__ = [
    "BEGUN",
    "Asked",
    "TrialRecord",
    "latest_study",
    "load_records",
    "ranked",
    "study_names",
]


BEGUN = "begun"
"""Attribute of a started trial."""


@dataclass(frozen=True)
class Asked:
    """A trial to run: new, paused, or drawn by a process that died."""

    number: int
    hyperparameters: Hyperparameters
    resumed: bool
    """Whether it was already started."""
    together: tuple[int, ...] = ()
    """Numbers of the trials that it was trained with as one computation, including itself."""
    seconds: float = 0.0
    """Time it had taken when it was paused."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial, as shown in the leaderboard."""

    number: int
    state: Literal["complete", "pruned", "failed", "paused", "running"]
    hyperparameters: Hyperparameters
    value: float | None
    """Best validation value of the study's metric; of a pruned or paused trial, the best before it was stopped."""
    result: TrialResult | None

    @property
    def ended(self) -> bool:
        """Whether it has ended: it is neither running nor paused."""
        return self.state not in ("paused", "running")


def study_names(home: Path, url: str | None = None) -> list[str]:
    """Names of all studies in a storage, by default Thawline's own, the oldest first."""
    storage = open_storage(home, url, create=False)
    return optuna.get_all_study_names(storage.optuna) if storage else []


def latest_study(home: Path, url: str | None = None) -> str:
    """Name of the study with the latest trial.

    Raises:
        StudyError: if there is none.
    """
    storage = open_storage(home, url, create=False)
    studies = optuna.get_all_study_summaries(storage=storage.optuna) if storage else []
    if not studies:
        raise StudyError(_no_study(home, url))
    started = [(s.datetime_start.timestamp() if s.datetime_start else 0.0, s.study_name) for s in studies]
    return max(started)[1]


def _no_study(home: Path, url: str | None) -> str:
    if storage_url(url) is None and not home.is_dir():
        return environment.no_home(home)
    return f"There is no study in {home} yet. `thawline search DATA` creates one."


def load_records(home: Path, name: str, url: str | None = None) -> tuple[str, list[TrialRecord]]:
    """The metric of a study and its trials, best first.

    Raises:
        StudyError: if there is no study with that name.
    """
    names = study_names(home, url)
    if name not in names:
        known = f"There is no study {name!r} in {home}. Known: {', '.join(names)}."
        raise StudyError(known if names else _no_study(home, url))
    study = optuna.load_study(study_name=name, storage=storage_of(home, url).optuna)
    return str(study.user_attrs["metric"]), ranked(study)


def ranked(study: optuna.Study) -> list[TrialRecord]:
    """All trials, best first: complete ones by value, then pruned, paused, running and failed ones."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    order = {"complete": 0, "pruned": 1, "paused": 2, "running": 3, "failed": 4}
    records = [r for t in study.get_trials(deepcopy=False) if (r := _record(t)) is not None]
    return sorted(
        records,
        key=lambda r: (order[r.state], sign * r.value if r.value is not None else float("inf"), r.number),
    )


def _record(trial: FrozenTrial) -> TrialRecord | None:
    attributes = trial.user_attrs.get("hyperparameters")
    if attributes is None:  # enqueued, or died while it was being sampled
        return None
    waits = trial.state is TrialState.RUNNING and BEGUN not in trial.user_attrs
    if waits and not trial.intermediate_values:  # of a batch that the time limit ended
        return None
    paused = trial.user_attrs.get(PAUSED) if trial.state is TrialState.RUNNING else None
    stored = trial.user_attrs.get("result") or paused
    result = TrialResult(**stored) if stored else None
    states: dict[TrialState, Literal["complete", "pruned", "failed", "running"]] = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
    }
    return TrialRecord(
        number=trial.number,
        state=states.get(trial.state, "paused" if paused else "running"),
        hyperparameters=Hyperparameters(**attributes),
        value=result.value if result else None,
        result=result,
    )
