"""Freeze-thaw versus Optuna's pruners, replayed on recorded learning curves: twenty searches per task in seconds.

``curves.jsonl`` has the curve and the seconds of every trial of a grid, each trained to the end. Like a real search, a
replayed one tries the linear probe, then the portfolio, then the others in random order, in batches of four, each
cheapest first. For each pruner, the table has its share of all seconds and epochs, and how much worse the best value is
than without a pruner, at the end and during the search.

    python benchmarks/portfolio.py measure benchmarks/curves.jsonl --epochs 8 --heads soft …
    python benchmarks/freeze_thaw.py [--plot FILE]
"""

import argparse
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

from thawline.search.freeze_thaw import Curve, FreezeThaw
from thawline.search.space import PORTFOLIO

BATCH = 4
SHARES = np.linspace(0.05, 1.0, 20)
"""Shares of the seconds of a search without a pruner at which searches are compared."""


@dataclass(frozen=True)
class Trial:
    """A recorded trial."""

    depth: int
    deepest: int
    rate: float
    policy: str
    values: tuple[float, ...]
    seconds: float
    """Seconds per epoch."""

    @property
    def point(self) -> tuple[float, ...]:
        """The hyperparameters as scaled by a study."""
        rate = (math.log10(self.rate) + 5) / 3
        return (self.depth / self.deepest, rate, float(self.policy != "static"), float(self.policy == "static"))


@dataclass(frozen=True)
class Task:
    """A data set with a backbone."""

    name: str
    probe: float
    """Value of the linear probe."""
    trials: tuple[Trial, ...]

    def order(self, seed: int) -> list[Trial]:
        """The order of a search: the portfolio, cheapest first, then the others in batches."""
        first = [trial for start in PORTFOLIO for trial in self.trials if self._is_start(trial, start)]
        rest = [trial for trial in self.trials if trial not in first]
        random.Random(seed).shuffle(rest)
        batches = [first, *(rest[i : i + BATCH] for i in range(0, len(rest), BATCH))]
        return [trial for batch in batches for trial in sorted(batch, key=lambda each: -each.depth)]

    @staticmethod
    def _is_start(trial: Trial, start: object) -> bool:
        share, rate, policy = start.share, start.learning_rate, start.policy or "static"  # type: ignore[attr-defined]
        at = (round(share * trial.deepest), policy)
        return (trial.depth, trial.policy) == at and math.isclose(trial.rate, rate)


Course = list[tuple[float, float]]
"""Seconds and best value after each epoch of a search."""


