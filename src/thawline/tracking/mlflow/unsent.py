"""Store unsent MLflow records as JSON lines in Thawline's home, and send them at the next start."""

import base64
import io
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from thawline.tracking._base import TrackingReport
from thawline.tracking._errors import first_line
from thawline.tracking._records import (
    Artifact,
    Checkpoint,
    Dataset,
    End,
    ImageFile,
    Metrics,
    Params,
    Record,
    TableFile,
    Tags,
    Text,
    now_ms,
)
from thawline.tracking.media import Image
from thawline.tracking.mlflow.files import png
from thawline.tracking.mlflow.runs import RunAddress, open_run
from thawline.tracking.mlflow.store import MlflowStore, uri_digest
from thawline.tracking.mlflow.writer import RunWriter, is_permanent

__all__ = ["keep_unsent", "replay_unsent", "unsent_records"]

_log = logging.getLogger(__name__)


def keep_unsent(store: MlflowStore, address: RunAddress, records: Sequence[Record]) -> TrackingReport:
    """Store the records of a run for :func:`replay_unsent`; failed writes are in the report."""
    if not records:
        return TrackingReport()
    trial = "study" if address.trial is None else f"{address.trial:03d}"
    path = store.home / "unsent" / f"{address.study}-{trial}.jsonl"
    of = {"store": uri_digest(store.uri), "experiment_id": store.experiment_id, "run": asdict(address)}
    try:
        with _lock(store.home, "unsent-files"):
            _append_atomically(path, [{**of, "record": _as_json(record)} for record in records])
    except OSError as error:
        return TrackingReport(len(records), None, f"{path} cannot be written: {error}")
    return TrackingReport(len(records), path)


def replay_unsent(store: MlflowStore) -> int:
    """Send the stored records of earlier trackers of this store; returns the number of records sent.

    Records keep their timestamps, and later records of a run take precedence. They are removed once they are delivered
    or permanently refused, and kept for the next start if the store fails again. Nothing is sent while another process
    is sending, which would create the runs twice. Does not raise, because training does not depend on it.
    """
    try:
        with _lock(store.home, "unsent-sending", timeout=0):
            return _send(store)
    except (Timeout, OSError):
        return 0


def _send(store: MlflowStore) -> int:
    sent = 0
    for path in sorted((store.home / "unsent").glob("*.jsonl")):
        try:
            lines = _lines(path)
            if not all(_is_of(store, line) for line in lines):
                continue
            writers: dict[RunAddress, RunWriter] = {}
            for line, address, record in zip(lines, _addresses(lines), _records(lines), strict=True):
                there = MlflowStore(store.uri, store.registry_uri, line["experiment_id"], store.home)
                try:
                    if address not in writers:
                        writers[address] = RunWriter(there.client, open_run(there, address, late=True), late=True)
                    writers[address].write([record])
                    sent += 1
                except Exception as error:
                    if not is_permanent(error):
                        raise
                    _log.debug("given up: %s", first_line(error))
            _remove(path, len(lines), store.home)
        except Exception:  # the store fails again, or the file is not ours
            _log.debug("%s is kept", path, exc_info=True)
    return sent


def unsent_records(store: MlflowStore, study: str) -> int:
    """Number of a study's unsent records for this store in Thawline's home."""
    waiting = 0
    for path in (store.home / "unsent").glob(f"{study}-*.jsonl"):
        with suppress(FileNotFoundError):  # another process has sent it just now
            waiting += sum(_is_of(store, line) and line["run"]["study"] == study for line in _lines(path))
    return waiting


def _is_of(store: MlflowStore, line: Mapping[str, Any]) -> bool:
    """Whether a record belongs to a store. Version 0.2.0 identified a store by its password, too."""
    return line["store"] in (uri_digest(store.uri), uri_digest(store.uri, with_password=True))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _lock(home: Path, name: str, *, timeout: float = 60) -> FileLock:
    folder = home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock", timeout=timeout)


