"""The database of the Prefect server that Thawline starts where none is named."""

import os
import subprocess
import sys
from pathlib import Path

from thawline.databases._schema import Schema
from thawline.databases._whole import ensure_whole, sqlite_url
from thawline.exceptions import DatabaseError

__all__ = ["PREFECT", "prefect_database"]

_MIGRATION_SECONDS = 600


def prefect_database(folder: Path, *, home: Path) -> Path:
    """Make Prefect's database in its folder (``PREFECT_HOME``) unless it is there; returns its file.

    To be called before the server starts. Prefect is not imported; it brings an older database up to date itself.

    Args:
        folder: made if it is missing.
        home: Thawline's home.

    Raises:
        DatabaseError: see :func:`~thawline.databases.ensure_whole`.
    """
    database = folder / "prefect.db"
    ensure_whole(database, PREFECT, home=home)
    return database


def _migrate(file: Path) -> None:
    """In another process: Prefect reads where its database is once, when it is imported."""
    url = sqlite_url(file, "aiosqlite")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(file.parent), "PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
    command = [sys.executable, "-P", "-m", "prefect", "server", "database", "upgrade", "--yes"]
    try:
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_MIGRATION_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise DatabaseError(f"Prefect has not made its database within {_MIGRATION_SECONDS} s.") from None
    if ended.returncode != 0:
        said = (ended.stderr.strip() or ended.stdout.strip() or "no reason was given").splitlines()[-1]
        raise DatabaseError(
            f"Prefect cannot make its database: {said.rstrip('.')}. `thawline doctor` checks what is installed."
        )


PREFECT = Schema("Prefect", "prefect", "server/database/_migrations/versions/sqlite", _migrate)
"""Of SQLite; PostgreSQL has migrations of its own."""
