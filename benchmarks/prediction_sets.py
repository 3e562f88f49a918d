"""Coverage and size of prediction sets on held-out examples.

The data are split several times. Each time a linear probe is fitted on the training part, its penalty, its temperature
and the threshold of the sets are chosen on validation, and the sets are evaluated on test. As in a search whose best
trial is the probe, one validation split is used for all three.

    python benchmarks/prediction_sets.py ../shared/data/clothing --backbone timm/tf_efficientnet_lite0 \
      --weights ../shared/weights/tf_efficientnet_lite0_imagenet.safetensors
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from thawline import environment
from thawline.config import SearchConfig
from thawline.data import scan
from thawline.labels import FrozenFeatures, network_of
from thawline.registry import calibrate, fit_prediction_sets
from thawline.training import Features, fit_probes
from thawline.training.regression import scores_of


@dataclass(frozen=True)
class Run:
    """One split at one coverage."""

    held: float
    """Share of the test sets that contain the true class."""
    size: float
    """Mean number of classes of a set."""
    alone: float
    """Share of sets with a single class."""
    accuracy: float


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", default="default")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--coverage", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    parser.add_argument("--resplits", type=int, default=20)
    options = parser.parse_args()
    config = SearchConfig.build(
        {"data": {"path": options.data}, "backbone": {"weights": options.weights, "image_size": options.image_size}}
    )
    home, manifest = environment.home(), scan(config.data)
    network = network_of(options.backbone, config, home=home, tracking_uri=None)
    features = FrozenFeatures.of(network, manifest, config, home).read()
    labels = np.array([row.label for row in manifest.rows])
    runs: dict[float, list[Run]] = {coverage: [] for coverage in options.coverage}
    for seed in range(options.resplits):
        for coverage, run in tried(features, labels, len(manifest.classes), options.coverage, seed).items():
            runs[coverage].append(run)
    print("| promised | held (least to most) | classes in a set | sets of one class | accuracy |")
    print("|---|---|---|---|---|")
    for coverage, each in runs.items():
        held = [run.held for run in each]
        size, alone, accuracy = (
            np.mean([getattr(run, name) for run in each]) for name in ("size", "alone", "accuracy")
        )
        spread = f"{np.mean(held):.3f} ({min(held):.3f} to {max(held):.3f})"
        print(f"| {coverage:g} | {spread} | {size:.2f} | {alone:.2f} | {accuracy:.3f} |")


def tried(
    features: np.ndarray, labels: np.ndarray, classes: int, coverages: list[float], seed: int
) -> dict[float, Run]:
    """Measure one split: 70 % for training, 15 % each for validation and test."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    held_out = round(0.15 * len(labels))
    test, validation, train = np.split(shuffled, [held_out, 2 * held_out])
    fitted, chosen = (Features(features[np.sort(rows)], labels[np.sort(rows)]) for rows in (train, validation))
    probe = fit_probes(fitted, chosen, classes=classes, device=torch.device("cpu"), metric="accuracy").best

    logits = [scores_of(each, probe.weight, probe.bias).double() for each in (chosen.values, features[test])]
    temperature = calibrate(logits[0].numpy(), chosen.labels).temperature
    on_validation, on_test = ((each / temperature).softmax(1).numpy() for each in logits)
    found: dict[float, Run] = {}
    for coverage in coverages:
        threshold = fit_prediction_sets(on_validation, chosen.labels, coverage).threshold
        sets = on_test >= threshold
        sets[np.arange(len(test)), on_test.argmax(1)] = True
        held = sets[np.arange(len(test)), labels[test]]
        right = on_test.argmax(1) == labels[test]
        found[coverage] = Run(held.mean(), sets.sum(1).mean(), (sets.sum(1) == 1).mean(), right.mean())
    return found


if __name__ == "__main__":
    main()
