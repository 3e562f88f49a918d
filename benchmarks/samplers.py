"""Compare Optuna's samplers and pruners on a measured surface of freeze depth and learning rate.

First a grid of real trials is trained once: scikit-learn's digits, the starter backbone, every freeze depth, learning
rates half a decade apart, each with its full curve. Then every pair of sampler and pruner searches that surface many
times: a trial's curve is interpolated from the grid in (depth, log rate), plus noise of the same size as between seeds.
This costs milliseconds per trial, which allows many repetitions.

    python benchmarks/samplers.py [--surface FILE] [--repetitions N]
"""

import argparse
import json
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits

from thawline import backbones
from thawline.config import TrainConfig
from thawline.search.gp_sampler import GPSamplerWithPruned
from thawline.training import (
    CheckpointFolder,
    Decision,
    Hyperparameters,
    ImageInputs,
    fit,
    runtime_for,
    set_up_process,
)

RATES = [10 ** (exponent / 2) for exponent in range(-8, -3)]
EPOCHS, SIZE, BACKBONE = 4, 32, "mobilenet_v3_small"
NOISE = 0.008
"""Standard deviation of validation accuracy over seeds, measured on this surface's best rows."""

SAMPLERS: dict[str, tuple[Callable[..., BaseSampler], dict[str, Any]]] = {
    "GPSampler": (GPSampler, {}),
    "GPSampler, 4 random trials first": (GPSampler, {"n_startup_trials": 4}),
    "GPSampler that counts pruned trials, 4 random trials first": (GPSamplerWithPruned, {"n_startup_trials": 4}),
    "TPESampler": (TPESampler, {}),
    "TPESampler, 4 random trials first": (TPESampler, {"n_startup_trials": 4}),
    "RandomSampler": (RandomSampler, {}),
}
PRUNERS: dict[str, tuple[Callable[..., BasePruner], dict[str, Any]]] = {
    "NopPruner": (NopPruner, {}),
    "MedianPruner": (MedianPruner, {"n_startup_trials": 4, "n_warmup_steps": 2}),
    "MedianPruner, 8 trials first": (MedianPruner, {"n_startup_trials": 8, "n_warmup_steps": 2}),
    "SuccessiveHalvingPruner": (SuccessiveHalvingPruner, {}),
    "HyperbandPruner": (HyperbandPruner, {"max_resource": EPOCHS}),
}


