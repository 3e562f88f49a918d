"""A small search to run to its end or to disturb, and what must hold afterwards."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from commands import Fork, Forks

from thawline.config import with_driver
from thawline.tracking import MlflowStore, connect

__all__ = ["OPTIONS", "STUDY", "TRIALS", "Life", "Search", "epochs_of", "facts"]

STUDY = "shapes"
OPTIONS = [
    *("--backbone", "mobilenet_v3_small", "--weights", "starter", "--image-size", "32", "--batch-size", "8"),
    *("--study", STUDY, "--model", "shapes", "--set", "data.workers=1", "--set", "train.device=cpu"),
    # Not measured again in each home, where a different result would change the bits.
    *(
        "--set",
        "space.learning_rate=[0.001, 0.03]",
        "--set",
        "train.precision=fp32",
        "--set",
        "train.channels_last=false",
    ),
    *("--set", "tracking.system_metrics=false", "--set", "tracking.tensorboard=false"),
    *("--set", "tracking.observe=false", "--set", "tracking.report=false", "--set", "promotion.exports=[]"),
]

TRIALS = ["--trials", "4", "--epochs", "4", "--set", "study.pruner=NopPruner", "--exact"]
"""Options of the reference search and of all searches compared with it."""


def epochs_of(trials: int, epochs: int) -> set[tuple[int, int]]:
    """All (trial, epoch) of a search without pruning; the first trial is the linear probe, with one epoch."""
    return {(0, 1)} | {(trial, epoch) for trial in range(1, trials) for epoch in range(1, epochs + 1)}


@dataclass
class Life:
    """One run of the command, from its start to any end."""

    process: "subprocess.Popen[str] | Fork"
    lines: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _ended: bool = False

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                with self._changed:
                    self.lines.append(line.rstrip())
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_until(self, reached: Callable[[list[str]], bool], seconds: float = 300) -> bool:
        """Wait for a state of the log; False if the command ended before."""
        with self._changed:
            assert self._changed.wait_for(lambda: reached(self.lines) or self._ended, seconds), self.lines
            return reached(self.lines)

    def says(self, text: str) -> bool:
        return self.wait_until(lambda lines: any(text in line for line in lines))

    def workers(self) -> list[psutil.Process]:
        """The training processes: children of the fork server, which is a child of the driver."""
        with suppress(psutil.NoSuchProcess):
            driver = psutil.Process(self.process.pid)
            servers = set(driver.children())
            return [process for process in driver.children(recursive=True) if process not in servers]
        return []

    def kill_worker(self) -> bool:
        """Kill -9 only the training processes."""
        workers = self.workers()
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        return bool(workers)

    def kill_driver(self) -> None:
        """Kill -9 only the flow."""
        self.process.kill()
        self.process.wait(60)

    def kill_everything(self) -> None:
        """Kill -9 all processes at once, like a power cut."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.end(60)

    def end(self, seconds: float = 300) -> tuple[int, str]:
        """Wait for its end; returns exit code and standard output."""
        assert self.process.stdout is not None
        output = ""
        if not self.process.stdout.closed:
            with self.process.stdout as stdout:
                output = stdout.read()
        code = self.process.wait(seconds)
        self._reader.join(30)
        return code, output


@dataclass
class Search:
    """A search in its own home."""

    data: Path
    home: Path
    environment: dict[str, str]
    options: list[str]
    forks: Forks | None = None
    """The process to fork from; with ``None``, each run is a process that loads its libraries itself."""
    lives: list[Life] = field(default_factory=list)

    @property
    def store(self) -> MlflowStore:
        uri = self.environment.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.home}/mlflow.db"
        return connect(with_driver(uri), home=self.home, experiment="thawline")

    def start(self) -> Life:
        arguments = ["search", str(self.data), *self.options]
        process: subprocess.Popen[str] | Fork
        if self.forks is not None:
            process = self.forks.start(arguments, self.environment, self.home.parent)
        else:
            process = subprocess.Popen(
                [sys.executable, "-m", "thawline", *arguments],
                env=self.environment,
                cwd=self.home.parent,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        self.lives.append(Life(process))
        return self.lives[-1]

    def finish(self) -> dict[str, Any]:
        """Run it to its end; returns the result of ``--json``."""
        life = self.start()
        code, _ = life.end()
        assert code == 0, "\n".join(life.lines)
        return self.outcome()

    def outcome(self) -> dict[str, Any]:
        run_id = self.parent().info.run_id
        with tempfile.TemporaryDirectory() as folder:
            file = self.store.client.download_artifacts(run_id, "outcome.json", folder)
            return dict(json.loads(Path(file).read_text()))

    def runs(self) -> list[Any]:
        store = self.store
        return list(store.client.search_runs([store.experiment_id], max_results=1000))

    def parent(self) -> Any:
        (parent,) = [run for run in self.runs() if run.data.tags["thawline.role"] == "study"]
        return parent

    def epochs(self) -> dict[tuple[int, int], list[int]]:
        """Times of each finished epoch of each trial in MLflow: more than one is a duplicate record."""
        client, found = self.store.client, {}
        trials = [run for run in self.runs() if run.data.tags["thawline.role"] == "trial"]
        numbers = [run.data.tags["thawline.trial"] for run in trials]
        assert len(set(numbers)) == len(numbers), "a trial has two runs"
        for run in trials:
            for metric in client.get_metric_history(run.info.run_id, "val/accuracy"):
                key = (int(run.data.tags["thawline.trial"]), metric.step)
                found.setdefault(key, []).append(metric.timestamp)
        return found

    def checkpointed(self) -> dict[tuple[int, int], int]:
        """Time of each finished epoch in a checkpoint on disk."""
        from thawline.exceptions import CheckpointError
        from thawline.training import load_checkpoint

        found = {}
        for file in (self.home / "studies" / STUDY).glob("trial-*/epoch-*.safetensors"):
            with suppress(CheckpointError):
                for entry in load_checkpoint(file).state["history"]:
                    found[int(file.parent.name.removeprefix("trial-")), entry["epoch"]] = entry["finished_at"]
        return found


def facts(outcome: dict[str, Any]) -> list[Any]:
    """The facts that must be bit-equal."""
    keys = ("trial", "state", "value", "freeze_depth", "learning_rate", "best_epoch", "epochs")
    return [[row[key] for key in keys] for row in outcome["trials"]]
