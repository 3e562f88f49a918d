"""The section ``study``."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from thawline.config.model import Model, PlainName

__all__ = ["StudyConfig"]

_TRIALS = 20
"""Number of trials of a search without another limit."""


def _workers(value: object) -> object:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"must be auto or a whole number from 1, but got {value!r}")
    return value


class StudyConfig(Model):
    """The search as a whole."""

    name: PlainName | None = None
    """Name of the study; the same name resumes it. By default derived from data, backbone and settings."""
    trials: int | None = Field(None, ge=1)
    """Total number of trials over all runs of the study; by default 20, or with a time limit as many as fit."""
    timeout_minutes: float | None = Field(None, gt=0)
    """Time limit in minutes over all runs of the study: afterwards no trial starts, and running trials stop after their
    current epoch."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"] = "accuracy"
    """Validation metric to optimise (``loss`` is minimised, the others are maximised)."""
    sampler: str = "GPSampler"
    """Any of Optuna's samplers, by class name."""
    sampler_options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the sampler. By default, GPSampler starts with four random trials."""
    pruner: str = "MedianPruner"
    """Any of Optuna's pruners, by class name; ``NopPruner`` prunes nothing. ``freeze_thaw`` pauses trials after an
    epoch and resumes those that may still become the best; trials that are never resumed end as pruned."""
    pruner_options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the pruner. Steps are epochs, counted from 1. By default, MedianPruner prunes no trial in
    its first epoch, and none before eight trials are complete, because the median of fewer means little. Arguments of
    freeze_thaw are ``n_startup_trials`` (4), the number of trials that are never paused, and ``least_chance`` (0.01): a
    paused trial with a smaller probability of becoming the best is not resumed."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of sampling, initialisation and batch order."""
    batch: int = Field(4, ge=1)
    """Number of trials sampled at once, before any of them has a result. The cheapest of a batch run first, and
    head-only trials are trained together."""
    enqueue: tuple[dict[str, Any], ...] = ()
    """Points to try first, such as ``[{freeze_depth: 3, learning_rate: 0.002}]``; missing values are sampled."""
    workers: Annotated[int | Literal["auto"], BeforeValidator(_workers)] = "auto"
    """Number of trials that run in parallel, each in its own process; ``auto`` is ``workers_per_gpu`` for each GPU, one
    without a GPU, and ``batch`` on a cluster. With more than one, the order of results, and so the sampler's choices,
    depends on timing."""
    workers_per_gpu: int = Field(1, ge=1)
    """Number of trials that share a GPU; two or more pay off if little is thawed and one trial leaves it half idle."""
    retries: int = Field(1, ge=0)
    """How often to retry a trial from its last checkpoint after its process died or hung; the count restarts after
    every finished epoch."""
    hang_minutes: float = Field(30.0, gt=0)
    """Minutes without a finished batch after which a trial counts as hung: it is stopped, and retried as if its process
    had died."""
    grace_seconds: float = Field(20.0, ge=0)
    """Seconds for running trials to finish their batch and write a checkpoint on SIGTERM or Ctrl-C."""
    keep_backbones: int | None = Field(None, ge=1)
    """Number of backbones to search: those whose frozen features give the best linear probe on the validation set.
    ``null`` searches all, the best first."""
    storage: str | None = None
    """Database of the study, such as ``postgresql://user@host/optuna``, which several machines may share; by default
    the environment variable THAWLINE_STORAGE, else a journal file in Thawline's home. Put passwords into the
    variable."""
    soup: bool = False
    """Build a greedy model soup (Wortsman et al., 2022): average the weights of the best trials with the best one's
    backbone, adding one after another as long as validation does not get worse, and package the average if it is better
    on validation than the best trial."""

    @property
    def most_trials(self) -> int | None:
        """The total number of trials; ``None`` if only the time limit ends the search."""
        return _TRIALS if self.trials is None and self.timeout_minutes is None else self.trials

    @model_validator(mode="before")
    @classmethod
    def _measured_options(cls, given: Any) -> Any:
        """Default to the options that were measured for the default sampler and pruner, see ADR 1."""
        if not isinstance(given, Mapping):
            return given
        sampler, pruner = given.get("sampler", "GPSampler"), given.get("pruner", "MedianPruner")
        return {
            "sampler_options": {"n_startup_trials": 4} if sampler == "GPSampler" else {},
            "pruner_options": {"n_startup_trials": 8, "n_warmup_steps": 2} if pruner == "MedianPruner" else {},
            **given,
        }