def main() -> None:
    """Measure, and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surface", type=Path, default=Path(".thawline/benchmarks/surface.json"))
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--batches", action="store_true", help="compare numbers of trials drawn at once instead")
    arguments = parser.parse_args()
    if not arguments.surface.exists():
        arguments.surface.parent.mkdir(parents=True, exist_ok=True)
        arguments.surface.write_text(json.dumps(measure_surface()))
    surface = np.array(json.loads(arguments.surface.read_text()))
    print(f"surface: {surface.shape[0]} depths x {surface.shape[1]} rates x {surface.shape[2]} epochs")
    print(f"best value on the grid: {surface[:, :, -1].max():.4f}; median {np.median(surface[:, :, -1]):.4f}\n")
    if arguments.batches:
        print(batches(surface, arguments.repetitions))
    else:
        print(markdown(surface, arguments.repetitions))


def measure_surface() -> list[list[list[float]]]:
    """Validation accuracy ``[depth, rate, epoch]`` of real trials."""
    digits = load_digits()
    pixels = np.kron(digits.images * (255 / 16), np.ones((4, 4)))
    images = np.repeat(pixels[..., None], 3, axis=3).round().astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    train, validation = order[:200], order[200:500]
    config = TrainConfig(epochs=EPOCHS, batch_size=32, device="cpu")
    preprocessing = backbones.preprocessing_of(BACKBONE, weights="starter", image_size=SIZE)
    assert isinstance(preprocessing, backbones.Preprocessing)

    def inputs(rows: np.ndarray) -> ImageInputs:
        return ImageInputs(images[rows], digits.target[rows].astype(np.int64), preprocessing, runtime_for(config))

    set_up_process(threads=1, seed=0)

    def curve(depth: int, rate: float) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            result = fit(
                backbones.create(BACKBONE, num_classes=10, weights="starter", image_size=SIZE),
                lambda depth: (inputs(train), inputs(validation)),
                hyperparameters=Hyperparameters(BACKBONE, depth, rate, 0.01, 1.0, "adamw"),
                config=config,
                metric="accuracy",
                runtime=runtime_for(config),
                checkpoints=CheckpointFolder(Path(folder), keep=1, maximise=True),
                seed=0,
                on_epoch=lambda result: Decision.CONTINUE,
            )
        return [epoch.metrics["val/accuracy"] for epoch in result.history]

    depths = range(backbones.depth_of(BACKBONE) + 1)
    grid = [(depth, rate) for depth in depths for rate in RATES]
    curves = [curve(*point) for point in track(grid, "training the grid", console=Console(stderr=True))]
    return np.array(curves).reshape(len(depths), len(RATES), EPOCHS).tolist()


def interpolated(surface: np.ndarray, depth: int, rate: float) -> np.ndarray:
    """The curve ``[epoch]`` of a depth and a rate, interpolated between grid rates."""
    place = (math.log10(rate) - math.log10(RATES[0])) * 2
    left = min(int(place), len(RATES) - 2)
    share = place - left
    return np.asarray((1 - share) * surface[depth, left] + share * surface[depth, left + 1])


def search(
    surface: np.ndarray, sampler: str, pruner: str, trials: int, seed: int, batch: int = 1
) -> tuple[float, float]:
    """Simulate one search; returns the true final value of its best trial, and the share of trained epochs.

    ``batch`` trials are drawn at once; those with the largest freeze depth, which are the cheapest, run first.
    """
    random = np.random.default_rng(seed)
    sampler_class, sampler_options = SAMPLERS[sampler]
    pruner_class, pruner_options = PRUNERS[pruner]
    study = optuna.create_study(
        direction="maximize",
        sampler=sampler_class(seed=seed, **sampler_options),
        pruner=pruner_class(**pruner_options),
    )
    depth = surface.shape[0] - 1
    study.enqueue_trial({"freeze_depth": depth, "learning_rate": 1e-3})
    epochs = 0
    for start in range(0, trials, batch):
        drawn = []
        for _ in range(min(batch, trials - start)):
            trial = study.ask()
            place = trial.suggest_int("freeze_depth", 0, depth)
            drawn.append((place, trial.suggest_float("learning_rate", RATES[0], RATES[-1], log=True), trial))
        for place, rate, trial in sorted(drawn, key=lambda each: -each[0]):
            curve = interpolated(surface, place, rate)
            seen = np.clip(curve + random.normal(0, NOISE), 0, 1)
            for epoch, value in enumerate(seen, 1):
                epochs += 1
                trial.report(float(value), epoch)
                if epoch < EPOCHS and trial.should_prune():
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    break
            else:
                study.tell(trial, float(seen.max()))
    best = study.best_trial.params
    return float(interpolated(surface, best["freeze_depth"], best["learning_rate"]).max()), epochs / (trials * EPOCHS)


def markdown(surface: np.ndarray, repetitions: int) -> str:
    """True value of the chosen trial (mean and range over repetitions) and share of epochs, by sampler and pruner."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    lines = ["| sampler | pruner | 10 trials | 20 trials | epochs trained |", "|---|---|---|---|---|"]
    pairs = [(sampler, pruner) for sampler in SAMPLERS for pruner in PRUNERS]
    for sampler, pruner in track(pairs, "searching", console=Console(stderr=True)):
        cells, share = [], 0.0
        for trials in (10, 20):
            results = [search(surface, sampler, pruner, trials, seed) for seed in range(repetitions)]
            values = [value for value, _ in results]
            cells.append(f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})")
            share = statistics.mean(epochs for _, epochs in results)
        lines.append(f"| {sampler} | {pruner} | {cells[0]} | {cells[1]} | {share:.0%} |")
    return "\n".join(lines)


def batches(surface: np.ndarray, repetitions: int) -> str:
    """The default sampler and pruner with several trials drawn at once."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    sampler, pruner = "GPSampler that counts pruned trials, 4 random trials first", "MedianPruner, 8 trials first"
    lines = ["| drawn at once | 10 trials | 20 trials | 30 trials | epochs trained |", "|---|---|---|---|---|"]
    for batch in track((1, 4, 8), "searching", console=Console(stderr=True)):
        cells, share = [], 0.0
        for trials in (10, 20, 30):
            results = [search(surface, sampler, pruner, trials, seed, batch) for seed in range(repetitions)]
            values = [value for value, _ in results]
            cells.append(f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})")
            share = statistics.mean(epochs for _, epochs in results)
        lines.append(f"| {batch} | {' | '.join(cells)} | {share:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
