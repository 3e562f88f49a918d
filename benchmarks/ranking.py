"""How often a linear probe on frozen features ranks the best backbone after fine-tuning among its first two.

Tasks are random subsets of the clothing photographs: some of the classes and images. Candidates are networks of graded
quality: SqueezeNet with ImageNet weights, the same with added noise (a multiple of each tensor's standard deviation),
the shipped MobileNetV3 and a random one. Each candidate is fine-tuned at three depths and two learning rates; its
result is the mean of the two best validation accuracies. LogME (You et al., ICML 2021) is computed on the same features
for comparison.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from thawline import backbones
from thawline.config import DataConfig, TrainConfig
from thawline.data import DecodedImages, Manifest, decoded, scan
from thawline.training import (
    CheckpointFolder,
    Decision,
    Hyperparameters,
    ImageInputs,
    fit,
    head_features,
    runtime_for,
    set_up_process,
)

SHARED = Path(os.environ.get("THAWLINE_TEST_DATA", Path(__file__).resolve().parents[2] / "shared"))
WEIGHTS = SHARED / "weights" / "squeezenet1_0_imagenet.safetensors"
NOISE = (0.3, 0.6, 1.0)
HEAD_RATES, RATES = (1e-2, 3e-3), (1e-3, 3e-4)


@dataclass(frozen=True)
class Candidate:
    """A backbone with weights."""

    title: str
    name: str
    weights: str


@dataclass(frozen=True)
class Task:
    """Some classes of the photographs, with some images of each."""

    train: ImageInputs
    validation: ImageInputs
    classes: int


def main() -> None:
    """Rank and fine-tune all candidates on every task, and count hits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=list(range(8)), help="numbers of the tasks")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=40, help="training images per class")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="precision of fine-tuning")
    parser.add_argument("--out", type=Path, help="JSON lines to write, one per task; existing tasks are skipped")
    options = parser.parse_args()
    if not WEIGHTS.exists():
        sys.exit(f"There is no {WEIGHTS}. Set THAWLINE_TEST_DATA to the folder of photographs and weights.")
    known = options.out.read_text().splitlines() if options.out and options.out.exists() else []
    results: dict[int, dict[str, dict[str, float]]] = {int(task): values for task, values in map(json.loads, known)}
    with tempfile.TemporaryDirectory() as folder:
        candidates = make_candidates(Path(folder))
        for number in options.tasks:
            if number not in results:
                results[number] = compared(options, candidates, number, Path(folder))
                if options.out:
                    with options.out.open("a") as file:
                        file.write(json.dumps([number, results[number]]) + "\n")
            print(f"task {number}:", "; ".join(f"{way} {_shown(values)}" for way, values in results[number].items()))
            sys.stdout.flush()
    for way in ("probe", "LogME"):
        places = [place_of_winner(result["reached"], result[way]) for result in results.values()]
        print(
            f"{way}: the winner is first in {places.count(0)} and among the first two in "
            f"{sum(place < 2 for place in places)} of {len(places)} tasks"
        )


def compared(
    options: argparse.Namespace, candidates: Sequence[Candidate], number: int, folder: Path
) -> dict[str, dict[str, float]]:
    """The result of each candidate on one task, and its rankings."""
    values: dict[str, dict[str, float]] = {"reached": {}, "probe": {}, "LogME": {}}
    for candidate in candidates:
        task = make_task(options, candidate, number, folder)
        values["probe"][candidate.title], values["LogME"][candidate.title] = rank(options, candidate, task)
        values["reached"][candidate.title] = best_of(options, candidate, task, number)
    return values


def place_of_winner(reached: dict[str, float], ranking: dict[str, float]) -> int:
    """Rank of the best candidate, counted from 0."""
    winner = max(reached, key=reached.__getitem__)
    return sorted(ranking, key=lambda title: -ranking[title]).index(winner)


def _shown(values: dict[str, float]) -> str:
    return ", ".join(f"{title} {value:.3f}" for title, value in sorted(values.items(), key=lambda each: -each[1]))


def make_candidates(folder: Path) -> list[Candidate]:
    """The pretrained network, increasingly degraded copies of it, and two others."""
    candidates = [Candidate("squeezenet", "squeezenet1_0", str(WEIGHTS))]
    weights = load_file(WEIGHTS)
    for noise in NOISE:
        generator = torch.Generator().manual_seed(int(100 * noise))
        spoilt = {
            name: value + noise * value.std() * torch.randn(value.shape, generator=generator)
            if value.ndim > 1
            else value
            for name, value in weights.items()
        }
        file = folder / f"noise-{noise}.safetensors"
        save_file(spoilt, file)
        candidates.append(Candidate(f"noise {noise}", "squeezenet1_0", str(file)))
    candidates.append(Candidate("starter", "mobilenet_v3_small", "starter"))
    candidates.append(Candidate("random", "squeezenet1_0", "none"))
    return candidates


@cache
def photographs() -> Manifest:
    """The manifest of all photographs; reading them takes a while."""
    return scan(DataConfig(path=SHARED / "data" / "clothing"))


