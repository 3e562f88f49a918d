"""Measure the value of the starter backbone: ``python benchmarks/starter.py [--clothing DIR]``.

The same architecture starts once from the shipped weights and once from random initialisation, on
scikit-learn's digits and on photographs of clothing, with three seeds each:

* *linear probe*: logistic regression on the standardised pooled features, network in evaluation
  mode; a random network has the batch-normalisation statistics it was initialised with;
* *fine-tuned*: every layer trained with the same short AdamW recipe; the learning rate is the one,
  of two, that is best on the validation images, separately for each start and seed.

A seed decides which images are drawn for training, the random weights and the order of batches.
Prints a Markdown table of test accuracies: mean, and smallest to largest over the seeds.
"""

from __future__ import annotations

import argparse
import datetime
import math
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small
from torchvision.models.mobilenetv3 import MobileNetV3

CHECKOUT = Path(__file__).resolve().parents[1]
WEIGHTS = CHECKOUT / "src/thawline/backbones/starter/mobilenet_v3_small.safetensors"
SIDE = 48
SEEDS = (0, 1, 2)
RATES = (1e-3, 3e-3)
EPOCHS = 5
BATCH = 32
PER_CLASS = 60
"""The largest number of training photographs of one class."""
DIGITS_FOR_TRAINING = 600
DIGITS_FOR_VALIDATION = 300

MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


@dataclass(frozen=True)
class Part:
    """Images, ``uint8`` and RGB, and their labels."""

    images: Tensor
    labels: Tensor

    def take(self, rows: Tensor) -> Part:
        """Keep some rows."""
        return Part(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class Task:
    """One data set, split three ways, as one seed sees it."""

    name: str
    training: Part
    validation: Part
    test: Part


def digits(seed: int) -> Task:
    """Scikit-learn's digits, enlarged and repeated over the colour channels."""
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) * (255.0 / 16.0)
    images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear").round().clamp(0, 255)
    whole = Part(images.to(torch.uint8).expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(data.target).long())
    rest, training = train_test_split(
        range(len(whole.labels)), test_size=DIGITS_FOR_TRAINING, stratify=whole.labels, random_state=seed
    )
    test, validation = train_test_split(
        rest, test_size=DIGITS_FOR_VALIDATION, stratify=whole.labels[rest], random_state=seed
    )
    return Task("digits", *(whole.take(torch.tensor(rows)) for rows in (training, validation, test)))


def _photographs(folder: Path, classes: list[str]) -> Part:
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).glob("*.jpg")):
            with Image.open(path) as opened:
                small = opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            images.append(torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3))
            labels.append(label)
    return Part(torch.stack(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


def read_clothing(folder: Path) -> tuple[Part, Part, Part]:
    """Decode every photograph once."""
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    training, validation, test = (_photographs(folder / part, classes) for part in ("train", "validation", "test"))
    return training, validation, test


def clothing(parts: tuple[Part, Part, Part], seed: int) -> Task:
    """Draw up to ``PER_CLASS`` training photographs of each class; the other parts are complete."""
    training, validation, test = parts
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label in range(int(training.labels.max()) + 1):
        found = torch.nonzero(training.labels == label).flatten()
        rows.append(found[torch.randperm(len(found), generator=generator)[:PER_CLASS]])
    return Task("clothing", training.take(torch.cat(rows)), validation, test)


def build(start: str, classes: int, seed: int) -> MobileNetV3:
    """Build the network from the shipped weights or from random ones."""
    torch.manual_seed(seed)
    model: MobileNetV3 = mobilenet_v3_small(weights=None, num_classes=classes)
    if start == "starter":
        weights = {name: value.float() for name, value in load_file(str(WEIGHTS)).items()}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert set(missing) == {"classifier.3.weight", "classifier.3.bias"}
        assert not unexpected
    return model


def _prepare(images: Tensor) -> Tensor:
    return (images.float() / 255.0 - MEAN) / STD


@torch.inference_mode()
def features(model: MobileNetV3, part: Part) -> Tensor:
    """Pool the output of the convolutional part."""
    model.eval()
    batches = torch.split(part.images, 256)
    return torch.cat([model.avgpool(model.features(_prepare(batch))).flatten(1) for batch in batches])


@torch.inference_mode()
def accuracy(model: nn.Module, part: Part) -> float:
    """Share of correctly classified images."""
    model.eval()
    named = torch.cat([model(_prepare(batch)).argmax(1) for batch in torch.split(part.images, 256)])
    return float((named == part.labels).float().mean())


def probe(task: Task, start: str, seed: int) -> float:
    """Test accuracy of a linear classifier on frozen features."""
    model = build(start, 10, seed)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000))
    classifier.fit(features(model, task.training).numpy(), task.training.labels.numpy())
    return float(classifier.score(features(model, task.test).numpy(), task.test.labels.numpy()))


