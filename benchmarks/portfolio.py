"""The basis of a search's defaults: a table of trials over several tasks, and its analysis.

``measure`` trains a grid of (freeze depth, learning rate, policy, initial head) on every task and writes a line per
trial, plus linear probes at every freeze depth. ``read`` analyses these lines: the best initial head, whether the
probes predict the best freeze depth, and the best few initial points, chosen for each task from the other tasks.
``order`` compares the points of the portfolio, best first, with the same points, cheapest first.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from thawline import backbones
from thawline.backbones import Backbone, Preprocessing, TextPreprocessing, section, write_head
from thawline.config import DataConfig, Policy, TrainConfig
from thawline.data import decoded, scan, tokenized
from thawline.search.space import PORTFOLIO
from thawline.training import (
    CheckpointFolder,
    Decision,
    Features,
    Hyperparameters,
    Inputs,
    Probe,
    Probes,
    Runtime,
    features_at,
    fit,
    fit_probes,
    head_features,
    open_inputs,
    runtime_for,
    set_up_process,
    softened,
)

RATES = (1e-4, 3e-4, 1e-3)
HEAD_RATE = 3e-3
"""Also for head only trials; with this rate, training more than the last layer groups ends at chance level."""
SHARES = (0.0, 1 / 3, 2 / 3, 1.0)
HEADS = ("fresh", "probe", "strong", "soft")
"""``strong``: the probe of the strongest penalty whose validation accuracy is within one standard error of the best;
``soft``: the same with smaller scores after a dropout, see :func:`thawline.training.softened`."""


Table = dict[tuple[str, int], dict[tuple[float, float, str, str], float]]
"""For each task and seed, the best accuracy of each (share, rate, policy, head)."""


@dataclass(frozen=True)
class Task:
    """A backbone on a data set."""

    data: str
    backbone: str
    weights: str
    image_size: int | None

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f"{self.data}, {self.backbone.rpartition('/')[2]}"


def tasks(options: argparse.Namespace) -> list[Task]:
    """Three image data sets with two backbones each, digits with the starter weights, and messages with MiniLM."""
    lite = (
        "timm/tf_efficientnet_lite0",
        str(options.shared / "weights" / "tf_efficientnet_lite0_imagenet.safetensors"),
    )
    squeeze = ("squeezenet1_0", str(options.shared / "weights" / "squeezenet1_0_imagenet.safetensors"))
    images = [
        Task(data, *network, size)
        for data, size in (("clothing", 96), ("tops", 96), ("digits", 64))
        for network in (lite, squeeze)
    ]
    starter = Task("digits", "mobilenet_v3_small", "starter", 48)
    return [*images, starter, Task("messages", f"hf:{options.encoder}", "default", None)]


def files_of(options: argparse.Namespace, data: str, folder: Path, seed: int) -> Path:
    """The data set for Thawline: links to this many photographs per class, or a table."""
    random = np.random.default_rng(seed)
    if data == "messages":
        lines = (options.shared / "data" / "sms_spam.tsv").read_text(encoding="utf-8").splitlines()
        chosen = [lines[i] for i in random.permutation(len(lines))[: 2 * options.train]]
        path = folder / "messages.tsv"
        path.write_text("\n".join(["label\ttext", *chosen]) + "\n", encoding="utf-8")
        return path
    if data == "digits":
        from PIL import Image
        from sklearn.datasets import load_digits

        digits = load_digits()
        for i in random.permutation(len(digits.target))[: 2 * options.train]:
            place = folder / "digits" / str(digits.target[i])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).resize((32, 32)).save(place / f"{i}.png")
        return folder / "digits"
    source = options.shared / "data" / "clothing"
    classes = ["shirt", "t-shirt"] if data == "tops" else [each.name for each in sorted((source / "train").iterdir())]
    for split, count in (("train", options.train), ("validation", options.train)):
        for name in classes:
            files = sorted((source / split / name).glob("*.jpg"))
            place = folder / data / split / name
            place.mkdir(parents=True)
            for i in random.permutation(len(files))[: count // len(classes)]:
                (place / files[i].name).symlink_to(files[i])
    return folder / data


class InMemory:
    """Rows after a layer group, computed once."""

    lengths: np.ndarray | None = None

    def __init__(self, values: Tensor, labels: np.ndarray, boundary: int) -> None:
        self.values, self.labels, self.boundary = values, labels, boundary

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        """Some rows."""
        return self.values[torch.from_numpy(rows)]

    def prepare(self, read: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
        """The same in single precision."""
        return read.float()


@torch.inference_mode()
def behind(backbone: Backbone, inputs: Inputs, depth: int, runtime: Runtime) -> Inputs:
    """The activations of images after the first layer groups; texts are unchanged, because their lengths differ."""
    if depth == 0 or (inputs.lengths is not None and depth < len(backbone.layer_groups)):
        return inputs
    backbone.module.eval()
    prefix, rows = section(backbone, 0, depth), np.arange(len(inputs))
    parts = []
    for part in np.array_split(rows, max(1, len(rows) // 50)):
        with runtime.autocast():
            parts.append(prefix(inputs.prepare(inputs.read(part, 0), part, 0)).clone())
    return InMemory(torch.cat(parts), inputs.labels, depth)


def measure(options: argparse.Namespace) -> None:
    """Run all trials that are not in the file yet."""
    known = {key_of(line) for line in lines_of(options.out)}
    for seed in options.seeds:
        for number, task in enumerate(tasks(options)):
            if options.only is not None and number not in options.only:
                continue
            with tempfile.TemporaryDirectory() as folder, options.out.open("a") as file:
                for line in trials_of(options, task, seed, Path(folder), known):
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                    print(json.dumps(line), flush=True)


def trials_of(options: argparse.Namespace, task: Task, seed: int, folder: Path, known: set[str]) -> Iterator[dict]:  # type: ignore[type-arg]
    """A line for the probes, then one per trial."""
    set_up_process(threads=options.threads, seed=seed)
    config = TrainConfig(epochs=options.epochs, precision=options.precision)
    runtime = runtime_for(config)
    manifest = scan(DataConfig(path=files_of(options, task.data, folder, seed), validation_fraction=0.4))
    classes = len(manifest.classes)

    def build() -> Backbone:
        return backbones.create(
            task.backbone, num_classes=classes, weights=task.weights, image_size=task.image_size, seed=seed
        )

    prepared = build().preprocessing
    if isinstance(prepared, TextPreprocessing):
        path = tokenized(manifest, tokenizer=prepared.tokenizer, max_length=prepared.max_length, cache_dir=folder).path
    else:
        path = decoded(
            manifest,
            resize_size=prepared.resize_size,
            crop_size=prepared.image_size,
            interpolation=prepared.interpolation,
            crop_mode=prepared.crop_mode,
            cache_dir=folder,
        ).path
    images = prepared if isinstance(prepared, Preprocessing) else None
    train, validation = (open_inputs(path, split, images, runtime) for split in ("train", "validation"))
    deepest = len(build().layer_groups)
    heads, line = probes_of(build(), train, validation, classes, runtime, folder)
    head_line = {"task": task.name, "seed": seed, "kind": "probe", "deepest": deepest, "rows": len(train), **line}
    if key_of(head_line) not in known:
        yield head_line
    points: set[tuple[int, float, Policy]] = {(deepest, HEAD_RATE, "static")}
    points |= {(round(share * deepest), rate, "static") for share in SHARES for rate in RATES}
    points |= {(0, rate, "gradual") for rate in RATES[1:]}
    for depth, rate, policy in sorted(points, reverse=True):
        for head in options.heads:
            point = {"task": task.name, "seed": seed, "kind": "trial", "depth": depth, "deepest": deepest}
            point |= {"rate": rate, "policy": policy, "head": head}
            if key_of(point) in known:
                continue
            backbone = build()
            if head != "fresh":
                write_head(backbone, heads[head].weight, heads[head].bias, lowest=heads[head].lowest)
            inputs = partial(_behind_both, backbone, (train, validation), runtime, {})

            hyperparameters = Hyperparameters(
                task.backbone,
                depth,
                rate,
                config.weight_decay,
                1.0,
                "adamw",
                policy=policy,
                batch_norm="frozen_eval",
            )
            started = time.perf_counter()
            with tempfile.TemporaryDirectory(dir=folder) as kept:
                result = fit(
                    backbone,
                    inputs,
                    hyperparameters=hyperparameters,
                    config=config,
                    metric="accuracy",
                    runtime=runtime,
                    checkpoints=CheckpointFolder(Path(kept), keep=1, maximise=True),
                    seed=seed,
                    on_epoch=lambda _: Decision.CONTINUE,
                )
            values = [round(epoch.metrics["val/accuracy"], 5) for epoch in result.history]
            yield point | {"values": values, "seconds": round(time.perf_counter() - started, 1)}


def _behind_both(
    backbone: Backbone, both: tuple[Inputs, Inputs], runtime: Runtime, known: dict[int, tuple[Inputs, Inputs]], at: int
) -> tuple[Inputs, Inputs]:
    """The training and validation inputs of a freeze depth, computed once."""
    if at not in known:
        known.clear()
        known[at] = behind(backbone, both[0], at, runtime), behind(backbone, both[1], at, runtime)
    return known[at]


def probes_of(
    backbone: Backbone, train: Inputs, validation: Inputs, classes: int, runtime: Runtime, folder: Path
) -> tuple[dict[str, Probe], dict[str, object]]:
    """The initial heads, and the validation accuracy of a probe at every freeze depth."""
    device, deepest = runtime.device, len(backbone.layer_groups)
    features = [head_features(backbone, each, runtime, 50, folder) for each in (train, validation)]

    def fitted(found: Sequence[Features]) -> Probes:
        return fit_probes(*found, classes=classes, metric="accuracy", device=device)

    of_head = fitted(features)
    best, strong = of_head.best, of_head.simplest
    soft = softened(strong, head_features(backbone, train, runtime, 50, folder, training=True))
    curve = {deepest: best.validation["accuracy"]}
    for depth in range(1, deepest) if train.lengths is None else ():
        at = [behind(backbone, each, depth, runtime) for each in (train, validation)]
        curve[depth] = fitted([features_at(each, runtime, 50, folder) for each in at]).best.validation["accuracy"]
    probes = {"probe": best, "strong": strong, "soft": soft}
    described = {name: [each.penalty, round(each.validation["accuracy"], 5)] for name, each in probes.items()}
    return probes, {"curve": {str(d): round(v, 5) for d, v in sorted(curve.items())}, **described}


def key_of(line: dict) -> str:  # type: ignore[type-arg]
    """A key that identifies a line."""
    return json.dumps([line.get(name) for name in ("task", "seed", "kind", "depth", "rate", "policy", "head")])


def lines_of(path: Path) -> list[dict]:  # type: ignore[type-arg]
    """All measured lines."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read(lines: list[dict]) -> None:  # type: ignore[type-arg]
    """Print the analysis of heads, of probes as a forecast, and of initial points."""
    probes = {(line["task"], line["seed"]): line for line in lines if line["kind"] == "probe"}
    trials: dict[tuple[str, int], dict[tuple[float, float, str, str], float]] = defaultdict(dict)
    for line in lines:
        if line["kind"] == "trial":
            share = min(SHARES, key=lambda share: abs(share * line["deepest"] - line["depth"]))
            point = (round(share, 2), line["rate"], line["policy"], line["head"])
            trials[line["task"], line["seed"]][point] = max(line["values"])
    _read_heads(trials, probes)
    _read_curves(lines, trials, probes)
    for policies in (["static"], ["static", "gradual"]):
        _read_portfolio(trials, policies)


