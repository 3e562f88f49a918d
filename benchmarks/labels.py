"""How many wrong labels the label doctor finds, and the benefit of training without them.

``python benchmarks/labels.py DATA --backbone NAME --weights FILE --image-size PIXELS``

A share of the labels of training and validation images is changed to another class at random; those of the test images
stay correct. The label doctor judges all splits without this knowledge. A linear probe (like a search's trial 0, with
its penalty chosen on the same split's validation images) is then trained on the correct labels, on the wrong ones,
without the suspects, and with the suggested classes, and tested on the correct labels of the test images. It tries
every second of a search's penalties.

Prints a Markdown table with one row per share: mean over seeds, with minimum and maximum in brackets.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from thawline import environment
from thawline.config import SearchConfig
from thawline.data import Manifest, scan
from thawline.labels import FrozenFeatures, LabelCheck, judged, network_of
from thawline.training import Features, fit_probes

WAYS = ("right labels", "wrong labels", "without suspects", "relabelled")


@dataclass(frozen=True)
class Run:
    """One seed at one share."""

    listed: int
    precision: float
    recall: float
    noise: float
    seconds: float
    cpu_seconds: float
    accuracy: dict[str, float]
    """Test accuracy by way of training."""


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", default="default")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    config = SearchConfig.build(
        {"data": {"path": options.data}, "backbone": {"weights": options.weights, "image_size": options.image_size}}
    )
    home = environment.home()
    manifest = scan(config.data)
    network = network_of(options.backbone, config, home=home, tracking_uri=None)
    features = FrozenFeatures.of(network, manifest, config, home).read()  # fills the store
    true = np.array([each.label for each in manifest.rows])
    clean = tested(manifest, features, true, np.ones(len(true), bool), true)
    print("| wrong | listed | precision | recall | estimated | seconds | CPU seconds | "
          + " | ".join(WAYS) + " | regained, without | regained, relabelled |")  # fmt: skip
    print("|" + "---|" * (9 + len(WAYS)), flush=True)
    for share in options.shares:
        runs = []
        for seed in range(options.seeds):
            wrong = flipped(manifest, share, seed)
            started, cpu = time.perf_counter(), time.process_time()
            features = FrozenFeatures.of(network, manifest, config, home).read()
            found = judged(wrong, features, network.described)
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            print(f"{share:.0%} wrong, seed {seed}", file=sys.stderr)
            runs.append(measured(manifest, wrong, features, found, clean, seconds, cpu))
        print(row(share, runs), flush=True)


def flipped(manifest: Manifest, share: float, seed: int) -> Manifest:
    """The manifest with this share of labels outside the test split changed to another class."""
    random, classes = np.random.default_rng(seed), len(manifest.classes)
    free = [number for number, each in enumerate(manifest.rows) if each.split != "test"]
    rows = list(manifest.rows)
    for number in random.permutation(free)[: round(share * len(free))]:
        rows[number] = replace(rows[number], label=int(rows[number].label + random.integers(1, classes)) % classes)
    return replace(manifest, rows=tuple(rows))


def measured(
    right: Manifest,
    wrong: Manifest,
    features: np.ndarray,
    found: LabelCheck,
    clean: float,
    seconds: float,
    cpu_seconds: float,
) -> Run:
    """Compare suspects with the planted labels, and train four probes."""
    true, given = (np.array([each.label for each in manifest.rows]) for manifest in (right, wrong))
    places = {each.path: number for number, each in enumerate(wrong.rows)}
    listed = np.zeros(len(true), bool)
    suggested = given.copy()
    for suspect in found.suspects:
        listed[places[suspect.path]] = True
        suggested[places[suspect.path]] = right.classes.index(suspect.suggested)
    planted = given != true
    hits = int((listed & planted).sum())
    trained = {
        "wrong labels": (given, np.ones(len(true), bool)),
        "without suspects": (given, ~listed),
        "relabelled": (suggested, np.ones(len(true), bool)),
    }
    accuracy = {"right labels": clean}
    accuracy |= {way: tested(right, features, labels, kept, true) for way, (labels, kept) in trained.items()}
    precision = hits / max(1, int(listed.sum()))
    return Run(len(found.suspects), precision, hits / int(planted.sum()), found.noise, seconds, cpu_seconds, accuracy)


def tested(manifest: Manifest, features: np.ndarray, labels: np.ndarray, kept: np.ndarray, true: np.ndarray) -> float:
    """Accuracy on the correct test labels of a probe trained and selected on the given labels."""
    sides = np.array([each.split for each in manifest.rows])
    train, validation = (Features(features[chosen], labels[chosen]) for chosen in
                         (kept & (sides == side) for side in ("train", "validation")))  # fmt: skip
    probes = fit_probes(train, validation, classes=len(manifest.classes), device=torch.device("cpu"), metric="accuracy")
    best, test = probes.best, sides == "test"
    scores = torch.from_numpy(features[test]) @ best.weight.T + best.bias
    return float((scores.argmax(1).numpy() == true[test]).mean())


def row(share: float, runs: Sequence[Run]) -> str:
    """A row of the table."""
    clean, noisy, without, relabelled = (np.mean([run.accuracy[way] for run in runs]) for way in WAYS)
    cells = [
        f"{share:.0%}",
        spread([run.listed for run in runs], "{:.0f}"),
        *(spread([getattr(run, name) for run in runs], "{:.2f}") for name in ("precision", "recall")),
        spread([run.noise for run in runs], "{:.1%}"),
        *(spread([getattr(run, name) for run in runs], "{:.1f}") for name in ("seconds", "cpu_seconds")),
        *(spread([run.accuracy[way] for run in runs], "{:.3f}") for way in WAYS),
        *(f"{(better - noisy) / (clean - noisy):.0%}" if clean > noisy else "nothing lost"
          for better in (without, relabelled)),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], form: str) -> str:
    """The mean, minimum and maximum."""
    low, high = form.format(min(values)), form.format(max(values))
    return f"{form.format(float(np.mean(values)))} ({low} to {high})" if low != high else low


if __name__ == "__main__":
    main()
