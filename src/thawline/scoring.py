"""``thawline score``: classify any number of images or texts into one table, resumable after an interruption."""

import csv
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thawline.data import DataKind, as_text, given_texts, image_files, write_atomically
from thawline.engines import EngineName
from thawline.exceptions import DataError
from thawline.registry import MlflowRegistry, ModelName, check_text_column, parse_model
from thawline.serving.served import ServedModel
from thawline.tracking import open_store

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ScoreSummary", "score_files"]

_BATCH = 32
_PART = 1024
"""Number of rows written at once, and the maximum lost when the process dies."""
_PATH_COLUMN = "path"

_Items = Sequence[Path] | Sequence[str]
"""Image files, or texts."""


@dataclass(frozen=True)
class ScoreSummary:
    """The result of scoring."""

    model: str
    version: str
    out: Path
    items: int
    """Number of images or texts."""
    bad: int
    """Number of unreadable ones; their rows have a reason instead of a class."""
    resumed: int
    """Number of rows from an interrupted run."""
    kind: DataKind = "images"

    def __str__(self) -> str:
        parts = [f"{self.items} {self.kind} scored by {self.model} version {self.version}: {self.out}"]
        if self.bad:
            parts.append(f"{self.bad} could not be read: see the column `error`")
        if self.resumed:
            parts.append(f"{self.resumed} were already done")
        return "; ".join(parts)


def score_files(
    model: str,
    source: Path,
    out: Path,
    *,
    tracking_uri: str | None,
    home: Path,
    device: str = "auto",
    engine: EngineName = "auto",
    text_column: str | None = None,
    rows_per_part: int = _PART,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ScoreSummary:
    """Classify every image of a folder or of a list of paths, or every text of a file, into a Parquet file.

    The file has a row for each image or text, in order: ``path``, or ``row`` (the number of the text, from 1) and
    ``text``; then ``class``, ``probability``, ``probabilities`` (a struct with a field for each class),
    ``prediction_set`` (classes that it may belong to), ``unknown`` (whether it seems to belong to none) and ``error``,
    the reason if it cannot be read. Rows are written to parts beside the file until all are complete; after an
    interruption, the same command reuses the complete parts and computes the rest.

    Args:
        model: ``NAME``, ``NAME@alias`` or ``NAME/version``.
        source: for an image model, a folder of images, a CSV file with a column ``path``, or a text file with one path
            per line; relative paths start from the folder of that file. For a text model, a file of texts, see
            :func:`thawline.data.given_texts`.
        out: the file to write; an existing file is replaced when everything is computed.
        tracking_uri: URI of the registry; by default as for a search.
        home: Thawline's home.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        engine: for the network, see :func:`thawline.engines.choose`.
        text_column: column with the texts in the table: its name, or its number (from 1) in a table without header; by
            default the column that the model was trained on, else detected.
        rows_per_part: number of rows written at a time, and the maximum lost by an interruption.
        on_progress: called with (items done, total).

    Raises:
        RegistryError: if there is no such model, or a text column is given for an image model.
        DataError: if the source does not exist or lists no file or text, if the text column is missing or cannot be
            detected, or if the output cannot be written.
    """
    name = parse_model(model)
    if out.suffix != ".parquet":
        raise DataError(f"The output must end in .parquet, but got {out}.")
    if not out.parent.is_dir():
        raise DataError(f"There is no folder {out.parent} to write {out.name} into.")
    store = open_store(tracking_uri, home)
    registry = MlflowRegistry(store)
    version = registry.resolve(name)
    chosen = ModelName(name.name, None, version)
    taken = registry.input_of(chosen)
    check_text_column(text_column, chosen, taken.kind)
    items: _Items = _texts(source, text_column, taken.text_column) if taken.kind == "texts" else _files(source)
    served = ServedModel(registry.load(chosen, device=device, engine=engine), device)
    parts = _Parts(out, served, items, registry=[store.name, *store.registry_tag])
    resumed = bad = done = 0
    on_progress(0, len(items))
    for number, part in enumerate(_cut(items, rows_per_part)):
        table = parts.read(number)
        if table is None:
            rows = _rows(served, part, done, partial(_report, on_progress, done, len(items)))
            table = parts.write(number, rows)
        else:
            resumed += len(part)
        bad += len(part) - table.column("error").null_count
        done += len(part)
        on_progress(done, len(items))
    parts.join()
    return ScoreSummary(name.name, version, out, len(items), bad, resumed, served.kind)


def _report(on_progress: Callable[[int, int], None], before: int, total: int, rows: int) -> None:
    on_progress(before + rows, total)


class _Parts:
    """Tables in a folder beside the output, valid for one model of one registry and one list of items."""

    def __init__(self, out: Path, model: ServedModel, items: _Items, *, registry: Sequence[str]) -> None:
        self._out, self._folder = out, out.with_name(f"{out.name}.parts")
        self._schema = _schema(model)
        listed = hashlib.sha256(json.dumps([_identity(item) for item in items]).encode()).hexdigest()
        of_model = {"model": model.name, "version": model.version, "registry": registry}
        job = json.dumps({**of_model, "items": listed}).encode()
        described = self._folder / "job.json"
        with self._writing():
            if not described.is_file() or described.read_bytes() != job:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder.mkdir()
                write_atomically(described, job)
        self._count = 0

    def read(self, number: int) -> "pa.Table | None":
        """A part of an earlier run, if it is complete."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._count = number + 1
        try:
            return pq.read_table(self._path(number), schema=self._schema)
        except (OSError, pa.ArrowInvalid):
            return None

    def write(self, number: int, rows: list[dict[str, Any]]) -> "pa.Table":
        """Write a part atomically."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist(rows, schema=self._schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        with self._writing():
            write_atomically(self._path(number), sink.getvalue().to_pybytes())
        return table

    def join(self) -> None:
        """Join all parts in one file, which replaces the output when it is complete."""
        import pyarrow.parquet as pq

        whole = self._folder / "whole.parquet"
        with self._writing():
            with pq.ParquetWriter(whole, self._schema) as writer:
                for number in range(self._count):
                    writer.write_table(pq.read_table(self._path(number), schema=self._schema))
            whole.replace(self._out)
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self._out} cannot be written through {self._folder}: {error.strerror or error}. Free space, or make "
                "the folder writable; the same command then resumes."
            ) from error

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.parquet"


