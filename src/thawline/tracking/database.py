"""Create MLflow's SQLite database atomically, and diagnose one that cannot be opened."""

import re
from pathlib import Path

from thawline import environment
from thawline.databases import Condition, Schema, ensure_whole, sqlite_url
from thawline.exceptions import DatabaseError, TrackingError

__all__ = ["MLFLOW", "check_made", "mlflow_database", "sqlite_file", "unknown_revision"]

_FOUND = re.compile(r"found version (\w+)|Can't locate revision identified by '(\w+)'")


def mlflow_database(database: Path, *, home: Path) -> None:
    """Create MLflow's database unless it exists.

    Call it before MLflow opens the database.

    Args:
        database: the file.
        home: Thawline's home.

    Raises:
        TrackingError: see :func:`~thawline.databases.ensure_whole`.
    """
    try:
        ensure_whole(database, MLFLOW, home=home)
    except DatabaseError as error:
        raise TrackingError(str(error)) from error


def check_made(uri: str, named_by: str, *, home: Path) -> None:
    """For read-only use, refuse a SQLite database that no search has created; repair an incomplete one.

    Args:
        uri: URI of the database; other URIs are ignored.
        named_by: the option that gives the URI, for the message.
        home: Thawline's home, which may be missing.

    Raises:
        TrackingError: if it is missing, or as in :func:`mlflow_database`.
    """
    file = sqlite_file(uri)
    if file is None:
        return
    if MLFLOW.condition(file) is not Condition.MISSING:
        mlflow_database(file, home=home)
    elif file != home / "mlflow.db":
        raise TrackingError(f"There is no MLflow database {file}. Correct {named_by}.")
    elif home.is_dir():
        raise TrackingError(
            f"There are no MLflow records in {home} yet: run `thawline search DATA`. For records elsewhere, use "
            "--tracking-uri or MLFLOW_TRACKING_URI."
        )
    else:
        raise TrackingError(environment.no_home(home))


def unknown_revision(reason: str) -> str | None:
    """The unknown revision in MLflow's message about a newer database; ``None`` for other messages.

    MLflow calls such a database out of date.
    """
    match = _FOUND.search(reason)
    found = match and (match[1] or match[2])
    return found if found not in (None, "None") and found not in MLFLOW.revisions else None


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite URI; ``None`` for other URIs."""
    if not uri.startswith("sqlite"):
        return None
    from urllib.request import url2pathname

    from sqlalchemy.engine import make_url

    database = make_url(uri).database
    if not database or database == ":memory:":
        return None
    return Path(url2pathname(database.removeprefix("file:")) if database.startswith("file:") else database)


def _migrate(file: Path) -> None:
    import mlflow.db

    from thawline.tracking._errors import quiet_mlflow

    with quiet_mlflow():
        mlflow.db.upgrade.main([sqlite_url(file)], standalone_mode=False)


MLFLOW = Schema("MLflow", "mlflow", "store/db_migrations/versions", _migrate)
