"""Creation of a database by copying a template that was migrated once for the installed version."""

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
"""SQLite cannot make most changes to a table: Alembic copies it under this name, and renames the copy."""


def sqlite_url(database: Path, driver: str = "pysqlite") -> str:
    """SQLAlchemy's URL of a SQLite file with any name.

    A question mark would start the URL's options, so such names become ``file:`` URIs with escapes.
    """
    file = database.absolute()
    named = "" if driver == "pysqlite" else f"+{driver}"
    if "?" not in str(file):
        return f"sqlite{named}:///{file}"
    # The driver is explicit, because MLflow takes everything after sqlite:/// for a path, and creates a folder `file:`.
    return f"sqlite+{driver}:///file:{file.as_uri().removeprefix('file://')}?uri=true"


def ensure_whole(
    database: Path,
    schema: Schema,
    *,
    home: Path,
    still_seconds: float = _STILL_SECONDS,
    busy_seconds: float = BUSY_SECONDS,
) -> None:
    """Create a missing database, and replace an empty one whose creation was interrupted.

    A database appears under its name with all of its tables. A database of an older version with records is left to
    the library, and so is an unreadable file.

    Args:
        database: the file.
        schema: schema of the library that will open it.
        home: Thawline's home, for the template of a user without a cache folder.
        still_seconds: time without writes after which no other program can be creating the database.
        busy_seconds: maximum time to wait for locks of other programs.

    Raises:
        DatabaseError: if it is of a newer version, if its migration was interrupted and it has records, or if it cannot
            be created.
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
            f"{schema.library}'s database {database} cannot be created: {error.strerror or error}. Free disk space, or "
            "set THAWLINE_HOME to a writable folder."
        ) from error
    except sqlite3.Error as error:
        raise DatabaseError(
            f"The creation of {database} by {schema.library} was interrupted, and it cannot be recreated: {error}. "
            "Stop the programs that have it open, or move the file away, and try again."
        ) from error


def _copy(template: Path, database: Path) -> None:
    # The lock allows one process at a time, so leftovers of a killed one are overwritten.
    partial = database.with_name(f".{database.name}.partial")
    shutil.copyfile(template, partial)
    _flush(partial)
    partial.replace(database)


def _repair(database: Path, schema: Schema, template: Path, busy_seconds: float) -> None:
    """Write the template to a database whose creation was interrupted, in one transaction; keep an older database."""
    rows, seeded = rows_of(database), rows_of(template)
    copies = [name for name in rows if name.startswith(_ALEMBIC_COPY)]
    if any(name not in seeded for name in rows if name not in copies):
        return  # it belongs to another program, or has a table that a later version dropped
    filled = {name: count for name, count in rows.items() if count > seeded.get(name, 0)}
    if filled and copies:
        raise DatabaseError(
            f"The migration of {database} by {schema.library} was interrupted, and it contains records "
            f"({', '.join(sorted(filled))}). Restore a backup from before the migration; without one, move the file "
            "away, and a new database is created."
        )
    if filled:
        return
    unchanging = f"{template.as_uri()}?immutable=1"
    with (
        closing(sqlite3.connect(unchanging, uri=True)) as source,
        closing(connected(database, busy_seconds=busy_seconds)) as target,
    ):
        target.execute("BEGIN EXCLUSIVE")  # fails if another process has it open; backup() would wait indefinitely
        target.rollback()
        source.backup(target)


def _wait_until_still(database: Path, schema: Schema, seconds: float) -> None:
    """Wait for another program that is just creating this database."""
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
    """The template of the installed version, created if there is none yet."""
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
    """The user's cache folder, shared by all homes; none for a user without a home directory."""
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