def fine_tune(task: Task, start: str, seed: int, rate: float) -> tuple[float, float]:
    """Train every layer for a few epochs; returns the validation and test accuracy."""
    model = build(start, int(task.training.labels.max()) + 1, seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # torchvision's 0.01 is too slow for so few steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    steps = EPOCHS * math.ceil(len(task.training.labels) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.2)
    for _ in range(EPOCHS):
        model.train()
        for rows in torch.split(torch.randperm(len(task.training.labels)), BATCH):
            loss = F.cross_entropy(model(_prepare(task.training.images[rows])), task.training.labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward([loss])
            optimizer.step()
            schedule.step()
    return accuracy(model, task.validation), accuracy(model, task.test)


def best_fine_tuned(task: Task, start: str, seed: int) -> tuple[float, float]:
    """Test accuracy at the learning rate that is best on validation, and that rate."""
    runs = {rate: fine_tune(task, start, seed, rate) for rate in RATES}
    rate = max(RATES, key=lambda rate: runs[rate][0])
    return runs[rate][1], rate


Job = tuple[Task, str, str, int]


def work(job: Job) -> tuple[str, str, str, float, float]:
    """Measure one cell of the table with one seed, on one thread."""
    torch.set_num_threads(1)
    task, measure, start, seed = job
    value, rate = (probe(task, start, seed), 0.0) if measure == "probe" else best_fine_tuned(task, start, seed)
    return task.name, measure, start, value, rate


def _cell(values: list[float]) -> str:
    return f"{mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clothing", type=Path, default=CHECKOUT.parent / "shared/data/clothing")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--only", choices=("probe", "fine-tune"), help="measure one of the two")
    given = parser.parse_args()
    began = time.monotonic()

    photographs = read_clothing(given.clothing)
    jobs: list[Job] = []
    for measure in ("probe", "fine-tune") if given.only is None else (given.only,):
        for seed in SEEDS:
            for task in (digits(seed), clothing(photographs, seed)):
                jobs += [(task, measure, start, seed) for start in ("random", "starter")]
    results: dict[tuple[str, str, str], list[float]] = {}
    rates: dict[tuple[str, str, str], set[float]] = {}
    with mp.get_context("spawn").Pool(given.jobs) as pool:
        for name, measure, start, value, rate in pool.imap(work, jobs):
            results.setdefault((name, measure, start), []).append(value)
            rates.setdefault((name, measure, start), set()).add(rate)

    print("| data | measure | random initialisation | starter | beyond the spread |")
    print("|---|---|---|---|---|")
    for name, measure, _ in [key for key in results if key[2] == "random"]:
        random, starter = results[name, measure, "random"], results[name, measure, "starter"]
        beyond = "yes" if min(starter) > max(random) else "no"
        label = "linear probe" if measure == "probe" else "fine-tuned"
        print(f"| {name} | {label} | {_cell(random)} | {_cell(starter)} | {beyond} |")
    print()
    print(f"Test accuracy, mean (smallest-largest) of {len(SEEDS)} seeds, {SIDE} px, {EPOCHS} epochs of fine-tuning.")
    for key, chosen in rates.items():
        if key[1] == "fine-tune":
            print(f"Learning rates chosen, {key[0]}, {key[2]}: {', '.join(f'{rate:g}' for rate in sorted(chosen))}.")
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    print(f"Measured on {today} in {(time.monotonic() - began) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