def _read_heads(trials: Table, probes: dict[tuple[str, int], dict]) -> None:  # type: ignore[type-arg]
    # Only points that were tried with all heads.
    print("| task | seeds | probe | best trial | mean of all points |")
    print(f"|---|---|---|{' / '.join(HEADS)}|{' / '.join(HEADS)}|")
    for task in sorted({task for task, _ in trials}):
        runs = [(probes[key]["probe"][1], values) for key, values in trials.items() if key[0] == task]
        shown = []
        for summed in (max, np.mean):
            for head in HEADS:
                found = []
                for _, values in runs:
                    tried = [{point[:3] for point in values if point[3] == each} for each in HEADS]
                    common = set.intersection(*[points for points in tried if points])
                    own = [values[(*point, head)] for point in common if (*point, head) in values]
                    found += [float(summed(own))] if own else []
                shown.append(f"{np.mean(found):.3f}" if found else "-")
        probe = np.mean([value for value, _ in runs])
        best, mean = (" / ".join(part) for part in (shown[: len(HEADS)], shown[len(HEADS) :]))
        print(f"| {task} | {len(runs)} | {probe:.3f} | {best} | {mean} |")


def _read_curves(lines: list[dict], trials: Table, probes: dict[tuple[str, int], dict]) -> None:  # type: ignore[type-arg]
    print("\n| task | seed | best depth by probe | best depth by trials | within one group |\n|---|---|---|---|---|")
    hits = []
    for (task, seed), probe in probes.items():
        best: dict[int, float] = {}
        for line in lines:
            if (line["task"], line["seed"], line["kind"]) == (task, seed, "trial"):
                best[line["depth"]] = max(best.get(line["depth"], 0.0), *line["values"])
        curve = {int(depth): value for depth, value in probe["curve"].items()}
        if len(curve) < 2 or (task, seed) not in trials:
            continue
        foretold, found = (max(each, key=lambda depth: (each[depth], depth)) for each in (curve, best))
        hits.append(abs(foretold - found) <= 1)
        print(f"| {task} | {seed} | {foretold} | {found} of {probe['deepest']} | {hits[-1]} |")
    print(f"\n{sum(hits)} of {len(hits)} within one group\n")


