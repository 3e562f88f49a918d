"""Comparison of a challenger with the champion, both scored now on the same items, and the move of the alias."""

import getpass
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thawline.config import GateRules
from thawline.exceptions import RegistryError
from thawline.registry.baselines import Baselines, majority_class
from thawline.registry.card import TESTED_ON, version_card
from thawline.registry.gate import Outcome, Verdict, decide, decide_quantised
from thawline.registry.mlflow import MlflowRegistry
from thawline.registry.names import CHALLENGER, QUANTISED_FROM, ModelName, verdict_folder
from thawline.registry.packaged import PackagedModel
from thawline.registry.promotion_outcome import PromotionOutcome
from thawline.registry.scores import Scores, score, seconds_per_item
from thawline.registry.shadowed import Shadowed
from thawline.tracking import MlflowStore, first_line, metric_key, now_ms

__all__ = [
    "LabelledData",
    "force",
    "judge",
    "record",
    "register_challenger",
    "roll_back",
    "settle",
]


@dataclass(frozen=True)
class LabelledData:
    """Labelled items on which both models are scored."""

    name: str
    items: Sequence[bytes | Path | str]
    """Encoded images or image files, or texts."""
    labels: Sequence[str]
    """Class names, one per item."""
    dataset: tuple[str, str] | None = None
    """Name and digest of their data set in MLflow, which then shows the metrics with it."""


def register_challenger(
    store: MlflowStore,
    *,
    name: str,
    model_uri: str,
    run_id: str,
    study: str,
    tags: Mapping[str, str] | None = None,
    quantised_from: str | None = None,
) -> str:
    """Register a packaged model and give it the alias ``challenger``; returns its version.

    A repeated call for the same study and run registers no second version.

    Args:
        store: the MLflow store.
        name: registered model, created if it is new.
        model_uri: result of :func:`~thawline.registry.packaging.log_packaged_model`; not used if the version exists.
        run_id: the run that trained it.
        study: its study.
        tags: tags of the version, such as backbone, freeze depth and data digest.
        quantised_from: the version from which it was quantised to int8, if it was.

    Raises:
        RegistryError: if the registry fails.
    """
    registry = MlflowRegistry(store)
    version = registry.find_version(name, study=study, run_id=run_id, quantised_from=quantised_from)
    if version is None:
        origin = {QUANTISED_FROM: quantised_from} if quantised_from else {}
        version = registry.register(name, model_uri, run_id=run_id, study=study, tags={**(tags or {}), **origin})
    registry.set_alias(name, CHALLENGER, version)
    return version


