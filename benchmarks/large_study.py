"""Cost of drawing, reporting and telling a trial as a study grows to a thousand trials.

    python benchmarks/large_study.py
    python benchmarks/large_study.py --postgres

Nothing is trained: values come from a smooth surface. Each number is the median over the trials before that size.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from thawline import environment

environment.prepare()

from thawline.config import SearchConfig  # noqa: E402
from thawline.search.conduct import Queue  # noqa: E402
from thawline.search.study import Study  # noqa: E402
from thawline.search.trial_result import TrialResult  # noqa: E402
from thawline.training import Decision, EpochResult  # noqa: E402

SIZES = (50, 100, 200, 400, 700, 1000)
WINDOW = 20
EPOCHS = 8


def value_of(depth: int, rate: float, epoch: int) -> float:
    """Accuracy of a simulated trial."""
    return 0.9 - 0.02 * abs(depth - 3) - 0.03 * abs(-2.7 - rate) - 0.3 / epoch


def main() -> None:
    """Measure and print a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgres", action="store_true", help="store the study on a PostgreSQL server")
    parser.add_argument("--sampler", default="GPSampler")
    parser.add_argument("--pruner", default="MedianPruner")
    parser.add_argument("--trials", type=int, default=SIZES[-1])
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = None
        if arguments.postgres:
            from databases import postgres_server

            url = stack.enter_context(postgres_server())()
        study = {"sampler": arguments.sampler, "pruner": arguments.pruner, "storage": url, "trials": arguments.trials}
        config = SearchConfig.build({"data": {"path": "photos"}, "train": {"epochs": EPOCHS}, "study": study})
        opened = Study.open(folder, "large", config, {"resnet18": 10}, "f")
        stack.enter_context(opened.held())
        measure(opened, arguments.trials)


def measure(study: Study, trials: int) -> None:
    """Run the study; print the medians of the last trials before each size."""
    seconds: dict[str, list[float]] = {"draw": [], "report": [], "tell": []}
    queue = Queue(study, trials=trials, batch=1, deadline=None, apart=True)
    epochs, printed = Counter[int](), 0

    def timed(what: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        value = call()
        seconds[what].append(time.perf_counter() - began)
        return value

    while together := timed("draw", queue.next):
        (asked,) = together
        depth, rate = asked.hyperparameters.freeze_depth, max(1e-6, asked.hyperparameters.learning_rate)
        last = 1 if asked.hyperparameters.is_probe else EPOCHS
        decision, value = Decision.CONTINUE, 0.0
        while decision is Decision.CONTINUE and epochs[asked.number] < last:
            epochs[asked.number] += 1
            value = value_of(depth, math.log10(rate), epochs[asked.number])
            result = EpochResult(epochs[asked.number], {"val/accuracy": value}, 0)
            decision = timed("report", partial(study.report, asked.number, result))
        state = {Decision.PRUNE: "pruned", Decision.PAUSE: "paused"}.get(decision, "complete")
        done = TrialResult(asked.number, state, value, 1, epochs[asked.number], 1.0, "", "run", "file")  # type: ignore[arg-type]
        timed("tell", partial(study.tell, done))
        if len(epochs) in SIZES and len(epochs) > printed:
            printed = len(epochs)
            row = {what: round(1000 * statistics.median(values[-WINDOW:]), 1) for what, values in seconds.items()}
            print(json.dumps({"trials": printed, "milliseconds": row}), flush=True)


if __name__ == "__main__":
    main()
