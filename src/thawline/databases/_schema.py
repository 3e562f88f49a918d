"""The schema of a library's database, and the condition of an existing one; the library is not imported."""

import importlib.metadata
import importlib.util
import re
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

from thawline.exceptions import DatabaseError

__all__ = ["BUSY_SECONDS", "Condition", "Schema", "connected", "rows_of"]

BUSY_SECONDS = 20.0
_REVISION = re.compile(r"^revision\b[^=\n]*=\s*['\"]([^'\"]+)", re.MULTILINE)
_BEFORE = re.compile(r"^down_revision\b[^=\n]*=\s*(.+)$", re.MULTILINE)


class Condition(Enum):
    """Condition of a database file."""

    MISSING = "missing"
    """The file is missing or empty."""
    WHOLE = "whole"
    """Complete, with the schema of the installed version."""
    OLDER = "older"
    """From an older version, or after an interrupted migration."""
    NEWER = "newer"
    """From a version that the installed one does not know."""
    FOREIGN = "foreign"
    """Unknown: another program's database, not a database, or locked."""


@dataclass(frozen=True)
class Schema:
    """A library's database, migrated by Alembic."""

    library: str
    """For messages."""
    package: str
    """Distribution and top-level package."""
    scripts: str
    """Folder of the migrations in the package."""
    migrate: Callable[[Path], None]
    """Creates a new database in a file that does not exist."""

    @property
    def version(self) -> str:
        """Installed version of the library."""
        return importlib.metadata.version(self.package)

    @cached_property
    def revisions(self) -> frozenset[str]:
        """Every revision that the installed version knows."""
        return frozenset(self._steps)

    @cached_property
    def head(self) -> str:
        """The newest of them."""
        before = " ".join(self._steps.values())
        (head,) = (revision for revision in self._steps if revision not in before)
        return head

    @cached_property
    def _steps(self) -> Mapping[str, str]:
        """From each revision to the predecessors named in its script."""
        steps = {}
        for script in self._folder.glob("*.py"):
            text = script.read_text(encoding="utf-8")
            if (revision := _REVISION.search(text)) is not None:
                before = _BEFORE.search(text)
                steps[revision[1]] = before[1] if before is not None else ""
        return steps

    @property
    def _folder(self) -> Path:
        spec = importlib.util.find_spec(self.package)  # does not import it
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"No module named {self.package!r}", name=self.package)
        return Path(spec.submodule_search_locations[0]) / self.scripts

    def condition(self, database: Path) -> Condition:
        """Determine the condition of a file."""
        if not database.exists():
            return Condition.MISSING
        try:
            with closing(connected(database)) as connection:
                tables = _tables(connection)
                revision = _revision(connection) if "alembic_version" in tables else None
        except sqlite3.Error:
            return Condition.FOREIGN
        if not tables:
            return Condition.MISSING
        if revision is None or revision in self.revisions:
            return Condition.WHOLE if revision == self.head else Condition.OLDER
        return Condition.NEWER

    def newer(self, database: Path) -> DatabaseError:
        """The error for a database in the condition :attr:`Condition.NEWER`."""
        with closing(connected(database)) as connection:
            revision = _revision(connection)
        return DatabaseError(
            f"{database} was made by a newer version of {self.library} than the installed {self.version}, which does "
            f"not know its revision {revision}. Install that version again (pip install --upgrade thawline "
            f"{self.package}), or set THAWLINE_HOME to another folder."
        )


def connected(database: Path, *, busy_seconds: float = BUSY_SECONDS) -> sqlite3.Connection:
    """Connect to an existing file, waiting at most ``busy_seconds`` for locks.

    After a crash, opening the file restores its last transaction.
    """
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, timeout=busy_seconds)


def rows_of(database: Path) -> dict[str, int]:
    """Number of rows of each table, except internal tables of Alembic and SQLite."""
    with closing(connected(database)) as connection:
        tables = [name for name in _tables(connection) if not name.startswith(("alembic_version", "sqlite_"))]
        quoted = {name: name.replace('"', '""') for name in tables}
        return {
            name: connection.execute(f'SELECT count(*) FROM "{quoted[name]}"').fetchone()[0]  # noqa: S608  from SQLite
            for name in tables
        }


def _tables(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]


def _revision(connection: sqlite3.Connection) -> str | None:
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])
