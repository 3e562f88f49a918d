"""Benefit and cost of augmentation on real photographs: none, a few stored views, a new view every epoch."""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from thawline import backbones
from thawline.activations import ActivationInputs, ActivationKey, ActivationStore
from thawline.activations.fill import fill
from thawline.config import DataConfig, TrainConfig
from thawline.data import decoded, scan
from thawline.training import (
    Augmentation,
    CheckpointFolder,
    Decision,
    Hyperparameters,
    ImageInputs,
    Inputs,
    Runtime,
    fit,
    runtime_for,
    set_up_process,
)

SHARED = Path(os.environ.get("THAWLINE_TEST_DATA", Path(__file__).resolve().parents[2] / "shared"))
BACKBONE = "squeezenet1_0"
WEIGHTS = SHARED / "weights" / "squeezenet1_0_imagenet.safetensors"
RATES = {4: 1e-3, 3: 3e-4, 2: 3e-4, 0: 2e-4}
"""Learning rate by freeze depth, close to the best of a small search without augmentation."""


def main() -> None:
    """Train with every kind of augmentation at every depth with every seed, interleaved, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=["none", "light:2", "light:4", "light", "standard:4", "standard"],
        help="train.augmentation, optionally with a colon and train.views; without views every epoch has a new one",
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of all kinds, such as mixup=0.2")
    parser.add_argument("--depths", nargs="+", type=int, default=[4, 3, 2])
    options = parser.parse_args()
    if not WEIGHTS.exists():
        sys.exit(f"There is no {WEIGHTS}. Set THAWLINE_TEST_DATA to the folder of photographs and weights.")
    with tempfile.TemporaryDirectory() as folder:
        cells: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
        bench = Bench(options, Path(folder))
        for seed, depth, kind in itertools.product(range(options.seeds), options.depths, options.kinds):
            cells.setdefault((kind, depth), []).append(bench.train(kind, depth, seed))
            print(seed, depth, kind, cells[kind, depth][-1], flush=True)
    print("\n| augmentation | freeze depth | validation accuracy | seconds to store | seconds per epoch |")
    print("|---|---|---|---|---|")
    for (kind, depth), runs in cells.items():
        accuracy, stored, epoch = zip(*runs, strict=True)
        print(
            f"| {kind} | {depth} | {statistics.mean(accuracy):.4f} ({min(accuracy):.4f} to {max(accuracy):.4f}) "
            f"| {statistics.median(stored):.1f} | {statistics.median(epoch):.2f} |"
        )


class Bench:
    """The photographs, decoded once."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        manifest = scan(DataConfig(path=SHARED / "data" / "clothing"))
        preprocessing = backbones.preprocessing_of(BACKBONE, image_size=options.image_size)
        assert isinstance(preprocessing, backbones.Preprocessing)
        self.preprocessing = preprocessing
        self.images = decoded(
            manifest,
            resize_size=self.preprocessing.resize_size,
            crop_size=self.preprocessing.image_size,
            interpolation=self.preprocessing.interpolation,
            crop_mode=self.preprocessing.crop_mode,
            cache_dir=folder / "decoded",
        )
        self.classes = len(manifest.classes)

    def train(self, kind: str, depth: int, seed: int) -> tuple[float, float, float]:
        """Mean accuracy of the last two epochs, seconds for filling the store, median seconds per epoch."""
        options = self.options
        augmentation_kind, _, views = kind.partition(":")
        settings = {"epochs": options.epochs, "device": "cpu", "precision": "bf16", "augmentation": augmentation_kind}
        settings |= {"views": views or None} | dict(assignment.split("=", 1) for assignment in options.set)
        config = TrainConfig.model_validate(settings)
        runtime = runtime_for(config)
        set_up_process(threads=None, seed=seed)
        backbone = backbones.create(
            BACKBONE, num_classes=self.classes, weights=str(WEIGHTS), image_size=options.image_size, seed=seed
        )
        augmentation = Augmentation.of(config, seed)
        train = ImageInputs(*self.images.split("train"), self.preprocessing, runtime, augmentation)
        validation = ImageInputs(*self.images.split("validation"), self.preprocessing, runtime)
        began = time.perf_counter()
        inputs = (
            stored(self.folder, backbone, train, depth, runtime, augmentation),
            stored(self.folder, backbone, validation, depth, runtime, Augmentation()),
        )
        filled = time.perf_counter() - began
        with tempfile.TemporaryDirectory(dir=self.folder) as checkpoints:
            result = fit(
                backbone,
                lambda depth: inputs,
                hyperparameters=Hyperparameters(BACKBONE, depth, RATES[depth], 0.01, 1.0, "adamw"),
                config=config,
                metric="accuracy",
                runtime=runtime,
                checkpoints=CheckpointFolder(Path(checkpoints), keep=1, maximise=True),
                seed=seed,
                on_epoch=lambda result: Decision.CONTINUE,
            )
        last = [epoch.metrics["val/accuracy"] for epoch in result.history[-2:]]
        seconds = [epoch.metrics["time/epoch_seconds"] for epoch in result.history]
        return statistics.mean(last), filled, statistics.median(seconds)


def stored(
    folder: Path, backbone: backbones.Backbone, images: ImageInputs, depth: int, runtime: Runtime, own: Augmentation
) -> Inputs:
    """The inputs after ``depth`` layer groups, one file per view; images if nothing can be stored."""
    if depth == 0 or not own.is_storable:
        return images
    with tempfile.TemporaryDirectory(dir=folder) as each:
        store = ActivationStore(Path(each))
        views = []
        for view in own.stored_views:
            key = ActivationKey(
                data=str(id(images)),
                split="",
                view=str(view),
                backbone=BACKBONE,
                weights=backbone.weights_digest,
                boundary=depth,
                preprocessing=None,
                computed_in=str(runtime),
                stored_as="bfloat16",
                libraries="",
            )
            fill(store, backbone, images, view or 0, {depth: key}, runtime, batch_size=32)
            opened = store.open(key)
            assert opened is not None
            views.append(opened)
        return ActivationInputs(views, images.labels, depth, runtime, own)  # a memory map outlives its file's name


if __name__ == "__main__":
    main()
