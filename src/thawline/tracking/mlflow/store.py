"""Find and open MLflow's store, and the experiment in it.

All access uses ``MlflowClient`` and run ids. The fluent API's active run and global tracking URI belong to the user's
process (and to ``mlflow run``, which sets ``MLFLOW_RUN_ID``) and are ignored.

MLflow takes seconds to import, so it is imported inside the functions.
"""

import hashlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thawline.config import TrackingConfig, with_driver, without_password
from thawline.databases import sqlite_url
from thawline.exceptions import TrackingError
from thawline.tracking._errors import first_line, is_missing, quiet_mlflow
from thawline.tracking.database import MLFLOW, check_made, mlflow_database, sqlite_file, unknown_revision

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "REGISTRY_TAG",
    "UI_PORT",
    "MlflowStore",
    "connect",
    "open_store",
    "pages",
    "resolve_uri",
    "unreachable",
    "uri_digest",
]

REGISTRY_TAG = "thawline.registry."
UI_PORT = 5000
"""Default port of the UI for a database."""
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SERVERS = ("http", "https", "databricks")
_TRIES = 15
_OUT_OF_DATE = "out-of-date database schema"
_BEING_MADE = re.compile(
    rf"already exists|duplicate key|UNIQUE constraint|does not exist|{_OUT_OF_DATE}|Can't locate revision"
)
"""Error messages of a database while another process creates or migrates its tables."""


@dataclass(frozen=True)
class MlflowStore:
    """An open MLflow store and the study's experiment, as plain values that can be sent to a child process."""

    uri: str
    """Tracking URI, which may contain a password; see :attr:`name`."""
    registry_uri: str
    """Model registry URI: ``MLFLOW_REGISTRY_URI``, or else the tracking URI."""
    experiment_id: str
    home: Path
    """Thawline's home, with artifacts of a local store and unsent records."""

    @property
    def client(self) -> "MlflowClient":
        """A client of this store; creating one is cheap, as MLflow caches the connection."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri, registry_uri=self.registry_uri)

    @property
    def name(self) -> str:
        """The tracking URI without a password, for messages and files."""
        return without_password(self.uri)

    @property
    def is_database(self) -> bool:
        """Whether MLflow opens a database in this process instead of using a server."""
        return self.uri.startswith(_DATABASES)

    def page(self, place: str = "/runs") -> str:
        """A page of the experiment in MLflow's UI, with the side bar for model training instead of agents."""
        return f"#/experiments/{self.experiment_id}{place}?workflowType=machine_learning"

    def address(self, place: str = "/runs") -> str | None:
        """The page's URL for a browser: on the server, or for a database that of ``thawline ui``.

        ``None`` for Databricks, whose pages are elsewhere. User and password are removed, as the browser asks for them.
        """
        if self.is_database:
            return f"http://127.0.0.1:{UI_PORT}/{self.page(place)}"
        if not self.uri.startswith("http"):
            return None
        return f"{re.sub(r'://[^/@]*@', '://', self.uri).rstrip('/')}/{self.page(place)}"

    @property
    def registry_tag(self) -> tuple[str, str]:
        """Tag of a study's run with the registry of its models: a key per registry, and its name.

        A registry in the store itself has a fixed name, so that the store can be moved.
        """
        if self.registry_uri == self.uri:
            return f"{REGISTRY_TAG}own", "the store of the runs"
        return f"{REGISTRY_TAG}{uri_digest(self.registry_uri)}", without_password(self.registry_uri)


def resolve_uri(config: TrackingConfig, home: Path) -> str:
    """The tracking URI: the configuration's, or ``MLFLOW_TRACKING_URI``, or a SQLite database in ``home``.

    Raises:
        TrackingError: for a folder (MLflow's file store, which MLflow 3 no longer opens), an unknown scheme, a server
            for which ``artifacts`` is set, or a home whose path MLflow would misread.
    """
    default = sqlite_url(home / "mlflow.db")
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or default
    scheme = uri.partition(":")[0].partition("+")[0] if ":" in uri or uri == "databricks" else ""
    if scheme in ("", "file"):
        raise TrackingError(
            f"{uri!r} is a folder, and MLflow no longer records in folders. Use a database such as {default} "
            "(`mlflow migrate-filestore` copies the folder's content), or the address of a server."
        )
    if scheme not in _DATABASES + _SERVERS:
        raise TrackingError(
            f"{without_password(uri)!r} is not an MLflow tracking URI. It must start with one of "
            f"{', '.join(f'{known}:' for known in _DATABASES + _SERVERS)}."
        )
    if config.artifacts is not None and scheme in _SERVERS:
        raise TrackingError(
            f"tracking.artifacts is {config.artifacts}, but the server {without_password(uri)} determines where "
            "files are stored. Start it with --artifacts-destination, and remove tracking.artifacts."
        )
    if scheme in _DATABASES and config.artifacts is None and (escaped := re.search(r"%[0-9A-Fa-f]{2}", str(home))):
        raise TrackingError(
            f"The home {home} has {escaped[0]} in its name, which MLflow interprets as an escaped character: it would "
            "not find its files again. Set THAWLINE_HOME to a folder with another name."
        )
    return with_driver(uri)


