"""A whole search with Thawline and with the usual approach: seconds and best validation accuracy on the same trials.

Every figure is the wall time of a whole process, including imports, Prefect's server, profile and store. All designs
run the same trials (random freeze depths and learning rates, drawn once), epochs, seed and validation images. With
``--own-draws`` each draws its own trials from the same space: the peer with Optuna's default sampler, Thawline with its
own.
"""

import argparse
import csv
import itertools
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("THAWLINE_TEST_DATA", HERE.parents[1] / "shared"))
CLASSES = 10
THAWLINE = Path(sys.executable).parent / "thawline"
DESIGNS = {
    "usual": "NopPruner",
    "usual, median": "MedianPruner",
    "usual, halving": "SuccessiveHalvingPruner",
    "exact": "NopPruner",
    "default": "NopPruner",
    "default, median": "MedianPruner",
    "default, halving": "SuccessiveHalvingPruner",
    "default, freeze-thaw": "freeze_thaw",
}
"""Designs with their pruners."""
VALUE = re.compile(r"(?:trial-\d+ epoch \d+/\d+|linear probe): .*?val/accuracy ([\d.]+)")


@dataclass(frozen=True)
class Run:
    """One process."""

    name: str
    seed: int
    seconds: float | None
    """``None`` if it was stopped."""
    curve: list[tuple[float, float]]
    """Seconds since the start and validation accuracy of every epoch of every trial, and of the linear probe."""
    trials: list[tuple[int, float]]
    """Freeze depth and learning rate by trial number; empty for the peer."""

    @property
    def best(self) -> float:
        """The best validation accuracy."""
        return max(value for _, value in self.curve)

    def seconds_to(self, value: float) -> float | None:
        """When a validation accuracy was first reached."""
        return next((seconds for seconds, reached in self.curve if reached >= value), None)


def main() -> None:
    """Run all designs, interleaved over the seeds, and print a table; ``--plot`` draws the regret."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--backbone",
        default="squeezenet1_0",
        help="one without a file in weights/ has random weights, for timing only; hf:FOLDER for messages",
    )
    parser.add_argument("--data", default="clothing", choices=["clothing", "digits", "messages"])
    parser.add_argument("--train", type=int, default=200, help="training images or texts")
    parser.add_argument("--validation", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), choices=list(DESIGNS), metavar="DESIGN")
    parser.add_argument("--head-only", action="store_true", help="only trials that train the head only")
    parser.add_argument("--own-draws", action="store_true", help="each design draws its own trials")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each of our designs with a seed")
    parser.add_argument("--stop-after", type=float, help="stop our searches after so many seconds; needs --own-draws")
    parser.add_argument("--peer-trials", type=int, help="run only this many of the peer's trials, and scale its time")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path, help="file for all curves")
    options = parser.parse_args()
    if "usual" not in options.designs or all(name.startswith("usual") for name in options.designs):
        parser.error("--designs needs `usual`, which all are compared with, and one that draws the trials")
    if options.stop_after and not options.own_draws:
        parser.error("--stop-after needs --own-draws: otherwise the peer trains the trials of a whole search")
    file = SHARED / "weights" / f"{options.backbone.rpartition('/')[2]}_imagenet.safetensors"
    if not file.parent.is_dir():
        sys.exit(f"There is no {file.parent}. Set THAWLINE_TEST_DATA to the folder of data and weights.")
    texts = options.data == "messages"
    if texts != options.backbone.startswith("hf:"):
        parser.error("--data messages needs --backbone hf:FOLDER, and images need another one")
    weights = str(file) if file.exists() else "default" if texts else "none"
    with tempfile.TemporaryDirectory() as folder:
        data = DATA[options.data](Path(folder) / "data", options)
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        runs: list[Run] = []
        for seed in seeds:
            for run in designs(data, weights, seed, options, Path(folder)):
                runs.append(run)
                if options.json:  # after each: a later one may be ended
                    options.json.write_text(json.dumps([run.__dict__ for run in runs]))
    report(runs, options)
    if options.plot:
        plot(runs, options.plot)


def splits(options: argparse.Namespace) -> list[tuple[str, int]]:
    """The splits with their sizes."""
    return [("train", options.train), ("validation", options.validation), ("test", options.validation)]


def clothing(folder: Path, options: argparse.Namespace) -> Path:
    """The first photographs of every class, in equal parts."""
    for split, count in splits(options):
        for kind in sorted((SHARED / "data" / "clothing" / split).iterdir()):
            if not kind.is_dir():
                continue
            (folder / split / kind.name).mkdir(parents=True)
            for image in sorted(kind.iterdir())[: count // CLASSES]:
                shutil.copy(image, folder / split / kind.name / image.name)
    return folder


def digits(folder: Path, options: argparse.Namespace) -> Path:
    """Scikit-learn's digits as images of 32 pixels, in their order."""
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    rows = iter(range(len(data.target)))
    for split, count in splits(options):
        for row in itertools.islice(rows, count):
            place = folder / split / str(data.target[row])
            place.mkdir(parents=True, exist_ok=True)
            pixels = (data.images[row] * 15.9).astype("uint8")
            Image.fromarray(pixels).convert("RGB").resize((32, 32)).save(place / f"{row}.png")
    return folder


