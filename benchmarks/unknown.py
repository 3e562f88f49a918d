"""How many images of an unseen class a model detects as unknown, and at what cost.

Each class is left out in turn. An image is unknown by its distance from the nearest reference rows of the other
classes' training images, with a threshold for 5 % false alarms on their validation images, as in a package. The table
also has the share of false alarms on their test images.

    python benchmarks/unknown.py ../shared/data/clothing --backbone timm/tf_efficientnet_lite0 \
      --weights ../shared/weights/tf_efficientnet_lite0_imagenet.safetensors
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from thawline import environment
from thawline.config import SearchConfig
from thawline.data import Manifest, scan
from thawline.labels import FrozenFeatures, network_of
from thawline.registry import fit_reference, reference_rows
from thawline.registry.servable import distances, scaled

_FALSE_ALARMS = 0.05


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", default="default")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--repeats", type=int, default=300, help="number of images for measuring latency")
    options = parser.parse_args()
    config = SearchConfig.build(
        {"data": {"path": options.data}, "backbone": {"weights": options.weights, "image_size": options.image_size}}
    )
    home, manifest = environment.home(), scan(config.data)
    frozen = FrozenFeatures.of(
        network_of(options.backbone, config, home=home, tracking_uri=None), manifest, config, home
    )
    features = frozen.read()
    print("| class left out | called unknown | by class means | false alarms on test | AUROC |")
    print("|---|---|---|---|---|")
    rows = []
    for label, name in enumerate(manifest.classes):
        rows.append(left_out(features, manifest, label))
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in rows[-1]) + " |")
    print("| mean | " + " | ".join(f"{value:.2f}" for value in np.mean(rows, axis=0)) + " |\n")
    latency(frozen, features, options.repeats)


def left_out(features: np.ndarray, manifest: Manifest, label: int) -> tuple[float, float, float, float]:
    """Share of a class detected as unknown, the same by the nearest class mean, false alarms, and the AUROC."""
    labels, splits = np.array([row.label for row in manifest.rows]), np.array([row.split for row in manifest.rows])
    train, validation, test = (
        np.flatnonzero((splits == split) & (labels != label)) for split in ("train", "validation", "test")
    )
    chosen = train[reference_rows(labels[train])]
    means = np.stack([scaled(features[train[labels[train] == each]]).mean(0) for each in np.unique(labels[train])])
    found: list[tuple[float, float, float]] = []
    for known in (features[chosen], means):
        reference = fit_reference(known, features[validation], head="", false_alarms=_FALSE_ALARMS)
        others, strange = (
            distances(features[each], reference.features.astype(np.float32)) for each in (test, labels == label)
        )
        above = np.searchsorted(np.sort(others), strange).mean() / len(others)
        found.append(((strange > reference.threshold).mean(), (others > reference.threshold).mean(), above))
    return found[0][0], found[1][0], *found[0][1:]


def latency(frozen: FrozenFeatures, features: np.ndarray, repeats: int) -> None:
    """CPU time that the comparison adds to the forward pass of one image."""
    import torch

    network = frozen.backbone.module.cpu().eval()
    size = getattr(frozen.backbone.preprocessing, "image_size")  # noqa: B009  benchmarks are of images
    image = torch.zeros(1, 3, size, size).to(memory_format=torch.channels_last)
    rows = reference_rows([row.label for row in frozen.manifest.of("train")])
    reference = np.ascontiguousarray(scaled(features[rows]), dtype=np.float32)
    forward, comparison = [], []
    with torch.inference_mode():
        for number in range(repeats):
            began = time.process_time()
            network(image)
            between = time.process_time()
            distances(features[number % len(features)][None], reference)
            forward.append(between - began)
            comparison.append(time.process_time() - between)
    shares = [compared / passed for compared, passed in zip(comparison, forward, strict=True)]
    low, high = np.quantile(shares, [0.25, 0.75])
    print(
        f"{len(reference)} rows: {1e3 * statistics.median(comparison):.3f} ms beside "
        f"{1e3 * statistics.median(forward):.2f} ms of CPU time of the forward pass of one image of {size} pixels, "
        f"{statistics.median(shares):.2%} (quartiles {low:.2%} to {high:.2%})"
    )


if __name__ == "__main__":
    main()
