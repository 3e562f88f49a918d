"""The section ``study``."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from thawline.config.model import Model, PlainName

__all__ = ["StudyConfig"]

_TRIALS = 20
"""Of a search that nothing else ends."""


def _workers(value: object) -> object:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"must be auto or a whole number from 1, but got {value!r}")
    return value


class StudyConfig(Model):
    """The search as a whole."""

    name: PlainName | None = None
    """Name of the study; the same name resumes it where it stopped. By default made from data, backbone and
    settings."""
    trials: int | None = Field(None, ge=1)
    """Total number of trials, over all runs of the study; by default 20, or with a time limit as many as it allows."""
    timeout_minutes: float | None = Field(None, gt=0)
    """Time limit in minutes, over all runs of the study: afterwards no trial starts, and a running one stops at its
    next epoch."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"] = "accuracy"
    """Validation metric that the search optimises (``loss`` is minimised, the others are maximised)."""
    sampler: str = "GPSampler"
    """Any of Optuna's samplers, by class name."""
    sampler_options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the sampler. GPSampler's default starts with four random trials."""
    pruner: str = "MedianPruner"
    """Any of Optuna's pruners, by class name; ``NopPruner`` prunes nothing. ``freeze_thaw`` pauses trials after an
    epoch and resumes those that may still become the best; what is never resumed ends as pruned."""
    pruner_options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the pruner. Steps are epochs, counted from 1. MedianPruner's default spares the first epoch
    of every trial, and lets eight trials run to their end: with fewer to compare with, a median means little. Those of
    freeze_thaw are ``n_startup_trials`` (4), which are not paused, and ``least_chance`` (0.01): a paused trial whose
    probability to become the best is smaller is not resumed."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of sampling, initialisation and batch order."""
    batch: int = Field(4, ge=1)
    """Trials that are drawn at once, before any of them has a result. The cheapest of a batch run first, and head-only
    trials are trained together."""
    enqueue: tuple[dict[str, Any], ...] = ()
    """Points to try first, such as ``[{freeze_depth: 3, learning_rate: 0.002}]``; what one leaves out is sampled."""
    workers: Annotated[int | Literal["auto"], BeforeValidator(_workers)] = "auto"
    """Trials that run at the same time, each in another process; ``auto`` is ``workers_per_gpu`` for each GPU, one
    without, and ``batch`` of them on a cluster. More than one makes the order of results, and so the sampler's choices,
    depend on timing."""
    workers_per_gpu: int = Field(1, ge=1)
    """Trials that share a GPU; two or more pay off where little is thawed and a trial leaves it half idle."""
    retries: int = Field(1, ge=0)
    """How often a trial whose process died or hung is retried from its last checkpoint; counted again after
    every epoch that it finishes."""
    hang_minutes: float = Field(30.0, gt=0)
    """Minutes without a finished batch after which a trial is stopped, and retried as if its process had died."""
    grace_seconds: float = Field(20.0, ge=0)
    """Seconds that running trials have to finish their batch and write a checkpoint on SIGTERM or Ctrl-C."""
    keep_backbones: int | None = Field(None, ge=1)
    """Number of backbones to search: those on whose frozen features a linear probe does best on validation.
    ``null`` searches all, the best first."""
    storage: str | None = None
    """Database of the study, such as ``postgresql://user@host/optuna``, which searches on several machines may share;
    by default THAWLINE_STORAGE, else a journal file in Thawline's home. Put passwords into the variable."""
    soup: bool = False
    """Average the weights of the best trials of the best one's backbone, one after the other as long as validation does
    not get worse, and package that where it is better on validation than the best trial alone (Wortsman et al.,
    2022)."""

    @property
    def most_trials(self) -> int | None:
        """The number of trials, in all, after which none starts; ``None`` if only the time limit ends the search."""
        return _TRIALS if self.trials is None and self.timeout_minutes is None else self.trials

    @model_validator(mode="before")
    @classmethod
    def _measured_options(cls, given: Any) -> Any:
        """Options that are not given are those measured for the default sampler and pruner, see ADR 1."""
        if not isinstance(given, Mapping):
            return given
        sampler, pruner = given.get("sampler", "GPSampler"), given.get("pruner", "MedianPruner")
        return {
            "sampler_options": {"n_startup_trials": 4} if sampler == "GPSampler" else {},
            "pruner_options": {"n_startup_trials": 8, "n_warmup_steps": 2} if pruner == "MedianPruner" else {},
            **given,
        }