def messages(folder: Path, options: argparse.Namespace) -> Path:
    """The first distinct text messages, a table for each split."""
    lines = (SHARED / "data" / "sms_spam.tsv").read_text(encoding="utf-8").splitlines()
    rows = iter(dict(line.split("\t", 1)[::-1] for line in lines).items())
    folder.mkdir()
    for split, count in splits(options):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *itertools.islice(rows, count)])
    return folder


DATA = {"clothing": clothing, "digits": digits, "messages": messages}


def designs(data: Path, weights: str, seed: int, options: argparse.Namespace, folder: Path) -> Iterator[Run]:
    """Run the requested designs with one seed in sequence; the peer trains the trials of our first design."""
    runs: list[Run] = []
    for name in sorted(options.designs, key=lambda name: name.startswith("usual")):
        pruner = DESIGNS[name]
        for _ in range(1 if name.startswith("usual") else options.repeat):
            if name.startswith("usual"):
                trials = options.trials if options.own_draws else next(run.trials for run in runs if run.trials)
                run = usual(name, data, weights, seed, options, folder, trials, "--pruner", pruner)
            else:
                exact = ["--exact"] if name.startswith("exact") else []
                more = [*exact, "--set", f"study.pruner={pruner}"]
                run = thawline(name, data, weights, seed, options, folder, more)
            runs.append(run)
            yield run