def _read_portfolio(trials: Table, policies: Sequence[str], head: str = "strong", most: int = 6) -> None:
    """Greedy selection: repeatedly add the point that minimises the mean regret."""
    tables = {key: {p[:3]: v for p, v in values.items() if p[3] == head} for key, values in trials.items()}
    whole = len(SHARES) * len(RATES) + len(RATES[1:]) + 1
    tables = {key: table for key, table in tables.items() if len(table) >= whole}  # skip unfinished ones
    points = sorted(p for p in set.intersection(*(set(table) for table in tables.values())) if p[2] in policies)

    def chosen(keys: list[tuple[str, int]]) -> list[tuple[float, float, str]]:
        # Each task has the same weight, for any number of seeds.
        weight = {key: 1 / sum(other[0] == key[0] for other in keys) for key in keys}
        order: list[tuple[float, float, str]] = []
        for _ in range(most):
            rest = [point for point in points if point not in order]

            def loss(point: tuple[float, float, str], order: list[tuple[float, float, str]] = order) -> float:
                regrets = (
                    weight[key] * (max(tables[key].values()) - max(tables[key][p] for p in [*order, point]))
                    for key in keys
                )
                return sum(regrets)

            order.append(min(rest, key=loss))
        return order

    print("| task left out | regret after 1 … 6 points (accuracy, mean of seeds) |\n|---|---|")
    every = list(tables)
    for task in sorted({task for task, _ in every}):
        order = chosen([key for key in every if key[0] != task])
        own = [tables[key] for key in every if key[0] == task]
        regrets = [
            np.mean([max(t.values()) - max(t[p] for p in order[:count]) for t in own]) for count in range(1, most + 1)
        ]
        print(f"| {task} | {' '.join(f'{regret:.3f}' for regret in regrets)} |")
    print("\nregret after 1 … 6 points, mean of all pairs: the portfolio, and before it the best two of another task")
    for begun in (0, 2):
        lost = []
        for key, other in ((key, other) for key in every for other in every if key[0] != other[0]):
            table, known = tables[key], tables[other]
            first = sorted(points, key=lambda point: -known[point])[:begun]
            order = first + [
                point for point in chosen([each for each in every if each[0] != key[0]]) if point not in first
            ]
            lost.append([max(table.values()) - max(table[p] for p in order[:count]) for count in range(1, most + 1)])
        print(begun, " ".join(f"{regret:.4f}" for regret in np.mean(lost, axis=0)))
    print("\nFrom all tasks:", ", ".join(f"({share:g}, {rate:g}, {policy})" for share, rate, policy in chosen(every)))


