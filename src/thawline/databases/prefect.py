"""The database of the Prefect server that Thawline starts if none is configured."""

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
    """Create Prefect's database in its folder (``PREFECT_HOME``) unless it exists; returns its file.

    Call it before the server starts. Prefect is not imported; it upgrades an older database itself.

    Args:
        folder: created if it is missing.
        home: Thawline's home.

    Raises:
        DatabaseError: see :func:`~thawline.databases.ensure_whole`.
    """
    database = folder / "prefect.db"
    ensure_whole(database, PREFECT, home=home)
    return database


def _migrate(file: Path) -> None:
    """Migrate in another process, because Prefect reads the location of its database only once, on import."""
    url = sqlite_url(file, "aiosqlite")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(file.parent), "PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
    command = [sys.executable, "-P", "-m", "prefect", "server", "database", "upgrade", "--yes"]
    try:
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_MIGRATION_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise DatabaseError(f"Prefect did not create its database within {_MIGRATION_SECONDS} s.") from None
    if ended.returncode != 0:
        said = (ended.stderr.strip() or ended.stdout.strip() or "no reason was given").splitlines()[-1]
        raise DatabaseError(
            f"Prefect cannot create its database: {said.rstrip('.')}. `thawline doctor` checks the installation."
        )


PREFECT = Schema("Prefect", "prefect", "server/database/_migrations/versions/sqlite", _migrate)
"""Prefect's schema for SQLite; PostgreSQL has separate migrations."""
