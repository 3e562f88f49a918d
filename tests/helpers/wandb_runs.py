"""Read W&B's files, for which wandb only has a separate program.

A ``.wandb`` file is a LevelDB log: blocks of 32 KiB with records with a header of seven bytes, after seven bytes of the
file's own.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import wandb
from wandb.proto import wandb_internal_pb2

from thawline.config import TrackingConfig
from thawline.tracking._base import TrackerRun
from thawline.tracking.wandb import WandbTracker

_BLOCK, _HEADER = 32768, 7


@dataclass
class WandbRun:
    """One run as sent by ``wandb sync``."""

    id: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    notes: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    step_metrics: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    """Local paths of each artifact's files, by ``type/name``."""
    exit_code: int | None = None

    @property
    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        """Steps and values by name, in order."""
        points: dict[str, list[tuple[int, float]]] = {}
        for row in self.history:
            for name, value in row.items():
                over = self.step_metrics.get(re.sub("/.*", "/*", name))
                if over is not None and isinstance(value, (int, float)):
                    points.setdefault(name, []).append((row[over], float(value)))
        return points


def wandb_folders(home: Path) -> list[Path]:
    """Complete folders of all runs below a home, oldest first: ends W&B's process, which writes after a run's end.

    Only for runs whose trackers are closed.
    """
    wandb.teardown()
    return sorted((home / "wandb").glob("offline-run-*"))


def read_wandb_run(folder: Path) -> WandbRun:
    """Read W&B's files in ``folder``, such as ``wandb/offline-run-…``."""
    run = WandbRun()
    for record in _records(next(folder.glob("run-*.wandb")).read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                told = record.run
                run.id, run.project, run.group, run.job_type = told.run_id, told.project, told.run_group, told.job_type
                run.name, run.notes = told.display_name, told.notes
                run.config |= _values(told.config.update)
            case "config":
                run.config |= _values(record.config.update)
            case "summary":
                run.summary |= _values(record.summary.update)
            case "history":
                run.history.append(_values(record.history.item))
            case "metric":
                run.step_metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            case "files":
                run.files += [file.path for file in record.files.files]
            case "artifact":
                entries = [entry.local_path for entry in record.artifact.manifest.contents]
                run.artifacts[f"{record.artifact.type}/{record.artifact.name}"] = entries
            case "exit":
                run.exit_code = record.exit.exit_code
    return run


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "\0".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(content: bytes) -> Iterator[Any]:
    assert content[:4] == b":W&B"
    position, parts = _HEADER, b""
    while position + _HEADER <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        size, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        parts += content[position + _HEADER : position + _HEADER + size]
        position += _HEADER + size
        if kind in {1, 4}:  # complete, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def record_an_epoch(home: Path, pipe: Connection) -> None:
    """Record one complete run, and send the id of W&B's process for it through ``pipe``."""
    run = TrackerRun(home, "shapes", 7, "trial-07", "0123456789abcdef", "accuracy")
    tracker = WandbTracker.for_run(run, TrackingConfig(wandb="offline", system_metrics=False))
    pipe.send([child.pid for child in psutil.Process().children()])
    tracker.log_metrics({"val/accuracy": 0.5}, step=1)
    tracker.close("FINISHED")
