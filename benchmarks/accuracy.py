"""Test accuracy of a search, compared with the head only, full fine-tuning and methods without fine-tuning.

Every design runs with several seeds (of the search, the heads and the batches; the split is the data's own) as
``thawline search`` in its own home. Its test examples are used once, in the promotion of the best model on validation.
Intervals are for differences on the same test examples, from 10,000 bootstrap resamples.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thawline.reports import StudyReport

THAWLINE = Path(sys.executable).parent / "thawline"


@dataclass(frozen=True)
class Result:
    """The result of one design with one seed."""

    design: str
    seed: int
    validation: float
    predicted: list[int]
    """Predicted class of each test example."""
    labels: list[int]
    seconds: float
    chosen: str
    """Description of the chosen model."""


def searched(options: argparse.Namespace, design: str, seed: int) -> Result:
    """One ``thawline search``."""
    settings = {
        "search": [],
        "head": [f"space.freeze_depth=[{options.depth},{options.depth}]"],
        "full": ["space.freeze_depth=[0,0]", f"space.learning_rate=[{options.standard_rate},{options.standard_rate}]"],
    }[design]
    trials = 1 if design == "full" else options.trials
    command = [THAWLINE, "search", options.data, "--backbone", options.backbone, "--weights", options.weights, "--json"]
    command += ["--trials", trials, "--epochs", options.epochs, "--seed", seed, "--study", "study"]
    command += ["--image-size", options.image_size] if options.image_size else []
    metrics = [f"study.metric={options.metric}", f"promotion.metric={options.metric}"]
    for each in [f"train.precision={options.precision}", *metrics, *options.set, *settings]:
        command += ["--set", each]
    with tempfile.TemporaryDirectory(prefix="thawline-accuracy-") as home:
        started = time.perf_counter()
        environment = {**os.environ, "THAWLINE_HOME": home}
        ended = subprocess.run(
            [str(part) for part in command], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        seconds = time.perf_counter() - started
        outcome: dict[str, Any] = json.loads(ended.stdout)
        page = Path(home) / "studies" / "study" / "report" / "report.json"
        test = StudyReport.from_json(page.read_text(encoding="utf-8")).test
    assert test is not None
    best = next(trial for trial in outcome["trials"] if trial["trial"] == outcome["best_trial"])
    return Result(
        design,
        seed,
        float(best["value"]),
        test.predicted.tolist(),
        test.labels.tolist(),
        seconds,
        f"depth {best['freeze_depth']}, rate {best['learning_rate']:.1e}",
    )


def on_features(options: argparse.Namespace, seed: int) -> Result:
    """Logistic regression on the mean of the frozen backbone's features; its penalty is chosen on validation."""
    from thawline import backbones
    from thawline.config import SearchConfig
    from thawline.search import prepare_inputs, read_data
    from thawline.search.prepare import image_preprocessing
    from thawline.training import head_features, open_inputs, runtime_for

    config = SearchConfig.build(
        {
            "data": {"path": str(options.data)},
            "backbone": {"name": options.backbone, "weights": options.weights, "image_size": options.image_size},
            "train": {"precision": "fp32"},
        }
    )
    started = time.perf_counter()
    manifest, runtime = read_data(config), runtime_for(config.train)
    backbone = backbones.create(options.backbone, num_classes=2, weights=options.weights, image_size=options.image_size)
    found = {}
    with tempfile.TemporaryDirectory() as home:
        path = prepare_inputs(config, manifest, Path(home))[options.backbone]
        for split in ("train", "validation", "test"):
            inputs = open_inputs(path, split, image_preprocessing(config, options.backbone), runtime)
            features = head_features(backbone, inputs, runtime, 64, Path(home))
            found[split] = features.values, features.labels
    return _regression("features", seed, found, options.metric, started)


