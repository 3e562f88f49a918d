"""A challenger against the champion: both scored now, on the same test images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from thawline.exceptions import RegistryError
from thawline.registry.gate import Outcome, Verdict, decide
from thawline.registry.mlflow import CHALLENGER, MlflowRegistry, ModelName, PackagedModel, Prediction
from thawline.tracking import MlflowStore, metric_key
from thawline.tracking.mlflow import first_line, now_ms

__all__ = ["PromotionOutcome", "Scores", "promote_if_better", "score"]

_SMALLEST_PROBABILITY = 1e-12
"""What a class counts for in the loss if the model does not know it or gives it nothing."""


@dataclass(frozen=True)
class Scores:
    """How a model did on labelled images, class names being compared with class names."""

    metrics: dict[str, float]
    """``loss``, ``accuracy``, ``balanced_accuracy``, ``macro_f1``; with more than five classes, ``top5_accuracy``."""
    recalls: dict[str, float]
    """Recall of every class that occurs among the labels."""
    predicted: tuple[str, ...]
    """The class predicted for each image."""


@dataclass(frozen=True)
class PromotionOutcome:
    """What was decided, and on what evidence."""

    name: str
    version: str
    """Of the challenger."""
    verdict: Verdict
    challenger: Scores
    champion_version: str | None
    """Of the champion that the challenger was judged against."""
    champion: Scores | None
    """Measured now on the same images; ``None`` if there was no champion, or if it could not be scored."""


def score(model: PackagedModel, images: Sequence[bytes | Path], labels: Sequence[str]) -> Scores:
    """Classify images and compare with their labels.

    The labels' classes count, not the model's: a class that the model does not know is always missed. The loss is the
    mean of ``-log`` of the true class's probability (at least 1e-12), the rest is scikit-learn's.

    Args:
        model: the model.
        images: encoded images or image files, at least one.
        labels: class names, as many as images.

    Raises:
        RegistryError: if an image cannot be read by the model, naming it.
    """
    from sklearn.metrics import f1_score, recall_score

    if not images or len(images) != len(labels):
        raise RegistryError(f"One label for each of at least one image must hold, got {len(images)} and {len(labels)}.")
    predictions: list[Prediction] = []
    for image, answer in zip(images, model.predict(images), strict=True):
        if isinstance(answer, str):
            which = image if isinstance(image, Path) else f"image {len(predictions)}"
            raise RegistryError(f"{model.name} cannot read {which}: {answer}")
        predictions.append(answer)
    truth, predicted = np.array(labels), np.array([prediction.class_name for prediction in predictions])
    classes = sorted(set(labels))
    recalls = recall_score(truth, predicted, labels=classes, average=None, zero_division=0.0)
    likelihoods = [
        max(prediction.probabilities.get(label, 0.0), _SMALLEST_PROBABILITY)
        for prediction, label in zip(predictions, labels, strict=True)
    ]
    metrics = {
        "loss": -sum(math.log(likelihood) for likelihood in likelihoods) / len(labels),
        "accuracy": float((truth == predicted).mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0.0)),
    }
    if max(len(prediction.probabilities) for prediction in predictions) > 5:
        hits = [
            label in sorted(prediction.probabilities, key=prediction.probabilities.__getitem__, reverse=True)[:5]
            for prediction, label in zip(predictions, labels, strict=True)
        ]
        metrics["top5_accuracy"] = sum(hits) / len(hits)
    return Scores(metrics, dict(zip(classes, map(float, recalls), strict=True)), tuple(map(str, predicted)))


def promote_if_better(
    store: MlflowStore,
    *,
    name: str,
    model_uri: str,
    run_id: str,
    study: str,
    test_images: Sequence[bytes | Path],
    test_labels: Sequence[str],
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1"],
    tags: Mapping[str, str] | None = None,
) -> PromotionOutcome:
    """Register the model as challenger, score it and the champion on the test images, and promote it if it is better.

    Both models are the packaged ones, loaded from the registry as a server would load them. Doing it again for the same
    study and run registers no second version. The challenger's metrics go to its run as ``test/accuracy`` and so on,
    the verdict to the version's tags.

    Args:
        store: the MLflow store.
        name: registered model.
        model_uri: of :func:`~thawline.registry.packaging.log_packaged_model`; not used if the version exists.
        run_id: the run that trained the challenger.
        study: its study.
        test_images: the held-out test split: encoded images or image files.
        test_labels: class names, as many.
        metric: what to compare.
        tags: of the version, such as backbone, freeze depth and data digest.

    Raises:
        RegistryError: if the challenger cannot be scored, the registry fails, or another challenger became champion
            meanwhile.
    """
    registry = MlflowRegistry(store)
    version = registry.find_version(name, study=study, run_id=run_id)
    if version is None:
        version = registry.register(name, model_uri, run_id=run_id, study=study, tags=tags or {})
    registry.set_alias(name, CHALLENGER, version)
    challenger = score(registry.load(ModelName(name, None, version)), test_images, test_labels)
    _log_test_metrics(store, run_id, challenger)

    champion_version = registry.champion(name)
    champion, champion_error = None, None
    if champion_version == version:
        champion = challenger
        verdict = Verdict(Outcome.HOLD, f"it is the champion already; its {metric} is {challenger.metrics[metric]:.4f}")
    else:
        if champion_version is not None:
            try:
                champion = score(registry.load(ModelName(name, None, champion_version)), test_images, test_labels)
            except Exception as error:  # whatever is registered there, perhaps not even a model of Thawline
                champion_error = f"{type(error).__name__}: {first_line(error)}"
        verdict = decide(
            metric=metric,
            challenger=challenger.metrics[metric],
            champion=None if champion is None else champion.metrics[metric],
            champion_error=champion_error,
        )
        registry.set_tags(name, version, _evidence(verdict, metric, challenger, champion_version, champion))
        if verdict.outcome is Outcome.PROMOTE:
            registry.promote(name, version, judged_against=champion_version)
    return PromotionOutcome(name, version, verdict, challenger, champion_version, champion)


def _evidence(
    verdict: Verdict, metric: str, challenger: Scores, champion_version: str | None, champion: Scores | None
) -> dict[str, str]:
    evidence = {
        "thawline.verdict": verdict.outcome.value,
        "thawline.reason": verdict.reason,
        "thawline.judged_against": champion_version or "none",
        **{f"test/{key}": f"{value:.6g}" for key, value in challenger.metrics.items()},
    }
    if champion is not None:
        evidence[f"champion/{metric}"] = f"{champion.metrics[metric]:.6g}"
    return evidence


def _log_test_metrics(store: MlflowStore, run_id: str, scores: Scores) -> None:
    from mlflow.entities import Metric

    values = {f"test/{key}": value for key, value in scores.metrics.items()}
    values |= {metric_key(f"test/recall/{key}"): value for key, value in scores.recalls.items()}
    timestamp = now_ms()
    try:
        store.client.log_batch(run_id, metrics=[Metric(key, value, timestamp, 0) for key, value in values.items()])
    except Exception as error:
        raise RegistryError(f"The test metrics could not be recorded: {first_line(error)}") from error
