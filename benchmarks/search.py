"""A whole search, Thawline's and the usual one: seconds and the best validation accuracy found, on the same trials.

Every figure is the wall time of a whole process, imports, Prefect's server, profile and store included. All designs run
the same trials (freeze depth and learning rate drawn at random once), epochs, seed and validation images. With
``--own-draws`` each draws its own from the same space: the peer by Optuna's default sampler, Thawline as it does.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
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
"""Design and its pruner."""
VALUE = re.compile(r"(?:trial-\d+ epoch \d+/\d+|linear probe): .*?val/accuracy ([\d.]+)")


@dataclass(frozen=True)
class Run:
    """One process."""

    name: str
    seconds: float
    curve: list[tuple[float, float]]
    """Seconds from the start and the validation accuracy of every epoch of every trial, and of the linear probe."""
    trials: list[tuple[int, float]]
    """Freeze depth and learning rate, in the order of their numbers; empty for the peer."""

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
        help="one without a file in weights/ has random weights: times alone count",
    )
    parser.add_argument("--train", type=int, default=200, help="training images")
    parser.add_argument("--validation", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), choices=list(DESIGNS), metavar="DESIGN")
    parser.add_argument("--head-only", action="store_true", help="only trials that train the head only")
    parser.add_argument("--own-draws", action="store_true", help="each design draws its own trials")
    parser.add_argument("--peer-trials", type=int, help="run only so many of the peer's trials, and scale up its time")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path, help="where to write all curves")
    options = parser.parse_args()
    if "usual" not in options.designs or all(name.startswith("usual") for name in options.designs):
        parser.error("--designs needs `usual`, which all are compared with, and one that draws the trials")
    file = SHARED / "weights" / f"{options.backbone.rpartition('/')[2]}_imagenet.safetensors"
    if not file.parent.is_dir():
        sys.exit(f"There is no {file.parent}. Set THAWLINE_TEST_DATA to the folder of photographs and weights.")
    weights = str(file) if file.exists() else "none"
    with tempfile.TemporaryDirectory() as folder:
        data = subset(Path(folder) / "photographs", options)
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        runs = [run for seed in seeds for run in designs(data, weights, seed, options, Path(folder))]
    report(runs, options)
    if options.json:
        options.json.write_text(json.dumps([run.__dict__ for run in runs]))
    if options.plot:
        plot(runs, options.plot)


def subset(folder: Path, options: argparse.Namespace) -> Path:
    """The first images of every class, in equal parts."""
    for split, count in (("train", options.train), ("validation", options.validation), ("test", options.validation)):
        for kind in sorted((SHARED / "data" / "clothing" / split).iterdir()):
            if not kind.is_dir():
                continue
            (folder / split / kind.name).mkdir(parents=True)
            for image in sorted(kind.iterdir())[: count // CLASSES]:
                shutil.copy(image, folder / split / kind.name / image.name)
    return folder


def designs(data: Path, weights: str, seed: int, options: argparse.Namespace, folder: Path) -> list[Run]:
    """The designs asked for with one seed, one after the other; the peer trains the trials of the first of ours."""
    runs: list[Run] = []
    for name in sorted(options.designs, key=lambda name: name.startswith("usual")):
        pruner = DESIGNS[name]
        if name.startswith("usual"):
            trials = options.trials if options.own_draws else next(run.trials for run in runs if run.trials)
            runs.append(usual(name, data, weights, seed, options, folder, trials, "--pruner", pruner))
        else:
            exact = ["--exact"] if name.startswith("exact") else []
            more = [*exact, "--set", f"study.pruner={pruner}"]
            runs.append(thawline(name, data, weights, seed, options, folder, more))
    return runs


def thawline(
    name: str, data: Path, weights: str, seed: int, options: argparse.Namespace, folder: Path, more: Sequence[str]
) -> Run:
    """A search by the command, in a home of its own."""
    home = Path(tempfile.mkdtemp(dir=folder))
    arguments = ["search", data, *common(options, weights, seed), "--trials", options.trials]
    if not options.own_draws:
        arguments += ["--set", "study.sampler=RandomSampler"]
    arguments += more
    if options.head_only:
        depth = len(layer_groups(options.backbone))
        arguments += ["--set", f"space.freeze_depth=[{depth}, {depth}]", "--set", "study.batch=30"]
    began = time.perf_counter()
    curve = []
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
    seconds = time.perf_counter() - began
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
    return Run(name, seconds, curve, [(row["freeze_depth"], row["learning_rate"]) for row in trained])


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
    """The peer, on the same trials, or on so many of its own."""
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
    return Run(name, seconds, [(epoch["seconds"], epoch["value"]) for epoch in epochs], [])


def common(options: argparse.Namespace, weights: str, seed: int) -> list[Any]:
    """The options that both commands have."""
    network = ["--backbone", options.backbone, "--weights", weights, "--image-size", options.image_size]
    return [*network, "--epochs", options.epochs, "--seed", seed]


def layer_groups(backbone: str) -> list[tuple[str, ...]]:
    """Names of the parameters and buffers of each layer group."""
    from thawline import backbones

    built = backbones.create(backbone, num_classes=CLASSES, weights="none")
    return [group.tensors for group in built.layer_groups]


def tell(name: str, seed: int, seconds: float) -> None:
    """Say how far it is."""
    print(f"seed {seed}, {name}: {seconds:.1f} s", flush=True)


def report(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """A table of medians; times as ratios to the peer within one seed."""
    import torch

    print(f"\n{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; {vars(options)}\n")
    names = list(dict.fromkeys(run.name for run in runs))
    usual_runs = [run for run in runs if run.name == "usual"]
    print("| design | seconds | times faster | best validation accuracy | seconds to half a point below usual best |")
    print("|---|---|---|---|---|")
    for name in names:
        mine = [run for run in runs if run.name == name]
        ratios = [peer.seconds / run.seconds for run, peer in zip(mine, usual_runs, strict=True)]
        reached = [run.seconds_to(peer.best - 0.005) for run, peer in zip(mine, usual_runs, strict=True)]
        print(
            f"| {name} | {spread([run.seconds for run in mine], '.0f')} | {spread(ratios, '.1f')} "
            f"| {spread([run.best for run in mine], '.3f')} | {spread(reached, '.0f')} |"
        )


def spread(values: Sequence[float | None], form: str) -> str:
    """Median, and smallest to largest."""
    known = [value for value in values if value is not None]
    if not known:
        return "never"
    text = format(statistics.median(known), form)
    return text if len(known) == 1 else f"{text} ({format(min(known), form)} to {format(max(known), form)})"


def plot(runs: Sequence[Run], path: Path) -> None:
    """The best validation accuracy found so far against seconds."""
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
        steps.append((run.seconds, best))
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
