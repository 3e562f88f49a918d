"""Fixed costs of commands, independent of the data: start, result, exit.

Each search is a separate process whose output is read line by line; a phase lasts from its line to that of the next.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PHASES = (
    ("imports, Prefect's server", "start", None),
    ("loading the backbone", "fixed", r"loading (?!PyTorch)"),
    ("reading images", "data", r"reading images"),
    ("resizing images", "data", r"resizing images"),
    ("measuring layer groups", "fixed", r"measuring "),
    ("storing activations", "store", r"storing activations$"),
    ("linear probes", "train", r"fitting linear probes"),
    ("trials", "train", r"trial-00 "),
    ("packaging", "end", r"packaging "),
    ("scoring", "end", r"scoring "),
    ("report", "end", r"writing the report"),
    ("result", "end", r"Study "),
    ("leaving", "end", r"  \S+ ui "),
)
"""Name of a phase, its kind of work, and its first line."""
_STAMP = re.compile(r"^\d\d:\d\d:\d\d ")


def main() -> None:
    """Print three tables: phases of a search in an existing home, in a new one, and other commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of images")
    parser.add_argument("--weights", type=Path, required=True, help="weights of squeezenet1_0")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    network = ("--backbone", "squeezenet1_0", "--weights", str(options.weights.resolve()), "--image-size", "128")
    arguments = ("search", str(options.data.resolve()), *network, "--trials", "2", "--epochs", "1")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        phases_of((*arguments, "--study", "first"), home)  # also writes the templates of the databases
        print("## A search in a home that exists, Prefect's server up\n")
        table([phases_of((*arguments, "--study", f"s{run}"), home) for run in range(options.runs)])
        print("\n## The same, Prefect's server to be started\n")
        table([with_server_down(arguments, home, f"d{run}") for run in range(options.runs)])
        print("\n## The same in a fresh home\n")
        table([in_fresh_home(arguments, Path(folder) / f"fresh-{run}") for run in range(options.runs)])
        print("\n## Other commands\n\n| command | seconds, median | lowest | highest |\n|---|---|---|---|")
        image = str(next(path for path in options.data.resolve().rglob("*.jpg")))
        model = options.data.resolve().name
        others = (("--help",), ("leaderboard",), ("history", model), ("predict", model, image))
        for other in others:
            seconds = [seconds_of(other, home) for _ in range(options.runs)]
            cells = (statistics.median(seconds), min(seconds), max(seconds))
            print(f"| {' '.join(other[:1])} | {' | '.join(f'{cell:.2f}' for cell in cells)} |", flush=True)
        thawline(("down",), home).wait()


def phases_of(arguments: Sequence[str], home: Path) -> dict[str, float]:
    """Seconds of each phase of one search."""
    began = now = time.perf_counter()
    waiting, seconds, phase = list(PHASES[1:]), dict.fromkeys((name for name, _, _ in PHASES), 0.0), PHASES[0][0]
    with thawline(arguments, home) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said = _STAMP.sub("", line.rstrip())
            found = next((place for place in waiting if place[2] and re.match(place[2], said)), None)
            if found:
                then, now = now, time.perf_counter()
                seconds[phase] += now - then
                phase, waiting = found[0], waiting[waiting.index(found) + 1 :]
    seconds[phase] += time.perf_counter() - now
    if process.returncode or phase != PHASES[-1][0]:
        raise SystemExit(f"thawline {' '.join(arguments)} ended with {process.returncode} while {phase}")
    assert abs(sum(seconds.values()) - (time.perf_counter() - began)) < 0.1
    return seconds


def with_server_down(arguments: Sequence[str], home: Path, study: str) -> dict[str, float]:
    """The same after `thawline down`."""
    thawline(("down",), home).wait()
    return phases_of((*arguments, "--study", study), home)


def in_fresh_home(arguments: Sequence[str], home: Path) -> dict[str, float]:
    """The same in a new home."""
    seconds = phases_of(arguments, home)
    thawline(("down",), home).wait()
    shutil.rmtree(home)
    return seconds


def seconds_of(arguments: Sequence[str], home: Path) -> float:
    """Seconds of a whole command."""
    began = time.perf_counter()
    if code := thawline(arguments, home).wait():
        raise SystemExit(f"thawline {' '.join(arguments)} ended with {code}")
    return time.perf_counter() - began


def thawline(arguments: Sequence[str], home: Path) -> "subprocess.Popen[str]":
    """The command with output to a pipe, which short output never fills."""
    return subprocess.Popen(
        [sys.executable, "-m", "thawline", *arguments],
        env={**os.environ, "THAWLINE_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def table(runs: Sequence[dict[str, float]]) -> None:
    """Medians with minimum and maximum, and the sums that have goals."""

    def row(name: str, of: Callable[[dict[str, float]], float]) -> None:
        values = [of(run) for run in runs]
        cells = (statistics.median(values), min(values), max(values))
        print(f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |", flush=True)

    print("| phase | seconds, median | lowest | highest |\n|---|---|---|---|")
    for name, _, _ in PHASES:
        row(name, lambda run, name=name: run[name])  # type: ignore[misc]
    names = [name for name, _, _ in PHASES]
    kinds = {kind: [name for name, other, _ in PHASES if other == kind] for _, kind, _ in PHASES}
    before_trials = names[: names.index("trials")]
    row("**until the first trial**", lambda run: sum(run[name] for name in before_trials))
    row("**from the last trial to the prompt**", lambda run: sum(run[name] for name in kinds["end"]))
    own = [name for kind in ("start", "fixed", "end") for name in kinds[kind]]
    row("**all but data, storing and training**", lambda run: sum(run[name] for name in own))


if __name__ == "__main__":
    main()
