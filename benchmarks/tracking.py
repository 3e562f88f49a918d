"""Cost of tracking: seconds of a trial with everything recorded, relative to one without records.

Trials are complete: backbone, training, trackers, and the final wait for unsent records. The kinds take turns, and
every ratio is within one turn.
"""

import argparse
import dataclasses
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from thawline import backbones
from thawline.activations import StoredSplits
from thawline.config import SearchConfig
from thawline.data import decoded, scan
from thawline.search import trial
from thawline.search.spec import TrialSpec
from thawline.search.trial import run_trial
from thawline.search.trial_result import trial_folder
from thawline.tracking import CompositeTracker, connect, start_study_run
from thawline.training import Augmentation, Decision, Hyperparameters

SHARED = Path(os.environ.get("THAWLINE_TEST_DATA", Path(__file__).resolve().parents[2] / "shared"))
CLASSES = 10
KINDS: dict[str, dict[str, Any]] = {
    "nothing": {"observe": False, "tensorboard": False, "system_metrics": False},
    "scalars": {"observe": False, "tensorboard": True, "system_metrics": True},
    "everything": {"observe": True, "tensorboard": True, "system_metrics": True},
}
"""Kinds of records: with ``nothing`` not even MLflow is used; ``scalars`` are one number per epoch in every tracker."""


def main() -> None:
    """Run every kind of trial, interleaved, for each backbone, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["mobilenet_v3_small", "resnet18"])
    parser.add_argument("--images", type=int, default=500, help="training images, with a fifth as many for validation")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--depth", type=int, default=0, help="freeze depth; 0 observes the most")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if not (SHARED / "data" / "clothing").exists():
        sys.exit(f"There is no {SHARED / 'data' / 'clothing'}. Set THAWLINE_TEST_DATA to the folder of photographs.")
    print("| backbone | recorded | seconds per trial | relative to nothing | relative to scalars |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        data = subset(Path(folder) / "photographs", options.images)
        for name in options.backbones:
            measure(name, data, Path(folder) / name, options)


def subset(folder: Path, images: int) -> Path:
    """The first images of every class, in equal parts."""
    for split, count in (("train", images), ("validation", images // 5), ("test", CLASSES)):
        for kind in sorted((SHARED / "data" / "clothing" / split).iterdir()):
            if kind.is_dir():
                (folder / split / kind.name).mkdir(parents=True)
                for image in sorted(kind.iterdir())[: count // CLASSES]:
                    shutil.copy(image, folder / split / kind.name / image.name)
    return folder


def measure(name: str, data: Path, home: Path, options: argparse.Namespace) -> None:
    """Measure all kinds for one backbone; the first turn is for warm-up."""
    spec = prepare(name, data, home, options)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(options.repeats + 1):
        for i, kind in enumerate(KINDS):
            taken = run(spec, kind, turn * len(KINDS) + i)
            if turn:
                seconds[kind].append(taken)
    for kind, times in seconds.items():
        ratios = [
            statistics.median(mine / theirs for mine, theirs in zip(times, seconds[other], strict=True))
            for other in ("nothing", "scalars")
        ]
        spread = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        print(f"| {name} | {kind} | {spread} | {ratios[0]:.3f} | {ratios[1]:.3f} |", flush=True)


def prepare(name: str, data: Path, home: Path, options: argparse.Namespace) -> TrialSpec:
    """A trial on decoded images, in its own study."""
    weights = "starter" if "starter" in backbones.describe(name).weights else "none"
    config = SearchConfig.build(
        {
            "data": {"path": str(data)},
            "backbone": {"name": name, "weights": weights, "image_size": options.image_size},
            "train": {"epochs": options.epochs, "device": options.device, "early_stopping": None},
            "study": {"name": "benchmark"},
        }
    )
    manifest = scan(config.data)
    preprocessing = backbones.preprocessing_of(name, weights=weights, image_size=options.image_size)
    assert isinstance(preprocessing, backbones.Preprocessing)
    images = decoded(
        manifest,
        resize_size=preprocessing.resize_size,
        crop_size=preprocessing.image_size,
        interpolation=preprocessing.interpolation,
        crop_mode=preprocessing.crop_mode,
        cache_dir=home / "decoded",
    )
    store = connect(f"sqlite:///{home}/mlflow.db", home=home, experiment="benchmark")
    return TrialSpec(
        number=0,
        hyperparameters=Hyperparameters(name, options.depth, 1e-3, 0.01, 1.0, "adamw"),
        config=config,
        study="benchmark",
        classes=manifest.classes,
        activations=StoredSplits(
            folder=home / "activations",
            budget=None,
            plan=None,
            data=images.path,
            backbone=name,
            weights="0" * 16,
            preprocessing=preprocessing,
            augmentations=(Augmentation(),),
        ),
        home=home,
        store=store,
        parent_run_id=start_study_run(store, study="benchmark", params={}, tags={}),
        threads=options.threads,
    )


def run(spec: TrialSpec, kind: str, number: int) -> float:
    """Seconds of one trial."""
    tracking = spec.config.tracking.model_copy(update=KINDS[kind])
    config = spec.config.model_copy(update={"tracking": tracking})
    spec = dataclasses.replace(spec, number=number, config=config)
    nobody = patch.object(trial, "trackers_of", lambda spec: (Unreached(), CompositeTracker([])))
    began = time.perf_counter()
    with nobody if kind == "nothing" else nullcontext():
        result = run_trial(spec, lambda epoch: Decision.CONTINUE)
    seconds = time.perf_counter() - began
    assert result.state == "complete", result.ending
    assert result.unsent == 0, result.unkept
    shutil.rmtree(trial_folder(spec.home, spec.study, number))
    return seconds


class Unreached:
    """Replaces MLflow's tracker."""

    run_id = None


if __name__ == "__main__":
    main()
