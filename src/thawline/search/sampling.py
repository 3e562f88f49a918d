"""Optuna's samplers and pruners, as used by a study."""

import inspect
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from thawline.config import StudyConfig
from thawline.exceptions import ConfigError
from thawline.search.freeze_thaw import FreezeThaw
from thawline.search.gp_sampler import GPSamplerWithPruned

__all__ = [
    "FINITE",
    "PROBE",
    "check_sampling",
    "freeze_thaw_of",
    "pruner_of",
    "quiet",
    "sampler_of",
    "without_probes",
]

PROBE = "probe"
"""Attribute of a linear probe: the name of its backbone."""
FINITE = {"GridSampler", "BruteForceSampler"}
# Their sequence of points depends on one seed for the whole study; its position is kept in the storage.
_FREEZE_THAW = "freeze_thaw"
_ONE_SEED = FINITE | {"QMCSampler"}


def check_sampling(config: StudyConfig) -> None:
    """Refuse a sampler or pruner that Optuna does not have, or unsupported options.

    Raises:
        ConfigError: with the key, the value and the valid values.
    """
    sampler_of(config, 0)
    pruner_of(config)
    if freeze_thaw_of(config) is not None and config.sampler in FINITE:
        raise ConfigError(
            f"study.pruner={_FREEZE_THAW} draws before others have ended, and {config.sampler} would restart its "
            "sequence: use NopPruner or one of Optuna's pruners, or another sampler."
        )


class _StudyWithoutProbes(optuna.Study):
    """A study as seen by samplers: without linear probes, which have no hyperparameters to learn from."""

    def __init__(self, study: optuna.Study) -> None:
        super().__init__(study.study_name, study._storage, study.sampler, study.pruner)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [t for t in super()._get_trials(deepcopy, states, use_cache) if PROBE not in t.user_attrs]


def without_probes(study: optuna.Study) -> optuna.Study:
    """A view of a study without its linear probes, which samplers, pruners and importances cannot learn from."""
    return _StudyWithoutProbes(study)


class _WithoutProbes(BaseSampler):
    """A sampler that never sees linear probes.

    Optuna's samplers model the parameters that all trials have: a single trial without parameters would leave none.
    """

    def __init__(self, sampler: BaseSampler) -> None:
        self._sampler = sampler

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The search space that the sampler models jointly."""
        if PROBE in trial.user_attrs:
            return {}
        return self._sampler.infer_relative_search_space(without_probes(study), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Ask the sampler."""
        if PROBE in trial.user_attrs:
            return {}
        return self._sampler.sample_relative(without_probes(study), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Ask the sampler about one parameter."""
        return self._sampler.sample_independent(without_probes(study), trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Let the sampler prepare a trial."""
        if PROBE not in trial.user_attrs:
            self._sampler.before_trial(without_probes(study), trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Tell the sampler how a trial ended."""
        if PROBE not in trial.user_attrs:
            self._sampler.after_trial(without_probes(study), trial, state, values)

    def reseed_rng(self) -> None:
        """Reseed the sampler."""
        self._sampler.reseed_rng()


def sampler_of(config: StudyConfig, trials: int, seconds: Sequence[float] | None = None) -> BaseSampler:
    """A sampler seeded by the study's seed and the number of trials so far. It does not see linear probes.

    A single sampler for all trials would repeat the first trials' random numbers after a restart.

    Args:
        config: the sampler and its options.
        trials: their number so far.
        seconds: seconds per epoch by freeze depth, from 0, if time is the budget: GPSampler then divides the expected
            improvement by it.
    """
    options = dict(config.sampler_options)
    kind = _class_of(optuna.samplers, config.sampler, BaseSampler, "study.sampler")
    if kind is optuna.samplers.GPSampler:
        kind = GPSamplerWithPruned
        if seconds is not None:
            options["seconds"] = seconds
        # With several backbones each has its own depth parameter, which the model cannot represent: random, as
        # intended.
        options.setdefault("warn_independent_sampling", False)
    if "seed" in inspect.signature(kind).parameters:
        offset = 0 if config.sampler in _ONE_SEED else trials
        options.setdefault("seed", (config.seed * 100_003 + offset) % 2**32)
    sampler = _built(kind, options, "study.sampler_options")
    assert isinstance(sampler, BaseSampler)  # noqa: S101  narrows the type
    return _WithoutProbes(sampler)


def pruner_of(config: StudyConfig) -> BasePruner:
    """The pruner of a study; freeze-thaw ends no trial before the search ends."""
    if config.pruner == _FREEZE_THAW:
        return optuna.pruners.NopPruner()
    kind = _class_of(optuna.pruners, config.pruner, BasePruner, "study.pruner")
    pruner = _built(kind, config.pruner_options, "study.pruner_options")
    assert isinstance(pruner, BasePruner)  # noqa: S101  narrows the type
    return pruner


def freeze_thaw_of(config: StudyConfig) -> FreezeThaw | None:
    """The rule by which a study pauses and resumes trials; ``None`` if it does not."""
    if config.pruner != _FREEZE_THAW:
        return None
    rule = _built(FreezeThaw, config.pruner_options, "study.pruner_options")
    assert isinstance(rule, FreezeThaw)  # noqa: S101  narrows the type
    return rule


def _class_of(module: Any, name: str, base: type, key: str) -> type:
    kind = getattr(module, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, base) and kind is not base):
        known = [n for n in module.__all__ if inspect.isclass(getattr(module, n)) and n != base.__name__]
        own = f", and Thawline {_FREEZE_THAW}" if base is BasePruner else ""
        raise ConfigError(f"{key}: Optuna has no {name!r}. It has {', '.join(known)}{own}.")
    return kind


def _built(kind: type, options: Mapping[str, Any], key: str) -> object:
    try:
        with quiet():
            return kind(**options)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"{key}: {kind.__name__} does not take {dict(options)}: {error}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings: Optuna marks widely used features as experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
