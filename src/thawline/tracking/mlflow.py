"""MLflow: the store, the study's parent run, the trials' child runs.

Everything goes through ``MlflowClient`` and run ids. The fluent API's active run and its global tracking URI belong to
the user's process (and to ``mlflow run``, which sets ``MLFLOW_RUN_ID``); they are neither read nor written.

MLflow takes seconds to import, so it is imported inside the functions.
"""

import hashlib
import logging
import os
import re
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from thawline.config import TrackingConfig, with_driver, without_password
from thawline.databases import sqlite_url
from thawline.exceptions import TrackingError
from thawline.tracking._base import RunStatus
from thawline.tracking._mlflow_files import send_checkpoint, send_image, send_table
from thawline.tracking.database import MLFLOW, check_made, mlflow_database, sqlite_file, unknown_revision

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "MlflowStore",
    "close_dead_run",
    "connect",
    "fetch_study_file",
    "find_study_run",
    "find_trial_run",
    "has_run",
    "metric_key",
    "resolve_uri",
    "start_study_run",
]

_log = logging.getLogger(__name__)

REGISTRY_TAG = "thawline.registry."
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SERVERS = ("http", "https", "databricks")
_TRIES = 15
_OUT_OF_DATE = "out-of-date database schema"
_BEING_MADE = re.compile(
    rf"already exists|duplicate key|UNIQUE constraint|does not exist|{_OUT_OF_DATE}|Can't locate revision"
)
"""What a database says while another process makes or migrates its tables."""
_PARAM_LIMIT, _TAG_LIMIT = 6000, 8000
"""Characters that MLflow keeps of a parameter and of a tag."""


