"""MLflow's store, and the records that must be kept in it."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from thawline.exceptions import ThawlineError, TrackingError
from thawline.tracking import MlflowStore, is_missing, pages

__all__ = ["Mlflow", "Registered", "reading"]

_LOGGED_MODEL = re.compile(r"\bm-[0-9a-f]{32}\b")


@dataclass(frozen=True)
class Registered:
    """Runs and packages that versions of registered models refer to."""

    runs: frozenset[str]
    models: frozenset[str]
    unclear: frozenset[str]
    """Runs of versions whose package cannot be identified: all of their packages are kept."""
    in_trash: tuple[str, ...]
    """Versions with a deleted package, which cannot be loaded after ``mlflow gc``."""


@dataclass(frozen=True)
class Mlflow:
    """MLflow's store."""

    store: MlflowStore
    own: bool
    """Whether its database is in the home. Any other may also contain runs of others."""
    experiments: tuple[str, ...]
    storages: Mapping[str, str]
    """Studies stored in another database than the surveyed one, with that database."""
    registries: Mapping[str, Mapping[str, str]]
    """By study, tags with the registries of its models; empty for earlier versions of Thawline."""

    @classmethod
    def open(cls, home: Path, tracking_uri: str | None, studies_url: str | None) -> "Mlflow | None":
        """Open it as a search would; ``None`` if no search has created one.

        Raises:
            TrackingError: if it cannot be read now.
        """
        from thawline.config import TrackingConfig, without_password
        from thawline.tracking import open_store, resolve_uri
        from thawline.tracking.database import sqlite_file
        from thawline.tracking.mlflow.store import REGISTRY_TAG

        uri = resolve_uri(TrackingConfig(uri=tracking_uri), home)
        file = sqlite_file(uri)
        own = file is not None and file.is_relative_to(home)
        if own and file is not None and not file.exists():
            return None
        with reading():
            store = open_store(tracking_uri, home)
            experiments = tuple(found.experiment_id for found in pages(store.client.search_experiments))
            kept: dict[str, str] = {}
            registries: dict[str, dict[str, str]] = {}
            for run in cls(store, own, experiments, {}, {}).runs("tags.`thawline.role` = 'study'"):
                study = run.data.tags.get("thawline.study", "")
                kept[study] = run.data.params.get("study.storage", "None")
                named = {key: name for key, name in run.data.tags.items() if key.startswith(REGISTRY_TAG)}
                registries.setdefault(study, {}).update(named)
        here = {"None", without_password(studies_url or "None")}
        storages = {study: url for study, url in kept.items() if url not in here}
        return cls(store, own, experiments, storages, registries)

    def registered_elsewhere(self, study: str) -> str | None:
        """Another registry with models of a study, which is not checked; ``None`` if there is none."""
        looked_at, _ = self.store.registry_tag
        names = (name for key, name in self.registries.get(study, {}).items() if key != looked_at)
        return next(names, None)

    @cached_property
    def registered(self) -> Registered:
        """Records that must be kept.

        Raises:
            TrackingError: if the registry cannot be read now.
        """
        client = self.store.client
        runs, models, unclear, in_trash = set(), set(), set(), []
        with reading():
            for version in pages(client.search_model_versions):
                # A copied version names its original; the location of its files names the package.
                place = client.get_model_version_download_uri(version.name, version.version)
                named = set(_LOGGED_MODEL.findall(f"{version.source} {place}"))
                runs.add(str(version.run_id))
                models |= named
                if not named:
                    unclear.add(str(version.run_id))
                if any(_found(client.get_logged_model, model_id) is None for model_id in named):
                    in_trash.append(f"{version.name}/{version.version}")
        return Registered(frozenset(runs), frozenset(models), frozenset(unclear), tuple(in_trash))

    def runs(self, condition: str) -> Iterator[Any]:
        """Runs in any experiment, except deleted ones."""
        return pages(
            self.store.client.search_runs,
            experiment_ids=list(self.experiments),
            filter_string=condition,
            max_results=1000,
        )

    def study_of(self, run_id: str) -> str | None:
        """The study of a run; ``None`` for a destroyed run, or one of another program."""
        run = _found(self.store.client.get_run, run_id)
        return None if run is None else run.data.tags.get("thawline.study")


@contextmanager
def reading() -> Iterator[None]:
    """Convert errors of MLflow, its database or the network to :class:`TrackingError`."""
    try:
        yield
    except ThawlineError:
        raise
    except Exception as error:
        from thawline.tracking import first_line

        raise TrackingError(f"MLflow cannot be read, so nothing is removed: {first_line(error)}") from error


def _found(get: Callable[[str], Any], name: str) -> Any:
    """MLflow's entity with an id, or ``None``; deleted logged models are not found, deleted runs are."""
    try:
        return get(name)
    except Exception as error:
        if is_missing(error):
            return None
        raise