def on_words(options: argparse.Namespace, seed: int) -> Result:
    """Logistic regression on TF-IDF of words and word pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    from thawline.config import DataConfig
    from thawline.data import scan, texts_of

    started = time.perf_counter()
    manifest = scan(DataConfig(path=options.data))
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    found = {}
    for split in ("train", "validation", "test"):
        rows = manifest.of(split)
        texts = texts_of(manifest, rows)
        vectors = vectorizer.fit_transform(texts) if split == "train" else vectorizer.transform(texts)
        found[split] = vectors, np.array([row.label for row in rows])
    return _regression("words", seed, found, options.metric, started)


def _regression(design: str, seed: int, found: dict[str, Any], metric: str, started: float) -> Result:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    candidates = []
    for strength in (0.001, 0.01, 0.1, 1.0, 10.0, 100.0):
        regression = LogisticRegression(C=strength, max_iter=5000)
        steps = [StandardScaler(), regression] if design == "features" else [regression]
        model = make_pipeline(*steps).fit(*found["train"])
        vectors, labels = found["validation"]
        candidates.append((_metric(metric, labels, model.predict(vectors)), strength, model))
    value, strength, model = max(candidates, key=lambda each: each[0])
    vectors, labels = found["test"]
    seconds = time.perf_counter() - started
    return Result(design, seed, value, model.predict(vectors).tolist(), labels.tolist(), seconds, f"C {strength:g}")


def _metric(metric: str, labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    if metric == "macro_f1":
        return float(f1_score(labels, predicted, average="macro", zero_division=0.0))
    return float((labels == predicted).mean())


def _difference(metric: str, ours: Sequence[Result], theirs: Sequence[Result]) -> tuple[float, float, float]:
    """Mean gain on test over seeds, and its 95 % interval over test examples."""
    labels = np.array(ours[0].labels)
    random, gains = np.random.default_rng(0), []
    for resample in range(10_001):
        rows = np.arange(len(labels)) if resample == 0 else random.integers(0, len(labels), len(labels))
        values = [
            np.mean([_metric_fast(metric, labels[rows], np.array(each.predicted)[rows]) for each in side])
            for side in (ours, theirs)
        ]
        gains.append(float(values[0] - values[1]))
    low, high = np.percentile(gains[1:], [2.5, 97.5])
    return gains[0], float(low), float(high)


def _metric_fast(metric: str, labels: np.ndarray, predicted: np.ndarray) -> float:
    """Like :func:`_metric`, without scikit-learn's checks, as it is called 60,000 times."""
    if metric == "accuracy":
        return float((labels == predicted).mean())
    classes = int(max(labels.max(), predicted.max())) + 1
    table = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    both = table.sum(0) + table.sum(1)
    return float((2 * np.diag(table)[both > 0] / both[both > 0]).mean())


def main() -> None:
    """Run all designs, print each result, and finally the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", default="default")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--standard-rate", type=float, default=1e-4, help="learning rate of full fine-tuning")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="precision of fine-tuning")
    parser.add_argument("--metric", default="accuracy", choices=["accuracy", "macro_f1"])
    parser.add_argument("--designs", nargs="+", default=["search", "head", "full", "features"])
    parser.add_argument("--set", action="append", default=[], help="additional settings of all searches, key=value")
    parser.add_argument("--out", type=Path, help="JSON lines to write, one per run; existing runs are skipped")
    options = parser.parse_args()
    from thawline import backbones

    options.depth = backbones.depth_of(options.backbone)
    known = options.out.read_text().splitlines() if options.out and options.out.exists() else []
    results = [Result(**json.loads(line)) for line in known]
    for seed in options.seeds:
        for design in options.designs:
            if any((each.design, each.seed) == (design, seed) for each in results):
                continue
            others = {"features": on_features, "words": on_words}
            result = others[design](options, seed) if design in others else searched(options, design, seed)
            results.append(result)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(result.__dict__) + "\n")
            test = _metric(options.metric, np.array(result.labels), np.array(result.predicted))
            print(
                f"seed {seed} {design}: validation {result.validation:.4f}, test {test:.4f}, "
                f"{result.chosen}, {result.seconds:.0f} s",
                flush=True,
            )
    _print_table(options, results)


def _print_table(options: argparse.Namespace, results: Sequence[Result]) -> None:
    print(f"\n{platform.processor() or platform.machine()}, {len(results[0].labels)} test examples, {options.metric}\n")
    print("| design | validation | test | search's gain on test (95 %) |")
    print("|---|---|---|---|")
    ours = [each for each in results if each.design == "search"]
    for design in options.designs:
        runs = [each for each in results if each.design == design]
        validation = [each.validation for each in runs]
        test = [_metric(options.metric, np.array(each.labels), np.array(each.predicted)) for each in runs]
        gain = ""
        if design != "search" and ours:
            value, low, high = _difference(options.metric, ours, runs)
            gain = f"{value:+.4f} ({low:+.4f} to {high:+.4f})"
        shown = [f"{np.mean(each):.4f} ({min(each):.4f} to {max(each):.4f})" for each in (validation, test)]
        print(f"| {design} | {shown[0]} | {shown[1]} | {gain} |")


if __name__ == "__main__":
    main()
