"""What drawing, reporting and telling a trial costs as a study grows to a thousand trials.

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
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from thawline import environment

environment.prepare()

from thawline.config import SearchConfig  # noqa: E402
from thawline.search.study import Study  # noqa: E402
from thawline.search.trial_result import TrialResult  # noqa: E402
from thawline.training import Decision, EpochResult  # noqa: E402

SIZES = (50, 100, 200, 400, 700, 1000)
WINDOW = 20
EPOCHS = 8


def value_of(depth: int, rate: float, epoch: int) -> float:
    """Accuracy of a made-up trial."""
    return 0.9 - 0.02 * abs(depth - 3) - 0.03 * abs(-2.7 - rate) - 0.3 / epoch


def main() -> None:
    """Measure and print a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgres", action="store_true", help="keep the study on a PostgreSQL server")
    parser.add_argument("--sampler", default="GPSampler")
    parser.add_argument("--trials", type=int, default=SIZES[-1])
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = None
        if arguments.postgres:
            from databases import postgres_server

            url = stack.enter_context(postgres_server())()
        study = {"sampler": arguments.sampler, "storage": url, "trials": arguments.trials}
        config = SearchConfig.build({"data": {"path": "photos"}, "train": {"epochs": EPOCHS}, "study": study})
        opened = Study.open(folder, "large", config, {"resnet18": 10}, "f")
        stack.enter_context(opened.held())
        measure(opened, arguments.trials)


def measure(study: Study, trials: int) -> None:
    """Run the study; print the medians of the last trials before each size."""
    seconds: dict[str, list[float]] = {"draw": [], "report": [], "tell": []}
    for number in range(1, trials + 1):
        began = time.perf_counter()
        (asked,) = study.draw(1, trials=trials)
        seconds["draw"].append(time.perf_counter() - began)
        depth, rate = asked.hyperparameters.freeze_depth, asked.hyperparameters.learning_rate
        pruned, epoch, value = False, 0, 0.0
        while not pruned and epoch < EPOCHS:
            epoch += 1
            value = value_of(depth, math.log10(rate), epoch)
            began = time.perf_counter()
            pruned = study.report(asked.number, EpochResult(epoch, {"val/accuracy": value}, 0)) is Decision.PRUNE
            seconds["report"].append(time.perf_counter() - began)
        began = time.perf_counter()
        state = "pruned" if pruned else "complete"
        study.tell(TrialResult(asked.number, state, value, epoch, epoch, 1.0, "", "run", "file"))  # type: ignore[arg-type]
        seconds["tell"].append(time.perf_counter() - began)
        if number in SIZES:
            row = {what: round(1000 * statistics.median(values[-WINDOW:]), 1) for what, values in seconds.items()}
            print(json.dumps({"trials": number, "milliseconds": row}), flush=True)


if __name__ == "__main__":
    main()