def open_store(tracking_uri: str | None, home: Path) -> "MlflowStore":
    """The existing store of a tracking URI, or the default one, without creating anything.

    Its experiment is MLflow's default experiment if no search has recorded there yet.

    Raises:
        TrackingError: if there is no such store, or it cannot be opened now.
    """
    config = TrackingConfig(uri=tracking_uri)
    uri = resolve_uri(config, home)
    registry_uri = resolve_registry_uri(uri)
    check_made(uri, "--tracking-uri or MLFLOW_TRACKING_URI", home=home)
    check_made(registry_uri, "MLFLOW_REGISTRY_URI", home=home)
    try:
        with quiet_mlflow():
            experiment = _client(uri, registry_uri).get_experiment_by_name(config.experiment)
    except Exception as error:  # MLflow's, SQLAlchemy's, requests' and alembic's
        raise TrackingError(unreachable(uri, error, home, None)) from error
    return MlflowStore(uri, registry_uri, "0" if experiment is None else str(experiment.experiment_id), home)


def resolve_registry_uri(tracking_uri: str) -> str:
    """The registry's URI: ``MLFLOW_REGISTRY_URI``, or else the tracking URI."""
    return with_driver(os.environ.get("MLFLOW_REGISTRY_URI") or tracking_uri)


def connect(
    uri: str, *, home: Path, experiment: str, artifacts: str | None = None, adopt_run_id: str | None = None
) -> MlflowStore:
    """Open the store, creating or migrating a database if necessary, and find or create the experiment.

    Args:
        uri: see :func:`resolve_uri`.
        home: created if missing. For a database, artifacts of a new experiment are in ``home/artifacts``; a server
            decides itself.
        experiment: name of the MLflow experiment.
        artifacts: URL of a different folder for them, such as ``s3://bucket/thawline``. MLflow cannot move those of an
            existing experiment, so an experiment with another folder is refused.
        adopt_run_id: a run of ``mlflow run``; its experiment is used, whatever its name, because MLflow's UI nests
            trials under their study only within one experiment.

    Raises:
        TrackingError: if the store or ``artifacts`` cannot be opened now.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(
            f"Cannot create {home}: {error.strerror}. Set THAWLINE_HOME to a writable folder."
        ) from None
    database = sqlite_file(uri)
    registry_uri = resolve_registry_uri(uri)
    try:
        with quiet_mlflow():
            if artifacts is not None:
                _check_reachable(artifacts)
            for file in (database, sqlite_file(registry_uri)):
                if file is not None:
                    mlflow_database(file, home=home)
            client = _client(uri, registry_uri)
            if adopt_run_id is not None:
                experiment_id = str(client.get_run(adopt_run_id).info.experiment_id)
            else:
                root = artifacts or (home / "artifacts").absolute().as_uri()
                location = f"{root}/{experiment}" if uri.startswith(_DATABASES) else None
                experiment_id = _experiment(client, experiment, location)
            if artifacts is not None:
                _check_location(client, experiment_id, artifacts)
            if database is not None:
                _write_ahead(database)
    except TrackingError:
        raise
    except Exception as error:  # MLflow raises its own, SQLAlchemy's, requests' and alembic's exceptions here
        raise TrackingError(unreachable(uri, error, home, adopt_run_id)) from error
    return MlflowStore(uri, registry_uri, experiment_id, home)


def _client(uri: str, registry_uri: str) -> "MlflowClient":
    """A client of an open store.

    If two processes open an empty database at the same time, both create its tables: the second one waits for the
    first.
    """
    from mlflow import MlflowClient

    tries = 0
    while True:
        try:
            return MlflowClient(tracking_uri=uri, registry_uri=registry_uri)
        except Exception as error:
            tries += 1
            if tries == _TRIES or not _is_being_made(uri, str(error)):
                raise
        time.sleep(2)


_MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Otherwise MLflow's UI treats the experiment as one of agents, and labels models as agent versions."""


