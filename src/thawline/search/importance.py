"""The importance of each hyperparameter in a study, with its uncertainty."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
from optuna.trial import TrialState

from thawline.search.sampling import quiet, without_probes
from thawline.search.storage import storage_of

__all__ = ["Importance", "importances_of", "load_importances"]

_FEWEST_EXPLAINED = 10
"""Minimum number of complete trials: with fewer, a share would be a guess."""
_TREES = 64
"""Number of trees in Optuna's forest. Each is fitted to a different resample of the trials."""
_RANGE = (10, 90)
"""Percentiles over the trees."""


class Importance(NamedTuple):
    """Share of the differences between trials that one hyperparameter explains, in [0, 1]."""

    share: float
    low: float
    """The 10th percentile: four of five resamples of the trials lie between this and :attr:`high`."""
    high: float
    """The 90th percentile."""


def importances_of(study: optuna.Study) -> dict[str, Importance]:
    """How much of the variance between complete trials each hyperparameter explains: shares of 1, largest first.

    Uses Optuna's fANOVA (Hutter et al., "An Efficient Approach for Assessing Hyperparameter Importance", ICML 2014),
    tree by tree: each tree is fitted to a bootstrap sample of the trials, so their spread shows the uncertainty. Empty
    while the trials are too few or too similar.
    """
    trials = without_probes(study)
    if len(trials.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < _FEWEST_EXPLAINED:
        return {}
    told = [shares for seed in range(_TREES) if (shares := _by_one_tree(trials, seed))]
    if not told:
        return {}
    table = {name: np.array([shares[name] for shares in told]) for name in told[0]}
    found = {
        name: Importance(float(shares.mean()), *map(float, np.percentile(shares, _RANGE)))
        for name, shares in table.items()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].share))


def load_importances(home: Path, name: str, url: str | None = None) -> dict[str, Importance]:
    """:func:`importances_of` a study that exists."""
    return importances_of(optuna.load_study(study_name=name, storage=storage_of(home, url).optuna))


def _by_one_tree(study: optuna.Study, seed: int) -> Mapping[str, float]:
    """Shares by one tree, fitted to a bootstrap sample; empty if all its values, or all its points, are equal."""
    from optuna.importance import FanovaImportanceEvaluator  # loads scikit-learn, for seconds

    evaluator = FanovaImportanceEvaluator(n_trees=1, seed=seed)
    try:
        with quiet():
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):
        return {}
    return shares if all(share == share for share in shares.values()) else {}
