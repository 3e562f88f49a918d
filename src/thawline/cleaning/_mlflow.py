"""Removable records of MLflow, which are moved to its trash."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

from thawline.cleaning._look import Failure, Item, Look
from thawline.cleaning._store import Mlflow, reading
from thawline.cleaning._tree import files_below, size
from thawline.tracking import CHECKPOINT, pages

__all__ = ["failed_runs", "unused_models"]

_VERSIONS = "mlflow.modelVersions"
"""Tag of a package that was registered anywhere; earlier versions of Thawline did not record where."""
_MODEL_TYPES = ("image-classifier", "text-classifier")


def failed_runs(look: Look) -> Iterator[Item]:
    """Failed trials without a version of a registered model."""
    mlflow = look.mlflow
    if mlflow is None:
        return
    ours = _recorded(look, mlflow)
    by_study: dict[str, list[Any]] = defaultdict(list)
    ended = f"attributes.end_time < {int(1000 * look.cutoff)}"
    with reading():
        for run in mlflow.runs(f"tags.`thawline.role` = 'trial' AND {ended}"):
            run_id, study = run.info.run_id, run.data.tags.get("thawline.study", "")
            unused = run_id not in mlflow.registered.runs and (ours is None or run_id in ours)
            if unused and _has_failed(look, run) and not _is_elsewhere(look, mlflow, study):
                by_study[study].append(run)
    for study, runs in sorted(by_study.items()):
        _warn(look, mlflow)
        ids = tuple(run.info.run_id for run in runs)
        with reading():
            checkpoints = [model for run_id in ids for model in _checkpoints(mlflow, run_id)]
        locations = [run.info.artifact_uri for run in runs] + [model.artifact_location for model in checkpoints]
        yield Item(
            kind="runs",
            name=f"failed trials of the study {study}",
            parts=ids,
            bytes=_artifact_bytes(look, locations),
            why="no registered model was made from them",
            remove=partial(_delete_runs, mlflow, ids, [model.model_id for model in checkpoints]),
        )


def _checkpoints(mlflow: Mlflow, run_id: str) -> Iterator[Any]:
    """Checkpoints recorded by a trial, except registered ones; MLflow keeps them even without the run."""
    theirs = f"source_run_id = '{run_id}' AND model_type = '{CHECKPOINT}'"
    search = mlflow.store.client.search_logged_models
    for model in pages(search, experiment_ids=list(mlflow.experiments), filter_string=theirs):
        if model.model_id not in mlflow.registered.models:
            yield model


def _delete_runs(mlflow: Mlflow, run_ids: Sequence[str], model_ids: Sequence[str]) -> list[Failure]:
    client = mlflow.store.client
    return _delete(client.delete_logged_model, model_ids) + _delete(client.delete_run, run_ids)


def _has_failed(look: Look, run: Any) -> bool:
    tags = run.data.tags
    study, number = tags.get("thawline.study", ""), tags.get("thawline.trial", "")
    if study in look.studies.busy:
        return False
    if study in look.studies.names:
        return any(record.state == "failed" and str(record.number) == number for record in look.studies.records(study))
    # MLflow calls pruned and paused trials killed, but they are results.
    ended_badly = run.info.status in {"FAILED", "KILLED"} and tags.get("thawline.state") not in {"paused", "pruned"}
    return ended_badly and look.is_gone(study)


def unused_models(look: Look) -> Iterator[Item]:
    """Packages of searches that died before registering them, and of deleted versions."""
    mlflow = look.mlflow
    if mlflow is None:
        return
    ours = _recorded(look, mlflow)
    by_name: dict[str, list[Any]] = defaultdict(list)
    with reading():
        for model in pages(mlflow.store.client.search_logged_models, experiment_ids=list(mlflow.experiments)):
            if (
                model.model_type in _MODEL_TYPES
                and model.source_run_id is not None
                and model.last_updated_timestamp < 1000 * look.cutoff
                and model.model_id not in mlflow.registered.models
                and model.source_run_id not in mlflow.registered.unclear
                and (ours is None or model.source_run_id in ours)
            ):
                study = mlflow.study_of(model.source_run_id)
                if study is None or study in look.studies.busy or _is_elsewhere(look, mlflow, study):
                    continue
                if mlflow.registries.get(study) or not model.tags.get(_VERSIONS):
                    by_name[model.name].append(model)
    for name, models in sorted(by_name.items()):
        _warn(look, mlflow)
        ids = tuple(model.model_id for model in models)
        yield Item(
            kind="models",
            name=f"packages of the model {name}",
            parts=ids,
            bytes=_artifact_bytes(look, [model.artifact_location for model in models]),
            why="no registered version refers to them",
            remove=partial(_delete, mlflow.store.client.delete_logged_model, ids),
        )


def _is_elsewhere(look: Look, mlflow: Mlflow, study: str) -> bool:
    """Whether its models are, or may be, registered in a registry that is not checked."""
    registry = mlflow.registered_elsewhere(study)
    if registry is not None:
        look.note(
            f"Runs and packages of the study {study} are kept: its models are registered in {registry}, which is not "
            "checked. To check it, name it in MLFLOW_REGISTRY_URI."
        )
    return registry is not None


def _recorded(look: Look, mlflow: Mlflow) -> set[str] | None:
    """Runs recorded by the studies of this home; ``None`` for all, if the store belongs to this home."""
    if mlflow.own:
        return None
    results = [record.result for name in look.studies.names for record in look.studies.records(name)]
    return {result.run_id for result in results if result is not None and result.run_id is not None}


def _warn(look: Look, mlflow: Mlflow) -> None:
    """Note how to free the files, and what to check first.

    Thawline does not run ``mlflow gc`` itself, because it cannot be restricted to some runs: it also destroys all
    deleted experiments, and does not check whether a registered model needs the files.
    """
    store = mlflow.store
    command = f"`mlflow gc --backend-store-uri {store.name} --tracking-uri {store.name}`"
    if store.uri.startswith("http"):
        command = "`mlflow gc` on the server's machine"
    look.note(
        "Runs and models are moved to MLflow's trash; `mlflow runs restore --run-id ID` restores runs, but not models. "
        f"{command} empties the trash and frees the disk space."
    )
    for version in mlflow.registered.in_trash:
        look.note(f"MLflow's trash also contains the package of {version}: do not run `mlflow gc` if you need it.")


def _delete(delete: Callable[[str], object], ids: Sequence[str]) -> list[Failure]:
    failures = []
    for each in ids:
        try:
            delete(each)
        except Exception as error:  # from MLflow, the database or the network
            failures.append(Failure(each, (str(error).splitlines() or [type(error).__name__])[0]))
    return failures


def _artifact_bytes(look: Look, locations: Sequence[str]) -> int | None:
    """Size of artifacts in the home; ``None`` if any are elsewhere."""
    folders = [Path(url2pathname(location.removeprefix("file://"))) for location in locations]
    if not all(folder.is_relative_to(look.home) for folder in folders):
        return None
    return size([file for folder in folders for file in files_below(folder)])