def judge(
    store: MlflowStore,
    *,
    name: str,
    version: str,
    test: LabelledData,
    rules: GateRules | None = None,
    further: Sequence[LabelledData] = (),
    baselines: Baselines | None = None,
    shadowed: Shadowed | None = None,
) -> PromotionOutcome:
    """Score a version and the champion on the same items, now, and decide; no alias is moved.

    Both are packaged models, loaded from the registry as in a server. The verdict is recorded in the version's tags
    and, as ``promotion/verdict.json`` and ``verdict.md``, in the run that trained it; the metrics are recorded in that
    run as ``test/accuracy`` and so on. An int8 copy, which shares the run, uses ``promotion/int8/…`` and
    ``int8/test/…``. Such a copy must be faster than the champion from which it was quantised, and no worse; compared
    with any other champion it must be better, like every challenger. A first champion is compared with the majority
    class of the training split, which its package records, or with that of the test items for older packages.

    Args:
        store: the MLflow store.
        name: registered model.
        version: the challenger.
        test: the held-out test split.
        rules: thresholds; by default those of the configuration.
        further: other folders or tables on which the challenger must not be worse.
        baselines: baselines of its study, shown with the verdict.
        shadowed: counts of a server in shadow mode, also shown with the verdict.

    Raises:
        RegistryError: if the challenger cannot be loaded or scored, or the registry fails.
    """
    registry, rules = MlflowRegistry(store), rules or GateRules()
    model, run_id = registry.load(ModelName(name, None, version)), registry.run_of(name, version)
    challenger = score(model, test.items, test.labels)
    twin = registry.quantised_from(name, version)
    _log_test_metrics(
        store, run_id, challenger, registry.model_of(name, version), test.dataset, "int8/test" if twin else "test"
    )
    majority = majority_class(model.train_classes or Counter(test.labels), test.labels, kind=model.kind)
    champion_version = registry.champion(name)
    by_copy = champion_version is not None and registry.quantised_from(name, champion_version) == version
    if champion_version == version or by_copy:
        value = challenger.metrics[rules.metric]
        verdict = Verdict(
            Outcome.HOLD,
            f"{name} version {version} is already the champion"
            f"{f', as version {champion_version}, its int8 copy' if by_copy else ''}; its {rules.metric} is "
            f"{value:.4f} on {len(test.labels)} test {model.kind}",
        )
        return PromotionOutcome(
            name,
            version,
            verdict,
            challenger,
            champion_version,
            None if by_copy else challenger,
            run_id=run_id,
            calibration=_calibration(model),
            majority=majority,
            baselines=baselines,
            shadowed=shadowed,
        )
    champion: Scores | None = None
    champion_model: PackagedModel | None = None
    champion_error = None
    champion_further: list[Scores | None] = [None] * len(further)
    if champion_version is not None:
        try:
            champion_model = registry.load(ModelName(name, None, champion_version))
            champion = score(champion_model, test.items, test.labels)
            champion_further = [score(champion_model, each.items, each.labels) for each in further]
        except Exception as error:  # it may be anything, perhaps not even a model of Thawline
            champion_error, champion_model = f"{type(error).__name__}: {first_line(error)}", None
            champion = None
    if champion_model is not None and champion is not None:
        champion = replace(champion, bytes=None)
        if (beside := _like(registry, model, champion_model)) is not None:
            ours, theirs = seconds_per_item([model, beside], test.items)
            challenger = replace(challenger, seconds_per_item=ours)
            champion = replace(champion, seconds_per_item=theirs, bytes=beside.bytes)
    scored_further = [
        (each.name, score(model, each.items, each.labels), theirs)
        for each, theirs in zip(further, champion_further, strict=True)
    ]
    if champion is not None and twin is not None and twin == champion_version:
        verdict = decide_quantised(rules, challenger, champion, further=scored_further)
    else:
        verdict = decide(
            rules,
            challenger,
            champion,
            majority=majority,
            champion_error=champion_error,
            further=scored_further,
            by_force=f"thawline promote {name} --version {version} --force --reason TEXT",
        )
    outcome = PromotionOutcome(
        name=name,
        version=version,
        verdict=verdict,
        challenger=challenger,
        champion_version=champion_version,
        champion=champion,
        run_id=run_id,
        calibration=_calibration(model),
        majority=majority,
        baselines=baselines,
        shadowed=shadowed,
    )
    record(store, outcome, rules.metric)
    return outcome


def _like(registry: MlflowRegistry, model: PackagedModel, champion: PackagedModel) -> PackagedModel | None:
    """The model with which a challenger's time and size are compared; ``None`` if it no longer exists.

    An int8 copy must be faster than the champion with its fastest engine. A challenger in single precision is
    compared with the original of an int8 champion, because it can be quantised too.
    """
    if model.is_quantised == champion.is_quantised:
        return champion
    if model.is_quantised:
        return registry.load(champion.name, engine="auto")
    twin = registry.quantised_from(champion.name.name, str(champion.name.version))
    try:
        return registry.load(ModelName(champion.name.name, None, twin)) if twin else None
    except RegistryError:
        return None


def settle(store: MlflowStore, outcome: PromotionOutcome) -> PromotionOutcome:
    """Move the champion's alias if the verdict is to promote.

    Raises:
        RegistryError: if the champion is no longer the one that the challenger was compared with.
    """
    if outcome.verdict.outcome is Outcome.PROMOTE:
        MlflowRegistry(store).promote(
            outcome.name,
            outcome.version,
            judged_against=outcome.champion_version,
            by=_user(),
            reason=outcome.verdict.reason,
        )
    return outcome


