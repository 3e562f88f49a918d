"""MLflow's runs: the parent run of a study, and the child runs of its trials."""

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from thawline.exceptions import TrackingError
from thawline.tracking._base import RunStatus
from thawline.tracking._errors import first_line, is_missing
from thawline.tracking.mlflow.store import MlflowStore, unreachable
from thawline.tracking.mlflow.writer import write_params, write_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "RunAddress",
    "artifact_text",
    "close_dead_run",
    "fetch_study_file",
    "find_study_run",
    "find_trial_run",
    "has_run",
    "open_run",
    "start_study_run",
]

_log = logging.getLogger(__name__)


def start_study_run(
    store: MlflowStore,
    *,
    study: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    adopt_run_id: str | None = None,
) -> str:
    """Start the study's parent run: its existing one, else the adopted one, else a new one; returns the id.

    MLflow's parameters cannot be changed. On a resume, missing ones are added, and a changed one (such as a larger
    number of trials) keeps its first value, with the new value as tag ``thawline.changed.<key>``.

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
            # The trials stay in the existing run; the new run of `mlflow run` links to it.
            client.set_tag(adopt_run_id, "thawline.continues_run", run_id)
        client.update_run(run_id, status="RUNNING")
        registry, where = store.registry_tag
        own = {"thawline.study": study, "thawline.role": "study", registry: where}
        write_tags(client, run_id, {**tags, **own})
        write_params(client, run_id, params)
    except Exception as error:
        raise TrackingError(unreachable(store.uri, error, store.home, adopt_run_id)) from error
    return run_id


def find_study_run(store: MlflowStore, study: str) -> str | None:
    """The id of the study's parent run, or ``None``; ignores deleted runs."""
    return _find(store, f"tags.`thawline.study` = '{study}' AND tags.`thawline.role` = 'study'")


def has_run(store: MlflowStore, run_id: str) -> bool:
    """Whether the store has a run, including deleted ones.

    Raises:
        TrackingError: if the store fails.
    """
    try:
        store.client.get_run(run_id)
    except Exception as error:
        if is_missing(error):
            return False
        raise TrackingError(unreachable(store.uri, error, store.home, None)) from error
    return True


def artifact_text(client: "MlflowClient", run_id: str, file: str) -> str | None:
    """The text of a run's artifact, without leaving a copy; ``None`` if the run has none of this name.

    It is listed first: a download fails alike for a missing file and for one that may not be read.

    Raises:
        Exception: MLflow's, or the artifact store's, if the artifact cannot be read.
    """
    within = PurePosixPath(file).parent
    listed = client.list_artifacts(run_id, None if within == PurePosixPath() else str(within))
    if file not in {entry.path for entry in listed}:
        return None
    with tempfile.TemporaryDirectory(prefix="thawline-") as folder:
        return Path(client.download_artifacts(run_id, file, folder)).read_text(encoding="utf-8")


def fetch_study_file(store: MlflowStore, study: str, file: str) -> str | None:
    """The text of an artifact of the study's run; ``None`` if there is no such run or file, or no response."""
    try:
        run_id = find_study_run(store, study)
        return artifact_text(store.client, run_id, file) if run_id is not None else None
    except Exception:
        _log.debug("%s of %s cannot be fetched", file, study, exc_info=True)
        return None


def find_trial_run(store: MlflowStore, *, parent_run_id: str, number: int) -> str | None:
    """The id of a trial's child run, or ``None``; ignores deleted runs.

    Raises:
        TrackingError: if the store fails.
    """
    try:
        return _trial_run(store, parent_run_id, number)
    except Exception as error:
        raise TrackingError(unreachable(store.uri, error, store.home, None)) from error


def _trial_run(store: MlflowStore, parent_run_id: str, number: int) -> str | None:
    return _find(store, f"tags.`mlflow.parentRunId` = '{parent_run_id}' AND tags.`thawline.trial` = '{number}'")


def close_dead_run(
    store: MlflowStore, *, parent_run_id: str, number: int, status: RunStatus, reason: str = ""
) -> str | None:
    """End the run of a trial whose process died; returns its id, or ``None`` without a run.

    A run that has already ended keeps its status. ``reason`` becomes the tag ``thawline.reason``.

    Raises:
        TrackingError: if the store fails.
    """
    try:
        run_id = _trial_run(store, parent_run_id, number)
        if run_id is not None and store.client.get_run(run_id).info.status == "RUNNING":
            if reason:
                write_tags(store.client, run_id, {"thawline.reason": reason})
            store.client.set_terminated(run_id, status)
    except Exception as error:
        raise TrackingError(f"Cannot close the run of trial {number}: {first_line(error)}") from error
    return run_id


@dataclass(frozen=True)
class RunAddress:
    """The persistent address of a run."""

    study: str
    trial: int | None
    """Number of the trial; ``None`` for the study's own run."""
    run_id: str | None
    """Set for the study's own run; a trial's run is found or created by its parent and number."""
    parent_run_id: str | None
    run_name: str
    started_at: int | None = None
    """Start of the trial, in milliseconds since 1970; the study's own run is already started."""


def open_run(store: MlflowStore, address: RunAddress, *, late: bool = False) -> str:
    """The id of the addressed run. Idempotent: a trial's run is only created if it does not exist.

    Args:
        store: where the run is.
        address: address of the run.
        late: whether records are delivered late; then an existing run is not set to running.
    """
    if address.run_id is not None:
        return address.run_id
    if address.parent_run_id is None or address.trial is None:
        raise ValueError("a run without id needs parent_run_id and trial to be found by")
    found = _trial_run(store, address.parent_run_id, address.trial)
    if found is not None:
        if not late:
            store.client.update_run(found, status="RUNNING")
        return found
    tags = {
        "mlflow.parentRunId": address.parent_run_id,
        "thawline.study": address.study,
        "thawline.role": "trial",
        "thawline.trial": str(address.trial),
    }
    created = store.client.create_run(
        store.experiment_id, start_time=address.started_at, run_name=address.run_name, tags=tags
    )
    return str(created.info.run_id)


def _find(store: MlflowStore, condition: str) -> str | None:
    # The oldest, so that all processes agree even if two have created one at the same time.
    runs = store.client.search_runs(
        [store.experiment_id], condition, max_results=1, order_by=["attributes.start_time ASC"]
    )
    return str(runs[0].info.run_id) if runs else None
