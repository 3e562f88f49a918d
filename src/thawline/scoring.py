"""``thawline score``: any number of image files to one table, streaming, and gone on with after an interruption."""

import csv
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thawline.data import image_files, write_atomically
from thawline.exceptions import DataError
from thawline.registry import MlflowRegistry, ModelName, parse_model
from thawline.serving.served import ServedModel
from thawline.tracking import open_store

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ScoreSummary", "score_files"]

_BATCH = 32
_PART = 1024
"""Files whose rows are written at once: what is lost at most when the process dies."""
_PATH_COLUMN = "path"


@dataclass(frozen=True)
class ScoreSummary:
    """What came of it."""

    model: str
    version: str
    out: Path
    files: int
    bad: int
    """Files that could not be read; their rows have a reason instead of a class."""
    resumed: int
    """Files whose rows an interrupted run had left."""

    def __str__(self) -> str:
        parts = [f"{self.files} files scored by {self.model} version {self.version}: {self.out}"]
        if self.bad:
            parts.append(f"{self.bad} could not be read: the column `error` says why")
        if self.resumed:
            parts.append(f"{self.resumed} were done already")
        return "; ".join(parts)


def score_files(
    model: str,
    source: Path,
    out: Path,
    *,
    tracking_uri: str | None,
    home: Path,
    device: str = "auto",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ScoreSummary:
    """Classify every image file of a folder, or of a list of paths, into a Parquet file.

    The file has a row for each image, in order: ``path``, ``class``, ``probability``, ``probabilities`` (a struct with
    a field for each class) and ``error``, the reason why an image cannot be read. Rows lie in parts beside the file
    until all are there; after an interruption the same command takes the parts that are whole and computes the rest.

    Args:
        model: ``NAME``, ``NAME@alias`` or ``NAME/version``.
        source: a folder, searched for image files; or a CSV file with a column ``path``, or a text file of one path a
            line; relative paths begin where that file lies.
        out: the file to write; one that exists is replaced once all is computed.
        tracking_uri: where the registry is; by default as for a search.
        home: Thawline's home.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        on_progress: called with (files done, files in all).

    Raises:
        RegistryError: if there is no such model.
        DataError: if the source does not exist or names no file, or the output cannot be written.
    """
    name = parse_model(model)
    files = _files(source)
    if out.suffix != ".parquet":
        raise DataError(f"The output must end in .parquet, but got {out}.")
    if not out.parent.is_dir():
        raise DataError(f"There is no folder {out.parent} to write {out.name} into.")
    registry = MlflowRegistry(open_store(tracking_uri, home))
    version = registry.resolve(name)
    served = ServedModel(registry.load(ModelName(name.name, None, version)), device)
    parts = _Parts(out, served, files)
    resumed = bad = done = 0
    on_progress(0, len(files))
    for number, paths in enumerate(_cut(files, _PART)):
        table = parts.read(number)
        if table is None:
            table = parts.write(number, _rows(served, paths, partial(_report, on_progress, done, len(files))))
        else:
            resumed += len(paths)
        bad += len(paths) - table.column("error").null_count
        done += len(paths)
        on_progress(done, len(files))
    parts.join()
    return ScoreSummary(name.name, version, out, len(files), bad, resumed)


def _report(on_progress: Callable[[int, int], None], before: int, total: int, rows: int) -> None:
    on_progress(before + rows, total)


class _Parts:
    """Tables of a thousand rows in a folder beside the output, valid for one model and one list of files."""

    def __init__(self, out: Path, model: ServedModel, files: Sequence[Path]) -> None:
        self._out, self._folder = out, out.with_name(f"{out.name}.parts")
        self._schema = _schema(model.classes)
        listed = hashlib.sha256("\n".join(map(str, files)).encode()).hexdigest()
        job = json.dumps({"model": model.name, "version": model.version, "files": listed}).encode()
        described = self._folder / "job.json"
        if not described.is_file() or described.read_bytes() != job:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
            write_atomically(described, job)
        self._count = 0

    def read(self, number: int) -> "pa.Table | None":
        """What an earlier run has left, if it is whole."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._count = number + 1
        try:
            return pq.read_table(self._path(number), schema=self._schema)
        except (OSError, pa.ArrowInvalid):
            return None

    def write(self, number: int, rows: list[dict[str, Any]]) -> "pa.Table":
        """Write a part wholly or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist(rows, schema=self._schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        write_atomically(self._path(number), sink.getvalue().to_pybytes())
        return table

    def join(self) -> None:
        """All parts as one file, which takes the output's place when it is complete."""
        import pyarrow.parquet as pq

        whole = self._folder / "whole.parquet"
        with pq.ParquetWriter(whole, self._schema) as writer:
            for number in range(self._count):
                writer.write_table(pq.read_table(self._path(number), schema=self._schema))
        whole.replace(self._out)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.parquet"


def _rows(model: ServedModel, paths: Sequence[Path], on_rows: Callable[[int], None]) -> list[dict[str, Any]]:
    """A row for each file; while a batch is classified, the next ones are decoded."""
    rows: list[dict[str, Any]] = []
    for batch, decoded in _decoded(model, list(_cut(paths, _BATCH))):
        readable = [pixels for pixels in decoded if not isinstance(pixels, str)]
        answers = iter(model.probabilities(readable) if readable else [])
        for path, pixels in zip(batch, decoded, strict=True):
            if isinstance(pixels, str):
                rows.append({"path": str(path), "error": pixels})
                continue
            rows.append({"path": str(path), **model.row(next(answers))})
        on_rows(len(rows))
    return rows


def _decoded(model: ServedModel, batches: Sequence[Sequence[Path]]) -> Iterator[tuple[Sequence[Path], list[Any]]]:
    """Batches of files with their pixels, or the reason why there are none; two batches ahead."""

    def decode(path: Path) -> Any:
        try:
            return model.pixels(path.read_bytes())
        except OSError as error:
            return error.strerror or type(error).__name__
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode") as pool:
        ahead: deque[tuple[Sequence[Path], list[Future[Any]]]] = deque()
        for batch in batches:
            ahead.append((batch, [pool.submit(decode, path) for path in batch]))
            if len(ahead) > 2:
                yield _finished(ahead.popleft())
        while ahead:
            yield _finished(ahead.popleft())


def _finished(decoding: tuple[Sequence[Path], list[Future[Any]]]) -> tuple[Sequence[Path], list[Any]]:
    batch, futures = decoding
    return batch, [future.result() for future in futures]


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        files = image_files(source)
    elif source.is_file():
        files = [source.parent / path for path in _listed(source)]
    else:
        raise DataError(f"{source} does not exist. Give a folder of images, or a file that lists their paths.")
    if not files:
        raise DataError(f"{source} names no image file.")
    return files


def _listed(source: Path) -> list[str]:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{source} is no text: give a folder, a CSV file with a column `path`, or a list.") from None
    if source.suffix.lower() != ".csv":
        return [line.strip() for line in text.splitlines() if line.strip()]
    rows = csv.DictReader(text.splitlines())
    if _PATH_COLUMN not in (rows.fieldnames or ()):
        columns = ", ".join(rows.fieldnames or ()) or "none"
        raise DataError(f"{source} needs a column `{_PATH_COLUMN}`; its columns: {columns}.")
    return [row[_PATH_COLUMN] for row in rows if row[_PATH_COLUMN]]


def _schema(classes: Sequence[str]) -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            ("path", pa.string()),
            ("class", pa.string()),
            ("probability", pa.float64()),
            ("probabilities", pa.struct([(name, pa.float64()) for name in classes])),
            ("error", pa.string()),
        ]
    )


def _cut(values: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