def force(store: MlflowStore, *, name: str, version: str, reason: str) -> None:
    """Make a version the champion without a comparison, for a reason that is recorded.

    It must still load and classify its own example.

    Raises:
        RegistryError: if the reason is empty, or the version is missing or fails on its example.
    """
    if not reason.strip():
        raise RegistryError("A forced promotion needs a reason: add --reason TEXT. It is recorded in the registry.")
    registry = MlflowRegistry(store)
    registry.load(ModelName(name, None, version)).check()
    champion = registry.champion(name)
    if champion == version:
        raise RegistryError(f"{name}/{version} is already the champion.")
    reason = f"{'' if champion else 'first champion, '}by force: {reason.strip()}"
    registry.set_tags(name, version, {"thawline.verdict": "forced", "thawline.reason": reason})
    registry.promote(name, version, judged_against=champion, by=_user(), reason=reason)


def roll_back(store: MlflowStore, *, name: str, to: str | None = None) -> tuple[str, str]:
    """Make the previous champion, or version ``to``, the champion again; returns the versions before and after.

    Raises:
        RegistryError: if there is no previous champion, or if it no longer loads or fails on its example.
    """
    registry = MlflowRegistry(store)
    former, now = registry.former_champion(name), registry.champion(name)
    if now is None:
        raise RegistryError(f"{name!r} has no champion. Choose one: thawline promote {name} --version V")
    before = registry.resolve(ModelName(name, None, to)) if to else former
    if before is None:
        raise RegistryError(
            f"{name}/{now} is the first champion, so there is no previous one. Name a version with --to V."
        )
    if before == now:
        raise RegistryError(f"{name}/{before} is already the champion.")
    registry.load(ModelName(name, None, before)).check()
    registry.promote(name, before, judged_against=now, by=_user(), reason=f"rolled back from version {now}")
    return now, before


def record(store: MlflowStore, outcome: PromotionOutcome, metric: str) -> None:
    """Record the evidence in the challenger's run and version, before any alias moves."""
    registry = MlflowRegistry(store)
    evidence = {
        "thawline.verdict": outcome.verdict.outcome.value,
        "thawline.reason": outcome.verdict.reason,
        "thawline.judged_against": outcome.champion_version or "none",
        TESTED_ON: f"{len(outcome.challenger.labels)} test {outcome.challenger.kind}",
        **{f"test/{key}": f"{value:.6g}" for key, value in outcome.challenger.metrics.items()},
    }
    if outcome.champion is not None:
        evidence[f"champion/{metric}"] = f"{outcome.champion.metrics[metric]:.6g}"
    if outcome.majority is not None:
        evidence[f"majority_class/{metric}"] = f"{outcome.majority.metrics[metric]:.6g}"
    registry.set_tags(outcome.name, outcome.version, evidence)
    tags = registry.tags(outcome.name, outcome.version)
    folder = verdict_folder(tags)
    try:
        parent = store.client.get_run(outcome.run_id).data.tags.get("mlflow.parentRunId")
        card = version_card(store, outcome, tags, parent)
        store.client.update_model_version(outcome.name, outcome.version, description=card)
        store.client.log_text(outcome.run_id, json.dumps(outcome.as_dict(), indent=2), f"{folder}/verdict.json")
        store.client.log_text(outcome.run_id, outcome.as_markdown(), f"{folder}/verdict.md")
    except Exception as error:
        raise RegistryError(f"The verdict could not be recorded: {first_line(error)}") from error


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def _log_test_metrics(
    store: MlflowStore,
    run_id: str,
    scores: Scores,
    model_id: str | None,
    dataset: tuple[str, str] | None,
    prefix: str,
) -> None:
    """Log test metrics to the run and to the logged model, for comparisons in MLflow."""
    from mlflow.entities import Metric

    name, digest = dataset or (None, None)
    belongs = {"model_id": model_id, "dataset_name": name, "dataset_digest": digest[:36] if digest else None}
    values = {f"{prefix}/{key}": value for key, value in scores.metrics.items()}
    values |= {metric_key(f"{prefix}/recall/{key}"): value for key, value in scores.recalls.items()}
    timestamp = now_ms()
    try:
        store.client.log_batch(
            run_id, metrics=[Metric(key, value, timestamp, 0, **belongs) for key, value in values.items()]
        )
    except Exception as error:
        raise RegistryError(f"The test metrics could not be recorded: {first_line(error)}") from error


def _calibration(model: PackagedModel) -> Mapping[str, Any] | None:
    """Calibration of a package; older packages have the key ``images`` instead of ``items``."""
    calibration = dict(model.calibration or {})
    if "images" in calibration:
        calibration["items"] = calibration.pop("images")
    return calibration or None
