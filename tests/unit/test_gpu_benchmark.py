"""The benchmark for GPUs runs without one, and without what it does not measure."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
WITHOUT = """
import runpy, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mlflow", "optuna", "prefect"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.timeout(300)
def test_it_measures_every_loop_on_a_cpu_without_mlflow_optuna_and_prefect() -> None:
    command = [sys.executable, "-c", WITHOUT, str(BENCHMARK), "--tiny"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ended.stdout.splitlines() if "|" in line]
    measured = {(row[1], re.sub(r" \(.*\)", "", row[2])) for row in rows if row[0] == "squeezenet1_1"}
    loops = {(depth, what) for depth in ("0", "2", "4") for what in ("training", "checkpoint", "evaluation")}
    assert measured >= loops | {("2", "fill")}
    rates = [
        float(row[3].replace(",", "")) for row in rows if row[0] == "squeezenet1_1" and row[2] in ("evaluation", "fill")
    ]
    assert all(rate > 0 for rate in rates)
    assert ended.stdout.count("| squeezenet1_1 | 4 | ") >= 2, "four clients, too"