def _records(lines: Sequence[Mapping[str, Any]]) -> list[Record]:
    """The records with their timestamps.

    Version 0.1.0 only wrote timestamps of metrics, checkpoints and ends. A record without one is not later than the
    next.
    """
    records: list[Record] = []
    at = now_ms()
    for line in reversed(lines):
        at = _time(line["record"]) or at
        records.append(_record(line["record"], at))
    return records[::-1]


def _addresses(lines: Sequence[Mapping[str, Any]]) -> list[RunAddress]:
    """The run of each record. Version 0.1.0 did not write its start, which is not later than its first record."""
    first = min((at for line in lines if (at := _time(line["record"]))), default=None)
    return [RunAddress(**{"started_at": first, **line["run"]}) for line in lines]


def _time(value: Mapping[str, Any]) -> int | None:
    if value["kind"] == "metrics" and "at" not in value:
        return int(value["metrics"][0][2])
    at = value.get("at", value.get("end_time", value.get("timestamp")))
    return None if at is None else int(at)


def _as_json(record: Record) -> dict[str, Any]:
    match record:
        case Params(at, params):
            return {"kind": "params", "at": at, "params": dict(params)}
        case Tags(at, tags):
            return {"kind": "tags", "at": at, "tags": dict(tags)}
        case Metrics(at, values, step):
            metrics = [[name, value, at, step] for name, value in values.items()]
            return {"kind": "metrics", "at": at, "metrics": metrics}
        case Artifact(at, path, folder):
            return {"kind": "artifact", "at": at, "path": str(path), "folder": folder}
        case Text(at, text, file):
            return {"kind": "text", "at": at, "text": text, "file": file}
        case ImageFile(at, image, file):
            return {"kind": "image", "at": at, "picture": base64.b64encode(png(image)).decode(), "file": file}
        case TableFile(at, text, file):
            return {"kind": "table", "at": at, "text": text, "file": file}
        case Checkpoint():
            return {"kind": "checkpoint", **asdict(record), "path": str(record.path)}
        case Dataset():
            return {"kind": "dataset", **asdict(record)}
        case End(at, status):
            return {"kind": "status", "at": at, "status": status}
        case _:
            raise TypeError(f"MLflow does not record {type(record).__name__}")


def _record(value: Mapping[str, Any], at: int) -> Record:
    """The inverse of :func:`_as_json`."""
    match value["kind"]:
        case "params":
            return Params(at, value["params"])
        case "tags":
            return Tags(at, value["tags"])
        case "metrics":
            metrics = value["metrics"]
            return Metrics(at, {name: number for name, number, _, _ in metrics}, step=metrics[0][3])
        case "artifact":
            return Artifact(at, Path(value["path"]), value["folder"])
        case "text":
            return Text(at, value["text"], value["file"])
        case "image":
            return ImageFile(at, _image(base64.b64decode(value["picture"])), value["file"])
        case "table":
            return TableFile(at, value["text"], value["file"])
        case "checkpoint":
            dataset = None if value["dataset"] is None else (value["dataset"][0], value["dataset"][1])
            path, name, epoch = Path(value["path"]), value["name"], value["epoch"]
            return Checkpoint(at, path, name, epoch, value["metrics"], dataset, value["params"])
        case "dataset":
            what = {key: value[key] for key in ("name", "digest", "source", "profile", "context")}
            return Dataset(at, **what)
        case "status":
            return End(at, value["status"])
        case kind:
            raise ValueError(f"there is no kind of record {kind!r}")


def _image(encoded: bytes) -> Image:
    from PIL import Image as Pillow

    with Pillow.open(io.BytesIO(encoded)) as picture:
        return Image(np.asarray(picture.convert("RGB")))


def _remove(path: Path, count: int, home: Path) -> None:
    """Remove the first records of a file, but not those that were added while these were sent."""
    with _lock(home, "unsent-files"):
        added = path.read_text(encoding="utf-8").splitlines(keepends=True)[count:]
        if added:
            _write_atomically(path, "".join(added))
        else:
            path.unlink()


def _append_atomically(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    _write_atomically(path, before + "".join(json.dumps(line) + "\n" for line in lines))


def _write_atomically(path: Path, text: str) -> None:
    """Write a file: a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