def make_task(options: argparse.Namespace, candidate: Candidate, number: int, folder: Path) -> Task:
    """The same images for every candidate, with its preprocessing."""
    preprocessing = backbones.preprocessing_of(candidate.name, weights=candidate.weights, image_size=options.image_size)
    assert isinstance(preprocessing, backbones.Preprocessing)
    manifest = photographs()
    images: DecodedImages = decoded(
        manifest,
        resize_size=preprocessing.resize_size,
        crop_size=preprocessing.image_size,
        interpolation=preprocessing.interpolation,
        crop_mode=preprocessing.crop_mode,
        cache_dir=folder / "decoded",
    )
    random = np.random.default_rng(number)
    chosen = random.choice(len(manifest.classes), int(random.integers(2, 7)), replace=False)
    parts = []
    for split, most in (("train", options.images), ("validation", 10**6)):
        pixels, labels = images.split(split)  # type: ignore[arg-type]
        rows = np.sort(np.concatenate([random.permutation(np.flatnonzero(labels == label))[:most] for label in chosen]))
        new = np.searchsorted(np.sort(chosen), labels[rows])
        parts.append(
            ImageInputs(
                np.array(pixels[rows]), new, preprocessing, runtime_for(TrainConfig(device="cpu", precision="fp32"))
            )
        )
    return Task(parts[0], parts[1], len(chosen))


def build(options: argparse.Namespace, candidate: Candidate, task: Task, seed: int) -> backbones.Backbone:
    """Build the candidate with a new head."""
    return backbones.create(
        candidate.name, num_classes=task.classes, weights=candidate.weights, image_size=options.image_size, seed=seed
    )


def rank(options: argparse.Namespace, candidate: Candidate, task: Task) -> tuple[float, float]:
    """Validation accuracy of a linear probe, and LogME of the training features."""
    set_up_process(threads=None, seed=0)
    backbone = build(options, candidate, task, 0)
    runtime = runtime_for(TrainConfig(device="cpu", precision="fp32"))
    train, validation = (
        head_features(backbone, inputs, runtime, 64, Path(tempfile.gettempdir())).values
        for inputs in (task.train, task.validation)
    )
    best = 0.0
    for strength in (0.01, 0.1, 1.0):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        model.fit(train, task.train.labels)
        best = max(best, float(model.score(validation, task.validation.labels)))
    return best, log_me(train, task.train.labels)


def log_me(features: np.ndarray, labels: np.ndarray) -> float:
    """Logarithm of the maximum evidence of a linear model from features ``[N, D]``, mean over classes and rows."""
    features = features.astype(np.float64)
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    count, width = features.shape
    evidences = []
    for label in np.unique(labels):
        target = (labels == label).astype(np.float64)
        projected = (left.T @ target) ** 2
        rest = float((target**2).sum() - projected.sum())
        alpha, beta = 1.0, 1.0
        for _ in range(30):
            shrunk = beta * singular**2
            gamma = float((shrunk / (alpha + shrunk)).sum())
            means = float((beta**2 * singular**2 * projected / (alpha + shrunk) ** 2).sum())
            errors = float((projected * (alpha / (alpha + shrunk)) ** 2).sum()) + rest
            alpha, beta = gamma / (means + 1e-12), (count - gamma) / (errors + 1e-12)
        evidence = width / 2 * np.log(alpha) + count / 2 * np.log(beta) - count / 2 * np.log(2 * np.pi)
        logdet = np.log(alpha + beta * singular**2).sum() + max(0, width - len(singular)) * np.log(alpha)
        evidences.append((evidence - beta / 2 * errors - alpha / 2 * means - logdet / 2) / count)
    return float(np.mean(evidences))


def best_of(options: argparse.Namespace, candidate: Candidate, task: Task, seed: int) -> float:
    """Best validation accuracy of fine-tuning at three depths and two rates."""
    config = TrainConfig(device="cpu", precision=options.precision, epochs=options.epochs, batch_size=16)
    deepest = backbones.depth_of(candidate.name)
    values: list[float] = []
    for depth in (deepest, deepest // 2, 0):
        for rate in HEAD_RATES if depth == deepest else RATES:
            set_up_process(threads=None, seed=seed)
            with tempfile.TemporaryDirectory() as checkpoints:
                result = fit(
                    build(options, candidate, task, seed),
                    lambda depth: (task.train, task.validation),
                    hyperparameters=Hyperparameters(candidate.name, depth, rate, 0.01, 1.0, "adamw"),
                    config=config,
                    metric="accuracy",
                    runtime=runtime_for(config),
                    checkpoints=CheckpointFolder(Path(checkpoints), keep=1, maximise=True),
                    seed=seed,
                    on_epoch=lambda result: Decision.CONTINUE,
                )
            values.append(result.value)
    return _mean_of_best(values)


def _mean_of_best(values: Sequence[float]) -> float:
    """Mean of the two best values, to reduce the effect of chance."""
    return float(np.mean(sorted(values)[-2:]))


if __name__ == "__main__":
    main()