def _identity(item: Path | str) -> list[str | int]:
    """Values that change when an image file changes; for a text, the text itself."""
    if isinstance(item, str):
        return [item]
    try:
        status = item.stat()
    except OSError:  # its row will have the reason
        return [str(item)]
    return [str(item), status.st_size, status.st_mtime_ns]


def _rows(model: ServedModel, items: _Items, before: int, on_rows: Callable[[int], None]) -> list[dict[str, Any]]:
    """A row for each item, numbered from ``before`` + 1; while a batch is classified, the next ones are prepared."""
    rows: list[dict[str, Any]] = []
    for batch, prepared in _prepared(model, list(_cut(items, _BATCH))):
        readable = [each for each in prepared if not isinstance(each, str)]
        answers = iter(model.answers(readable) if readable else [])
        for item, each in zip(batch, prepared, strict=True):
            number = before + len(rows) + 1
            named = {"row": number, "text": item} if isinstance(item, str) else {"path": as_text(str(item))}
            rows.append(named | ({"error": each} if isinstance(each, str) else model.row(next(answers))))
        on_rows(len(rows))
    return rows


def _prepared(model: ServedModel, batches: Sequence[_Items]) -> Iterator[tuple[_Items, list[Any]]]:
    """Batches with the prepared items, or the reason why one is unreadable; two batches ahead."""

    def prepare(item: Path | str) -> Any:
        try:
            return model.prepare(item.read_bytes() if isinstance(item, Path) else item)
        except OSError as error:
            return error.strerror or type(error).__name__
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="prepare") as pool:
        ahead: deque[tuple[_Items, list[Future[Any]]]] = deque()
        for batch in batches:
            ahead.append((batch, [pool.submit(prepare, item) for item in batch]))
            if len(ahead) > 2:
                yield _finished(ahead.popleft())
        while ahead:
            yield _finished(ahead.popleft())


def _finished(preparing: tuple[_Items, list[Future[Any]]]) -> tuple[_Items, list[Any]]:
    batch, futures = preparing
    return batch, [future.result() for future in futures]


def _texts(source: Path, text_column: str | None, trained: str | None) -> list[str]:
    if not (texts := given_texts(source, text_column, trained=trained)):
        raise DataError(f"{source} contains no text.")
    return texts


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        files = image_files(source)
    elif source.is_file():
        files = [source.parent / path for path in _listed(source)]
    else:
        raise DataError(f"{source} does not exist. Give a folder of images, or a file that lists their paths.")
    if not files:
        raise DataError(f"{source} contains no image file.")
    return files


def _listed(source: Path) -> list[str]:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{source} is not text: give a folder, a CSV file with a column `path`, or a list.") from None
    if source.suffix.lower() != ".csv":
        return [line.strip() for line in text.splitlines() if line.strip()]
    rows = csv.DictReader(text.splitlines())
    if _PATH_COLUMN not in (rows.fieldnames or ()):
        columns = ", ".join(rows.fieldnames or ()) or "none"
        raise DataError(f"{source} needs a column `{_PATH_COLUMN}`; its columns: {columns}.")
    return [row[_PATH_COLUMN] for row in rows if row[_PATH_COLUMN]]


def _schema(model: ServedModel) -> "pa.Schema":
    import pyarrow as pa

    named = [("row", pa.int64()), ("text", pa.string())] if model.kind == "texts" else [("path", pa.string())]
    return pa.schema(
        [
            *named,
            ("class", pa.string()),
            ("probability", pa.float64()),
            ("probabilities", pa.struct([(name, pa.float64()) for name in model.classes])),
            ("prediction_set", pa.list_(pa.string())),
            ("unknown", pa.bool_()),
            ("error", pa.string()),
        ]
    )


def _cut(values: _Items, size: int) -> Iterator[_Items]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