def thawline(
    name: str, data: Path, weights: str, seed: int, options: argparse.Namespace, folder: Path, more: Sequence[str]
) -> Run:
    """Run a search with the command, in its own home."""
    home = Path(tempfile.mkdtemp(dir=folder))
    arguments = ["search", data, *common(options, weights, seed), "--trials", options.trials]
    if not options.own_draws:
        arguments += ["--set", "study.sampler=RandomSampler"]
    arguments += more
    if options.head_only:
        depth = len(layer_groups(options.backbone))
        arguments += ["--set", f"space.freeze_depth=[{depth}, {depth}]", "--set", "study.batch=30"]
    curve: list[tuple[float, float]] = []
    began, stopped = time.perf_counter(), False
    with subprocess.Popen(
        [THAWLINE, *map(str, arguments)],
        env={**os.environ, "THAWLINE_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := VALUE.search(line):
                curve.append((time.perf_counter() - began, float(found[1])))
                if options.stop_after and not stopped and curve[-1][0] > options.stop_after:
                    process.send_signal(signal.SIGINT)
                    stopped = True
    seconds = time.perf_counter() - began
    if stopped:
        print(f"seed {seed}, {name}: stopped after {seconds:.1f} s", flush=True)
        return Run(name, seed, None, curve, [])
    if process.returncode:
        sys.exit("".join(lines))
    tell(name, seed, seconds)
    for line in lines:
        if "plan:" in line:
            print("   ", line.strip())
    listed = subprocess.run(
        [THAWLINE, "leaderboard", "--json"],
        env={**os.environ, "THAWLINE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = sorted(json.loads(listed.stdout)["trials"], key=lambda row: row["trial"])
    trained = [row for row in rows if row["learning_rate"] is not None]  # all but the linear probe
    return Run(name, seed, seconds, curve, [(row["freeze_depth"], row["learning_rate"]) for row in trained])


def usual(
    name: str,
    data: Path,
    weights: str,
    seed: int,
    options: argparse.Namespace,
    folder: Path,
    trials: Sequence[tuple[int, float]] | int,
    *more: str,
) -> Run:
    """Run the peer on the same trials, or on this many of its own."""
    share = 1.0
    if not isinstance(trials, int) and options.peer_trials:
        share, trials = options.peer_trials / len(trials), trials[: options.peer_trials]
    listed = folder / "trials.json"
    listed.write_text(json.dumps({"groups": layer_groups(options.backbone), "trials": trials}))
    arguments = ["--data", data, *common(options, weights, seed), "--trials", listed, *more]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, HERE / "peer.py", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    seconds = (time.perf_counter() - began) / share
    tell(name, seed, seconds)
    epochs = [json.loads(line) for line in done.stdout.splitlines()]
    return Run(name, seed, seconds, [(epoch["seconds"], epoch["value"]) for epoch in epochs], [])


def common(options: argparse.Namespace, weights: str, seed: int) -> list[Any]:
    """The options common to both commands."""
    network = ["--backbone", options.backbone, "--weights", weights]
    if options.data != "messages":
        network += ["--image-size", options.image_size]
    return [*network, "--epochs", options.epochs, "--seed", seed]


def layer_groups(backbone: str) -> list[tuple[str, ...]]:
    """Names of the parameters and buffers of each layer group."""
    from thawline import backbones

    built = backbones.create(backbone, num_classes=CLASSES, weights="none")
    return [group.tensors for group in built.layer_groups]


def tell(name: str, seed: int, seconds: float) -> None:
    """Report progress."""
    print(f"seed {seed}, {name}: {seconds:.1f} s", flush=True)


def report(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Print a table of medians, with times as ratios to the peer within a seed."""
    import torch

    print(f"\n{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; {vars(options)}\n")
    names = list(dict.fromkeys(run.name for run in runs))
    peers = {run.seed: run for run in runs if run.name == "usual"}
    print("| design | seconds | times faster | best validation accuracy | seconds to half a point below usual best |")
    print("|---|---|---|---|---|")
    for name in names:
        mine = [run for run in runs if run.name == name]
        ratios = [(peers[run.seed].seconds or 0) / run.seconds for run in mine if run.seconds]
        reached = [run.seconds_to(peers[run.seed].best - 0.005) for run in mine]
        print(
            f"| {name} | {spread([run.seconds for run in mine], '.0f', none='stopped')} "
            f"| {spread(ratios, '.1f', none='stopped')} "
            f"| {spread([run.best for run in mine], '.3f')} | {spread(reached, '.0f')} |"
        )


def spread(values: Sequence[float | None], form: str, none: str = "never") -> str:
    """Median, minimum and maximum."""
    known = [value for value in values if value is not None]
    if not known:
        return none
    text = format(statistics.median(known), form)
    return text if len(known) == 1 else f"{text} ({format(min(known), form)} to {format(max(known), form)})"


def plot(runs: Sequence[Run], path: Path) -> None:
    """Plot the best validation accuracy so far against seconds."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    colours: dict[str, Any] = {}
    for run in runs:
        best, steps = 0.0, []
        for seconds, value in run.curve:
            best = max(best, value)
            steps.append((seconds, best))
        steps.append((run.seconds or run.curve[-1][0], best))
        label = run.name if run.name not in colours else None
        (line,) = axes.step(*zip(*steps, strict=True), where="post", label=label, color=colours.get(run.name))
        colours[run.name] = line.get_color()
    axes.set_xscale("log")
    axes.set_xlabel("seconds since the command was given")
    axes.set_ylabel("best validation accuracy so far")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
