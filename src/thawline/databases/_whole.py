"""A database is made by copying a template that was migrated once for the installed version."""

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from filelock import FileLock

from thawline.databases._schema import BUSY_SECONDS, Condition, Schema, connected, rows_of
from thawline.exceptions import DatabaseError

__all__ = ["ensure_whole", "sqlite_url"]

_STILL_SECONDS = 5.0
_LONGEST_WAIT = 60.0
_MAKING = ".making-"
_ABANDONED_SECONDS = 3600.0
_ALEMBIC_COPY = "_alembic_tmp_"
"""SQLite cannot alter most of a table: Alembic copies it under this name, and renames the copy."""


def sqlite_url(database: Path, driver: str = "pysqlite") -> str:
    """SQLAlchemy's URL of a SQLite file, whatever its name is.

    A question mark would begin the URL's options; then the name is a ``file:`` URI, which has it escaped.
    """
    file = database.absolute()
    named = "" if driver == "pysqlite" else f"+{driver}"
    if "?" not in str(file):
        return f"sqlite{named}:///{file}"
    # With its driver named: of sqlite:///file: MLflow takes all that follows for a path, and makes a folder `file:`.
    return f"sqlite+{driver}:///file:{file.as_uri().removeprefix('file://')}?uri=true"


def ensure_whole(
    database: Path,
    schema: Schema,
    *,
    home: Path,
    still_seconds: float = _STILL_SECONDS,
    busy_seconds: float = BUSY_SECONDS,
) -> None:
    """Make a database that is missing, and replace one whose making was cut short if nothing is in it.

    A database appears under its name with all of its tables. One of an older version that holds something is left to
    the library, and so is a file that cannot be read.

    Args:
        database: the file.
        schema: of the library that will open it.
        home: Thawline's home, for the template of a user who has no cache folder.
        still_seconds: a database that nobody has written to for so long is not being made by another program.
        busy_seconds: that it may be locked by one.

    Raises:
        DatabaseError: if it is of a newer version, its making was cut short with something in it, or it cannot be made.
    """
    condition = schema.condition(database)
    if condition is Condition.NEWER:
        raise schema.newer(database)
    if condition in (Condition.WHOLE, Condition.FOREIGN):
        return
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        template = _template(schema, home)
        with FileLock(database.with_name(f".{database.name}.lock")):
            _wait_until_still(database, schema, still_seconds)
            condition = schema.condition(database)  # another process may have been faster
            if condition is Condition.MISSING:
                _copy(template, database)
            elif condition is Condition.OLDER:
                _repair(database, schema, template, busy_seconds)
    except OSError as error:
        raise DatabaseError(
            f"{schema.library}'s database {database} cannot be made: {error.strerror or error}. Make room, or set "
            "THAWLINE_HOME to a folder you may write to."
        ) from error
    except sqlite3.Error as error:
        raise DatabaseError(
            f"The making of {database} by {schema.library} was cut short, and it cannot be recreated: {error}. End "
            "what has it open, or move the file away, and try again."
        ) from error


def _copy(template: Path, database: Path) -> None:
    # Under the lock there is one at a time: what a killed one has left is written over.
    partial = database.with_name(f".{database.name}.partial")
    shutil.copyfile(template, partial)
    _flush(partial)
    partial.replace(database)


def _repair(database: Path, schema: Schema, template: Path, busy_seconds: float) -> None:
    """Write the template into a database whose making was cut short, in one transaction; leave an older one alone."""
    rows, seeded = rows_of(database), rows_of(template)
    copies = [name for name in rows if name.startswith(_ALEMBIC_COPY)]
    if any(name not in seeded for name in rows if name not in copies):
        return  # of another program, or with a table that a later version has dropped
    filled = {name: count for name, count in rows.items() if count > seeded.get(name, 0)}
    if filled and copies:
        raise DatabaseError(
            f"The migration of {database} by {schema.library} was cut short, and it holds records "
            f"({', '.join(sorted(filled))}). Put your copy from before the migration in its place; without one, move "
            "the file away, and a new one is made."
        )
    if filled:
        return
    unchanging = f"{template.as_uri()}?immutable=1"
    with (
        closing(sqlite3.connect(unchanging, uri=True)) as source,
        closing(connected(database, busy_seconds=busy_seconds)) as target,
    ):
        target.execute("BEGIN EXCLUSIVE")  # fails where somebody has it open; backup() would wait for them indefinitely
        target.rollback()
        source.backup(target)


def _wait_until_still(database: Path, schema: Schema, seconds: float) -> None:
    """Let another program finish that makes this very database now, step by step."""
    deadline = time.monotonic() + _LONGEST_WAIT
    while schema.condition(database) is Condition.OLDER and time.monotonic() < deadline:
        if not 0 <= time.time() - _written(database) < seconds:
            return
        time.sleep(0.2)


def _written(database: Path) -> float:
    times = []
    for suffix in ("", "-journal", "-wal"):
        with suppress(OSError):
            times.append(database.with_name(database.name + suffix).stat().st_mtime)
    return max(times, default=0.0)


def _template(schema: Schema, home: Path) -> Path:
    """The template of the installed version, made if there is none yet."""
    name = f"{schema.package}-{schema.version}.db"
    folders = [*_user_cache(), home / "cache" / "databases"]
    for folder in folders:
        if schema.condition(folder / name) is Condition.WHOLE:
            return (folder / name).absolute()
    folder = next(folder for folder in folders if _can_be_written(folder) or folder == folders[-1])
    folder.mkdir(parents=True, exist_ok=True)
    template = folder.absolute() / name
    with FileLock(folder / f".{name}.lock"):
        if schema.condition(template) is not Condition.WHOLE:
            _remove_abandoned(folder)
            with tempfile.TemporaryDirectory(dir=folder.absolute(), prefix=_MAKING) as workshop:
                made = Path(workshop) / name
                schema.migrate(made)
                with closing(connected(made)) as connection:  # one file, without a write-ahead log beside it
                    connection.execute("PRAGMA journal_mode=DELETE")
                _flush(made)
                made.replace(template)
    return template


def _user_cache() -> Iterator[Path]:
    """The user's own cache folder, which all homes share; none for a user without a home directory."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return
    if cache.is_absolute():
        yield cache / "thawline" / "databases"


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _remove_abandoned(folder: Path) -> None:
    for left in folder.glob(f"{_MAKING}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(left)


def _flush(file: Path) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