def order(lines: list[dict]) -> None:  # type: ignore[type-arg]
    """Print how soon the portfolio's points find their best model, best first and cheapest first, for images."""
    trials: dict[tuple[str, int], dict[tuple[str, int, float], dict]] = defaultdict(dict)  # type: ignore[type-arg]
    for line in lines:
        if line["kind"] == "trial" and line["policy"] == "static":
            trials[line["task"], line["seed"]][line["head"], line["depth"], line["rate"]] = line
    print("| task | seed | mean regret | seconds to 25, 50 and 75 % of the gain |\n|---|---|---|---|")
    for probe in (line for line in lines if line["kind"] == "probe"):
        table = trials[probe["task"], probe["seed"]]
        head = "soft" if any(head == "soft" for head, _, _ in table) else "strong"
        points = dict.fromkeys((round(start.share * probe["deepest"]), start.learning_rate) for start in PORTFOLIO)
        known = [table[head, *point] for point in points if (head, *point) in table]
        begun = probe["probe"][1]
        best = max((value for line in known for value in line["values"]), default=0.0)
        if len(known) < len(points) or best <= begun:
            continue
        courses = [_course(begun, each) for each in (known, sorted(known, key=lambda line: -line["depth"]))]
        regrets = " / ".join(f"{_mean_regret(course, best):.4f}" for course in courses)
        gains = [begun + share * (best - begun) for share in (0.25, 0.5, 0.75)]
        told = [" ".join(f"{next(t for t, v in course if v >= g):.1f}" for g in gains) for course in courses]
        print(f"| {probe['task']} | {probe['seed']} | {regrets} | {' / '.join(told)} |")