def pruned(task: Task, order: Sequence[Trial], make: Callable[[], BasePruner]) -> Course:
    """Replay a search with one of Optuna's pruners."""
    study = optuna.create_study(direction="maximize", pruner=make())
    course: Course = []
    best, spent = task.probe, 0.0
    for trial in order:
        asked = study.ask()
        for epoch, value in enumerate(trial.values, start=1):
            spent, best = spent + trial.seconds, max(best, value)
            course.append((spent, best))
            asked.report(value, epoch)
            if epoch < len(trial.values) and asked.should_prune():
                study.tell(asked, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(asked, max(trial.values))
    return course


def frozen(task: Task, order: Sequence[Trial], rule: FreezeThaw, *, by_time: bool = False) -> Course:
    """Replay a search with freeze-thaw."""
    course: Course = []
    best, spent = task.probe, 0.0
    trained: dict[int, int] = {}
    while True:
        new = [number for number in range(len(order)) if number not in trained][:1]
        curves = [
            Curve(number, order[number].point, order[number].values[: trained.get(number, 0)], order[number].seconds)
            for number in [*trained, *new]
        ]
        epochs = len(order[0].values)
        chosen = rule.choose(curves, epochs=epochs, best=best, perfect=1.0, by_time=by_time)
        if chosen is None:
            return course
        trained[chosen] = trained.get(chosen, 0) + 1
        spent, best = spent + order[chosen].seconds, max(best, order[chosen].values[trained[chosen] - 1])
        course.append((spent, best))


DESIGNS: dict[str, Callable[[Task, Sequence[Trial]], Course]] = {
    "no pruner": partial(pruned, make=NopPruner),
    "MedianPruner, the default": partial(pruned, make=lambda: MedianPruner(n_startup_trials=8, n_warmup_steps=2)),
    "SuccessiveHalvingPruner (ASHA)": partial(pruned, make=lambda: SuccessiveHalvingPruner(reduction_factor=2)),
    "freeze_thaw": partial(frozen, rule=FreezeThaw()),
    "freeze_thaw by time": partial(frozen, rule=FreezeThaw(), by_time=True),
    "freeze_thaw, least_chance 0.03": partial(frozen, rule=FreezeThaw(least_chance=0.03)),
    "freeze_thaw, no startup trials": partial(frozen, rule=FreezeThaw(n_startup_trials=0)),
}


def read(path: Path) -> list[Task]:
    """The recorded tasks."""
    probes: dict[str, float] = {}
    trials: dict[str, list[Trial]] = defaultdict(list)
    for line in map(json.loads, path.read_text().splitlines()):
        task = f"{line['task']}, seed {line['seed']}"
        if line["kind"] == "probe":
            probes[task] = line["probe"][1]
            continue
        values = tuple(line["values"])
        named = (line["depth"], line["deepest"], line["rate"], line["policy"])
        trials[task].append(Trial(*named, values, line["seconds"] / len(values)))
    return [Task(task, probes[task], tuple(found)) for task, found in trials.items()]


def best_at(task: Task, course: Course, seconds: float) -> float:
    """The best value up to a time."""
    return max((best for spent, best in course if spent <= seconds), default=task.probe)


def measured(task: Task, name: str, seeds: int) -> Iterator[list[float]]:
    """For each search: share of seconds, share of epochs, points lost at the end, points lost during the search."""
    for seed in range(seeds):
        order = task.order(seed)
        whole = DESIGNS["no pruner"](task, order)
        course = DESIGNS[name](task, order)
        seconds, value = whole[-1]
        way = [value - best_at(task, course, share * seconds) for share in SHARES]
        yield [
            course[-1][0] / seconds,
            len(course) / len(whole),
            100 * (value - course[-1][1]),
            100 * float(np.mean(way)),
        ]


def main() -> None:
    """Print a table of each task and of their mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, default=Path(__file__).with_name("curves.jsonl"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--plot", type=Path, help="SVG file of the points lost during the search")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tasks = read(options.curves)
    every: dict[str, list[list[float]]] = defaultdict(list)
    print("| task | pruner | seconds | epochs | points lost at the end | meanwhile |\n|---|---|---|---|---|---|")
    for task in tasks:
        for name in DESIGNS:
            seconds, epochs, lost, way = np.mean(list(measured(task, name, options.seeds)), axis=0)
            every[name].append([seconds, epochs, lost, way])
            print(f"| {task.name} | {name} | {seconds:.0%} | {epochs:.0%} | {lost:.2f} | {way:.2f} |", flush=True)
    for name, rows in every.items():
        (seconds, epochs, lost, way), (*_, most, _) = np.mean(rows, axis=0), np.max(rows, axis=0)
        at_end = f"{lost:.2f} (at most {most:.2f})"
        print(f"| mean of {len(tasks)} | {name} | {seconds:.0%} | {epochs:.0%} | {at_end} | {way:.2f} |")
    if options.plot:
        draw(tasks, options.seeds, options.plot)


def draw(tasks: Sequence[Task], seeds: int, path: Path) -> None:
    """Plot points lost against the share of seconds, averaged over all tasks."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "thawline"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    shares = np.linspace(0.01, 1.0, 100)
    for name in list(DESIGNS)[:4]:
        lost = []
        for task in tasks:
            for seed in range(seeds):
                order = task.order(seed)
                seconds, value = DESIGNS["no pruner"](task, order)[-1]
                course = DESIGNS[name](task, order)
                lost.append([100 * (value - best_at(task, course, share * seconds)) for share in shares])
        axes.plot(100 * shares, np.mean(lost, axis=0), label=name)
    axes.set(xlabel="seconds, % of a search without a pruner", ylabel="points below its best", ylim=(0, None))
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