@dataclass(frozen=True)
class MlflowStore:
    """An opened MLflow store and the experiment that the study belongs to; plain values, so it can go to a child."""

    uri: str
    """Tracking URI; may hold a password, see :attr:`name`."""
    registry_uri: str
    """Model registry URI: the tracking URI, unless ``MLFLOW_REGISTRY_URI`` says otherwise."""
    experiment_id: str
    home: Path
    """Thawline's home: artifacts of a local store, and what could not be sent."""

    @property
    def client(self) -> "MlflowClient":
        """A client of this store; making one is cheap, MLflow keeps the connection."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri, registry_uri=self.registry_uri)

    @property
    def name(self) -> str:
        """The tracking URI without a password, for messages and files."""
        return without_password(self.uri)

    @property
    def registry_tag(self) -> tuple[str, str]:
        """Tag of a study's run that says which registry its models go to: a key for each, and its name.

        One that is the store itself is called that, wherever it is moved.
        """
        if self.registry_uri == self.uri:
            return f"{REGISTRY_TAG}own", "the store of the runs"
        return f"{REGISTRY_TAG}{uri_digest(self.registry_uri)}", without_password(self.registry_uri)


def resolve_uri(config: TrackingConfig, home: Path) -> str:
    """The tracking URI: the configuration's, else ``MLFLOW_TRACKING_URI``, else a SQLite database in ``home``.

    Raises:
        TrackingError: for a folder (MLflow's file store, which MLflow 3 no longer opens), an unknown scheme, a server
            for which ``artifacts`` is set, or a home in whose files MLflow would not find again what it wrote.
    """
    default = sqlite_url(home / "mlflow.db")
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or default
    scheme = uri.partition(":")[0].partition("+")[0] if ":" in uri or uri == "databricks" else ""
    if scheme in ("", "file"):
        raise TrackingError(
            f"{uri!r} is a folder, and MLflow no longer records in folders. Use a database such as {default} "
            "(`mlflow migrate-filestore` copies what the folder holds), or the address of a server."
        )
    if scheme not in _DATABASES + _SERVERS:
        raise TrackingError(
            f"{without_password(uri)!r} is no MLflow tracking URI. It must start with one of "
            f"{', '.join(f'{known}:' for known in _DATABASES + _SERVERS)}."
        )
    if config.artifacts is not None and scheme in _SERVERS:
        raise TrackingError(
            f"tracking.artifacts is {config.artifacts}, but the server {without_password(uri)} decides by itself where "
            "files go. Start it with --artifacts-destination, and leave tracking.artifacts out."
        )
    if scheme in _DATABASES and config.artifacts is None and (escaped := re.search(r"%[0-9A-Fa-f]{2}", str(home))):
        raise TrackingError(
            f"The home {home} has {escaped[0]} in its name, which MLflow takes for an escaped character: it would "
            "not find its files again. Set THAWLINE_HOME to a folder with another name."
        )
    return with_driver(uri)


def open_store(tracking_uri: str | None, home: Path) -> "MlflowStore":
    """The store that a search with this tracking URI, or with none, has made; nothing is made in it.

    Its experiment is MLflow's default one where no search has recorded yet.

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
        raise TrackingError(_unreachable(uri, error, home, None)) from error
    return MlflowStore(uri, registry_uri, "0" if experiment is None else str(experiment.experiment_id), home)


def resolve_registry_uri(tracking_uri: str) -> str:
    """The registry's URI: ``MLFLOW_REGISTRY_URI``, else that of the runs."""
    return with_driver(os.environ.get("MLFLOW_REGISTRY_URI") or tracking_uri)


def connect(
    uri: str, *, home: Path, experiment: str, artifacts: str | None = None, adopt_run_id: str | None = None
) -> MlflowStore:
    """Open the store, creating and migrating a database where needed, and find or create the experiment.

    Args:
        uri: see :func:`resolve_uri`.
        home: created if it is missing. A database keeps the artifacts of a new experiment in ``home/artifacts``; a
            server decides itself.
        experiment: name of the MLflow experiment.
        artifacts: URL of a folder to keep them in instead, such as ``s3://bucket/thawline``. MLflow cannot move those
            of an experiment that exists, so that one which keeps them elsewhere is refused.
        adopt_run_id: a run made by ``mlflow run``; then the experiment is that run's, whatever its name, because
            MLflow's UI nests a trial under its study only within one experiment.

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
        raise TrackingError(_unreachable(uri, error, home, adopt_run_id)) from error
    return MlflowStore(uri, registry_uri, experiment_id, home)


def start_study_run(
    store: MlflowStore,
    *,
    study: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    adopt_run_id: str | None = None,
) -> str:
    """The id of the study's parent run, now running: the one it has, else the adopted one, else a new one.

    MLflow's parameters cannot be changed. On resume those that are missing are added, and one whose value is another
    now (a larger number of trials, say) keeps its first value and gets the new one as tag ``thawline.changed.<key>``.

    Raises:
        TrackingError: if the store fails.
    """
    try:
        client = store.client
        run_id = find_study_run(store, study)
        if run_id is None and adopt_run_id is not None:
            run_id = adopt_run_id
        elif run_id is None:
            run_id = str(client.create_run(store.experiment_id, run_name=study).info.run_id)
        elif adopt_run_id not in (None, run_id):
            # The trials stay where they are; the run that `mlflow run` made anew points there.
            client.set_tag(adopt_run_id, "thawline.continues_run", run_id)
        client.update_run(run_id, status="RUNNING")
        registry, where = store.registry_tag
        own = {"thawline.study": study, "thawline.role": "study", registry: where}
        send(client, run_id, {"kind": "tags", "tags": {**tags, **own}})
        send(client, run_id, {"kind": "params", "params": dict(params)})
    except Exception as error:
        raise TrackingError(_unreachable(store.uri, error, store.home, adopt_run_id)) from error
    return run_id


def find_study_run(store: MlflowStore, study: str) -> str | None:
    """The id of the study's parent run, or ``None``; deleted runs do not count."""
    return _find(store, f"tags.`thawline.study` = '{study}' AND tags.`thawline.role` = 'study'")


def has_run(store: MlflowStore, run_id: str) -> bool:
    """Whether the store knows a run; it does know deleted ones.

    Raises:
        TrackingError: if the store fails.
    """
    try:
        store.client.get_run(run_id)
    except Exception as error:
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise TrackingError(_unreachable(store.uri, error, store.home, None)) from error
    return True


def artifact_text(client: "MlflowClient", run_id: str, file: str) -> str:
    """The text of an artifact of a run; leaves no copy behind."""
    with tempfile.TemporaryDirectory(prefix="thawline-") as folder:
        return Path(client.download_artifacts(run_id, file, folder)).read_text(encoding="utf-8")


def fetch_study_file(store: MlflowStore, study: str, file: str) -> str | None:
    """The text of an artifact of the study's run; ``None`` if there is no such run or file, or no answer."""
    try:
        run_id = find_study_run(store, study)
        return artifact_text(store.client, run_id, file) if run_id is not None else None
    except Exception:
        _log.debug("%s of %s cannot be fetched", file, study, exc_info=True)
        return None


def find_trial_run(store: MlflowStore, *, parent_run_id: str, number: int) -> str | None:
    """The id of a trial's child run, or ``None``; deleted runs do not count.

    Raises:
        TrackingError: if the store fails.
    """
    try:
        return _trial_run(store, parent_run_id, number)
    except Exception as error:
        raise TrackingError(_unreachable(store.uri, error, store.home, None)) from error


def _trial_run(store: MlflowStore, parent_run_id: str, number: int) -> str | None:
    return _find(store, f"tags.`mlflow.parentRunId` = '{parent_run_id}' AND tags.`thawline.trial` = '{number}'")


def close_dead_run(
    store: MlflowStore, *, parent_run_id: str, number: int, status: RunStatus, reason: str = ""
) -> str | None:
    """End the run of a trial whose process died before it could; returns its id, ``None`` if there is none.

    A run that has ended keeps its status. ``reason`` becomes the tag ``thawline.reason``.

    Raises:
        TrackingError: if the store fails.
    """
    try:
        run_id = _trial_run(store, parent_run_id, number)
        if run_id is not None and store.client.get_run(run_id).info.status == "RUNNING":
            if reason:
                send(store.client, run_id, {"kind": "tags", "tags": {"thawline.reason": reason}})
            store.client.set_terminated(run_id, status)
    except Exception as error:
        raise TrackingError(f"Cannot close the run of trial {number}: {first_line(error)}") from error
    return run_id


def metric_key(name: str) -> str:
    """``name`` with all that MLflow refuses in a metric's name replaced by ``_``.

    Class names come from folder names, which may hold anything: ``test/recall/T-shirt & top`` becomes
    ``test/recall/T-shirt _ top``.
    """
    parts = [re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/")]
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)[:250]


# ----------------------------------------------------------------------------------------------------------------------
# What the tracker's thread and the replay share


@dataclass(frozen=True)
class RunAddress:
    """Which run something is for, in words that outlive this process."""

    study: str
    trial: int | None
    """Number of the trial; ``None`` for the study's own run."""
    run_id: str | None
    """Known for the study's own run; a trial's run is found, or created, by its parent and number."""
    parent_run_id: str | None
    run_name: str


Record = dict[str, Any]
"""One thing to send: its ``kind`` (see :func:`send`) and its content, as JSON values or what ``as_json`` makes such."""


def open_run(store: MlflowStore, address: RunAddress) -> str:
    """The id of the addressed run. A trial's run is created unless there is one, so asking again gives the same."""
    if address.run_id is not None:
        return address.run_id
    if address.parent_run_id is None or address.trial is None:
        raise ValueError("a run without id needs parent_run_id and trial to be found by")
    found = _trial_run(store, address.parent_run_id, address.trial)
    if found is not None:
        store.client.update_run(found, status="RUNNING")
        return found
    tags = {
        "mlflow.parentRunId": address.parent_run_id,
        "thawline.study": address.study,
        "thawline.role": "trial",
        "thawline.trial": str(address.trial),
    }
    return str(store.client.create_run(store.experiment_id, run_name=address.run_name, tags=tags).info.run_id)


def send(client: "MlflowClient", run_id: str, record: Record) -> None:
    """Deliver one record. Sending it twice is the same as sending it once.

    MLflow's SQL store ignores a metric of which key, step, timestamp and value are all known; files and tags are
    overwritten, a dataset is an input once, a checkpoint is looked for before it is made.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    kind: Literal[
        "params", "tags", "metrics", "artifact", "text", "image", "table", "checkpoint", "dataset", "status"
    ] = record["kind"]
    match kind:
        case "params":
            params = {metric_key(key): str(value)[:_PARAM_LIMIT] for key, value in record["params"].items()}
            known = client.get_run(run_id).data.params
            new = [Param(key, value) for key, value in params.items() if key not in known]
            changed = [
                RunTag(f"thawline.changed.{key}", value)
                for key, value in params.items()
                if known.get(key, value) != value
            ]
            client.log_batch(run_id, params=new, tags=changed)
        case "tags":
            tags = {metric_key(key): str(value)[:_TAG_LIMIT] for key, value in record["tags"].items()}
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        case "metrics":
            client.log_batch(
                run_id,
                metrics=[Metric(key, value, timestamp, step) for key, value, timestamp, step in record["metrics"]],
            )
        case "artifact":
            path, folder = Path(record["path"]), record["folder"] or None
            if path.is_dir():
                client.log_artifacts(run_id, str(path), folder)
            else:
                client.log_artifact(run_id, str(path), folder)
        case "text":
            client.log_text(run_id, record["text"], record["file"])
        case "image":
            send_image(client, run_id, record)
        case "table":
            send_table(client, run_id, record)
        case "checkpoint":
            send_checkpoint(client, run_id, record)
        case "dataset":
            # Entities, not mlflow.data: its MetaDataset opens the source and warns that several kinds would fit.
            dataset = Dataset(
                name=record["name"],
                digest=record["digest"],
                source_type="local",
                source=record["source"],
                profile=record["profile"],
            )
            client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", record["context"])])])
        case "status":
            client.set_terminated(run_id, record["status"], record["end_time"])


def is_permanent(error: Exception) -> bool:
    """True if sending the same again cannot help: MLflow refuses the value, the run was deleted, the file is gone."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
    return isinstance(error, FileNotFoundError)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, shortened and without passwords, or its type if it has none."""
    lines = str(error).strip().splitlines()
    text = without_password(lines[0].strip()) if lines else ""
    # MLflow quotes urllib3's account of every attempt; what a person needs of it is which server is silent, and why.
    if silent := re.match(r"API request to (\w+://[^/]+)\S* failed with exception", text):
        why = re.search(r"Connection refused|timed out|Failed to resolve|certificate verify failed[^('\"]*", text)
        return f"{silent[1]} does not answer" + (f" ({why[0].strip()})" if why else "")
    return text[:300] or type(error).__name__


_NOISE = {
    # "Creating initial MLflow database tables", and each step of a migration.
    "mlflow.store.db.utils": logging.WARNING,
    "alembic": logging.WARNING,
    "alembic.runtime.migration": logging.WARNING,
    # "Waiting up to 300 seconds for model version to finish creation".
    "mlflow.store.model_registry.abstract_store": logging.WARNING,
    # "Validating input example against model signature".
    "mlflow.pyfunc": logging.WARNING,
    # A warning that pip is not installed, which an environment made by uv does not need.
    "mlflow.utils.environment": logging.ERROR,
}


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Hold back what MLflow says of its own doings; its warnings about ours are let through."""
    before = {name: logging.getLogger(name).level for name in _NOISE}
    try:
        for name, level in _NOISE.items():
            logging.getLogger(name).setLevel(level)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


# ----------------------------------------------------------------------------------------------------------------------


def _find(store: MlflowStore, condition: str) -> str | None:
    # The oldest, should two processes ever have created one at the same moment: then all agree on the same.
    runs = store.client.search_runs(
        [store.experiment_id], condition, max_results=1, order_by=["attributes.start_time ASC"]
    )
    return str(runs[0].info.run_id) if runs else None


def _client(uri: str, registry_uri: str) -> "MlflowClient":
    """A client of an opened store.

    Two that open an empty database at the same moment both make its tables: the second one waits for the first.
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


def _is_being_made(uri: str, reason: str) -> bool:
    """Whether an error may be of tables that another process makes now; those of SQLite are there or not."""
    if unknown_revision(reason) is not None or (uri.startswith("sqlite") and _OUT_OF_DATE in reason):
        return False
    return _BEING_MADE.search(reason) is not None


_MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow's UI otherwise takes an experiment for one of agents, and calls models agent versions."""


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
    """Refuse object storage that cannot be used now, before an experiment is made that would keep its files there."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        get_artifact_repository(artifacts).list_artifacts()
    except ImportError as error:
        package = "pip install 'thawline[s3]'" if artifacts.startswith("s3:") else first_line(error)
        raise TrackingError(f"tracking.artifacts, {artifacts}, needs a missing package: {package}") from None
    except Exception as error:  # MLflow's own, and those of each storage's library
        raise TrackingError(
            f"tracking.artifacts, {artifacts}, cannot be read: {first_line(error)}. Correct it, check the credentials "
            "in the environment (for s3:// other than Amazon's, AWS_ENDPOINT_URL too), or leave it out."
        ) from error


def _check_location(client: "MlflowClient", experiment_id: str, artifacts: str) -> None:
    """Refuse to write files to another place than was asked for."""
    experiment = client.get_experiment(experiment_id)
    if not f"{experiment.artifact_location}/".startswith(f"{artifacts}/"):
        raise TrackingError(
            f"The MLflow experiment {experiment.name!r} keeps its files in {experiment.artifact_location}, and MLflow "
            f"cannot move them to {artifacts}. Leave tracking.artifacts out, or choose another name with "
            "--set tracking.experiment=NAME."
        )


def _write_ahead(database: Path) -> None:
    """Let readers and one writer work at the same time: writes take a third of the time. Kept in the file.

    A network file system cannot do it; then SQLite stays as it was.
    """
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, timeout=20)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def _unreachable(uri: str, error: Exception, home: Path, adopt_run_id: str | None) -> str:
    name, reason = without_password(uri), first_line(error)
    if adopt_run_id is not None and getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
        return (
            f"MLFLOW_RUN_ID names the run {adopt_run_id}, which {name} does not hold. Unset MLFLOW_RUN_ID, or set "
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
            f"Copy it, then bring it up to date: mlflow db upgrade '{name}'"
        )
    return f"The MLflow database {name} cannot be opened: {reason}. Correct --tracking-uri, or leave it out."


def uri_digest(uri: str) -> str:
    """Sixteen hex digits that tell stores apart without naming a password."""
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


def now_ms() -> int:
    """Milliseconds since 1970, MLflow's unit of time."""
    return time.time_ns() // 1_000_000


class _NotOurThread(logging.Filter):
    """Drops what a library logs from the sending thread: that a server is down is said once, in the report."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.threadName or "").startswith("thawline-tracking")


_filter_lock = threading.Lock()
_filter: _NotOurThread | None = None


def hold_back_connection_warnings() -> None:
    """Keep what libraries say of the sending thread's failures off the terminal; other threads keep theirs.

    That is urllib3's "Retrying …", and the traceback that MLflow logs of a database that is locked or full.
    """
    global _filter  # noqa: PLW0603  installed once per process
    with _filter_lock:
        if _filter is None:
            _filter = _NotOurThread()
            for name in ("urllib3.connectionpool", "mlflow.store.db.utils"):
                logging.getLogger(name).addFilter(_filter)