def _course(value: float, trials: Sequence[dict]) -> list[tuple[float, float]]:  # type: ignore[type-arg]
    """Seconds and best value so far, from the probe on."""
    seconds, course = 0.0, [(0.0, value)]
    for line in trials:
        for each in line["values"]:
            seconds += line["seconds"] / len(line["values"])
            course.append((seconds, max(course[-1][1], each)))
    return course


def _mean_regret(course: Sequence[tuple[float, float]], best: float) -> float:
    lost = sum((best - value) * (later - now) for (now, value), (later, _) in pairwise(course))
    return lost / course[-1][0]


def main() -> None:
    """Measure, or analyse measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["measure", "read", "order"])
    parser.add_argument("out", type=Path, help="JSON lines, one per trial; existing trials are skipped")
    parser.add_argument("--shared", type=Path, help="folder with data/ and weights/")
    parser.add_argument("--encoder", type=Path, help="folder of the text encoder")
    parser.add_argument("--train", type=int, default=300, help="training images or messages")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the tasks to measure")
    parser.add_argument("--heads", nargs="+", default=list(HEADS))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precision", default="bf16")
    options = parser.parse_args()
    if options.what == "measure":
        measure(options)
    elif options.what == "order":
        order(lines_of(options.out))
    else:
        read(lines_of(options.out))


if __name__ == "__main__":
    main()