def _is_being_made(uri: str, reason: str) -> bool:
    """Whether an error may come from tables that another process is creating, except in SQLite, which is atomic."""
    if unknown_revision(reason) is not None or (uri.startswith("sqlite") and _OUT_OF_DATE in reason):
        return False
    return _BEING_MADE.search(reason) is not None


def _experiment(client: "MlflowClient", name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=_MODEL_TRAINING))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another process was faster
    if experiment is None or experiment.lifecycle_stage == "deleted":
        hint = f" (`mlflow experiments restore --experiment-id {experiment.experiment_id}`)" if experiment else ""
        raise TrackingError(
            f"The MLflow experiment {name!r} is deleted. Restore it{hint}, or choose another name with "
            "--set tracking.experiment=NAME."
        )
    return str(experiment.experiment_id)


def _check_reachable(artifacts: str) -> None:
    """Refuse unusable object storage before an experiment is created with its files there."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        get_artifact_repository(artifacts).list_artifacts()
    except ImportError as error:
        package = "pip install 'thawline[s3]'" if artifacts.startswith("s3:") else first_line(error)
        raise TrackingError(f"tracking.artifacts, {artifacts}, needs a missing package: {package}") from None
    except Exception as error:  # MLflow's own, and those of each storage's library
        raise TrackingError(
            f"tracking.artifacts, {artifacts}, cannot be read: {first_line(error)}. Correct it, check the credentials "
            "in the environment (and AWS_ENDPOINT_URL for s3:// outside Amazon), or remove it."
        ) from error


def _check_location(client: "MlflowClient", experiment_id: str, artifacts: str) -> None:
    """Refuse an experiment whose files are elsewhere than requested."""
    experiment = client.get_experiment(experiment_id)
    if not f"{experiment.artifact_location}/".startswith(f"{artifacts}/"):
        raise TrackingError(
            f"The MLflow experiment {experiment.name!r} keeps its files in {experiment.artifact_location}, and MLflow "
            f"cannot move them to {artifacts}. Remove tracking.artifacts, or choose another name with "
            "--set tracking.experiment=NAME."
        )


def _write_ahead(database: Path) -> None:
    """Allow readers and one writer concurrently (WAL): writes take a third of the time. Stored in the file.

    Network file systems do not support it; SQLite then keeps its mode.
    """
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, timeout=20)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def unreachable(uri: str, error: Exception, home: Path, adopt_run_id: str | None) -> str:
    """Why a store cannot be used, with advice."""
    name, reason = without_password(uri), first_line(error)
    if adopt_run_id is not None and is_missing(error):
        return (
            f"MLFLOW_RUN_ID is the run {adopt_run_id}, which is not in {name}. Unset MLFLOW_RUN_ID, or set "
            "MLFLOW_TRACKING_URI to where that run is."
        )
    if uri.startswith("http"):
        return (
            f"The MLflow server at {name} cannot be reached: {reason}. Start it or correct --tracking-uri; without one "
            f"(and without MLFLOW_TRACKING_URI) results go to a SQLite database in {home}."
        )
    if (unknown := unknown_revision(str(error))) is not None:
        return (
            f"The MLflow database {name} was made by a newer version of MLflow than the installed {MLFLOW.version}, "
            f"which does not know its revision {unknown}. Install that version (pip install --upgrade thawline mlflow)."
        )
    if _OUT_OF_DATE in str(error):
        return (
            f"The MLflow database {name} was made by an older version of MLflow than the installed {MLFLOW.version}. "
            f"Copy it, then upgrade it: mlflow db upgrade '{name}'"
        )
    return f"The MLflow database {name} cannot be opened: {reason}. Correct --tracking-uri, or omit it."


def uri_digest(uri: str, *, with_password: bool = False) -> str:
    """Sixteen hex digits that identify a store, by default whatever its password."""
    return hashlib.sha256((uri if with_password else without_password(uri)).encode()).hexdigest()[:16]


def pages(search: Callable[..., Any], **options: Any) -> Iterator[Any]:
    """All results of an MLflow search, which returns pages of a hundred or a thousand results."""
    token = None
    while True:
        page = search(**options, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
