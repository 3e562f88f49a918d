"""MLflow's model registry: versions, aliases, and loading of packaged models."""

import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from thawline.engines import EngineName, choose
from thawline.exceptions import RegistryError
from thawline.registry.card import MODEL_CARD, tested_of
from thawline.registry.contents import DIGEST_TAG, describe
from thawline.registry.failures import failures_named
from thawline.registry.names import (
    CHALLENGER,
    CHAMPION,
    LONGEST_REASON,
    QUANTISED_FROM,
    ModelInput,
    ModelName,
    verdict_folder,
)
from thawline.registry.reigns import Reign, reigns_of
from thawline.tracking import MlflowStore, artifact_text, is_missing, now_ms, pages, quiet_mlflow

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from thawline.registry.packaged import PackagedModel

__all__ = ["MlflowRegistry", "check_kind"]

_log = logging.getLogger("thawline.registry")

_HISTORY = "thawline.champion."
"""Prefix of tags of a registered model, before a time in milliseconds; the value is the new champion, with a reason."""


class MlflowRegistry:
    """The model registry of a store.

    Raises:
        RegistryError: from every method, if something is missing or the registry fails.
    """

    def __init__(self, store: MlflowStore) -> None:
        self._store = store
        self._client = store.client

    def names(self) -> list[str]:
        """All registered models, sorted."""
        with failures_named():
            return sorted(model.name for model in pages(self._client.search_registered_models))

    def champion(self, name: str) -> str | None:
        """The champion's version, or ``None``."""
        return self._alias(name, CHAMPION)

    def challenger(self, name: str) -> str | None:
        """The challenger's version, or ``None``."""
        return self._alias(name, CHALLENGER)

    def find_version(self, name: str, *, study: str, run_id: str, quantised_from: str | None = None) -> str | None:
        """The newest version that this study registered from this run, for resumed studies; ``None`` if there is none.

        Args:
            name: registered model.
            study: name of the study.
            run_id: id of the trial's run.
            quantised_from: find the int8 copy of this version instead.
        """
        with failures_named():
            found = [
                int(version.version)
                for version in self._client.search_model_versions(f"name = '{name}'")
                if version.run_id == run_id
                and version.tags.get("thawline.study") == study
                and version.tags.get(QUANTISED_FROM) == quantised_from
            ]
        return str(max(found)) if found else None

    def quantised_from(self, name: str, version: str) -> str | None:
        """The version from which this one was quantised to int8; ``None`` if it is not quantised."""
        return self.tags(name, version).get(QUANTISED_FROM)

    def with_network(self, model: ModelName, what: str) -> ModelName:
        """A version with a PyTorch network: the model or, with a warning, the version that it was quantised from.

        Args:
            model: to resolve.
            what: happens to it, for the warning: a participle such as ``"explained"``.

        Raises:
            RegistryError: if one of them is missing.
        """
        version = self.resolve(model)
        twin = self.quantised_from(model.name, version)
        if twin is None:
            return ModelName(model.name, None, version)
        found = ModelName(model.name, None, self.resolve(ModelName(model.name, None, twin)))
        _log.warning(
            "%s/%s is in int8, so the version %s is %s, from which it was quantised", model.name, version, what, found
        )
        return found

    def register(self, name: str, model_uri: str, *, run_id: str, study: str, tags: Mapping[str, str]) -> str:
        """Add a logged model (``models:/m-…``) as the next version of ``name``, which is created if it is new."""
        from mlflow.exceptions import MlflowException

        model_id = model_uri.removeprefix("models:/")
        with failures_named():
            try:
                self._client.create_registered_model(name, description=MODEL_CARD)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            logged = self._client.get_logged_model(model_id).tags
            recorded = {"thawline.study": study} | {key: logged[key] for key in (DIGEST_TAG,) if key in logged}
            with _as_global_store(self._store), quiet_mlflow():
                created = self._client.create_model_version(
                    name, model_uri, run_id=run_id, tags={**tags, **recorded}, model_id=model_id
                )
            # The UI's page of the logged model finds its versions by this tag. A server sets it; without one,
            # mlflow.register_model would, but it prints and uses the global store.
            known = json.loads(self._client.get_logged_model(model_id).tags.get("mlflow.modelVersions") or "[]")
            if not any(item["name"] == name and str(item["version"]) == str(created.version) for item in known):
                versions = [*known, {"name": name, "version": created.version}]
                self._client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps(versions)})
        return str(created.version)

    def set_tags(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with failures_named():
            for key, value in tags.items():
                self._client.set_model_version_tag(name, version, key, value)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias to a version."""
        with failures_named():
            self._client.set_registered_model_alias(name, alias, version)

    def promote(self, name: str, version: str, *, judged_against: str | None, by: str, reason: str) -> None:
        """Make a version the champion, unless the champion is no longer the one that it was compared with.

        The history of champions, with reasons, is stored in tags of the registered model (:meth:`history`). MLflow
        cannot compare and set an alias atomically; a lock in Thawline's home serialises promotions from this home, but
        between several homes on one server a race of milliseconds remains.

        Args:
            name: registered model.
            version: to promote.
            judged_against: the champion's version at the time of the decision.
            by: who decided, for the history.
            reason: the evidence, for the history.
        """
        lock = self._store.home / "locks" / f"promote-{name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=60):
                champion = self.champion(name)
                if champion != judged_against:
                    raise RegistryError(
                        f"{name}/{version} was compared with {_named(judged_against)}, but the champion is now "
                        f"{_named(champion)}: it is not promoted. Compare it again: thawline promote {name} "
                        f"--version {version}"
                    )
                # Tags first, alias last, so that the new champion has all its tags as soon as it is visible.
                self.set_tags(name, version, {"thawline.previous_champion": judged_against or "none"})
                entry = {"version": version, "previous": judged_against, "by": by, "reason": reason[:LONGEST_REASON]}
                value = json.dumps(entry, ensure_ascii=False)  # escapes could make it longer than the column
                with failures_named():
                    self._client.set_registered_model_tag(name, f"{_HISTORY}{now_ms():013d}", value)
                self.set_alias(name, CHAMPION, version)
        except Timeout:
            raise RegistryError(f"Another promotion of {name!r} has been running for a minute ({lock}).") from None

    def history(self, name: str) -> tuple[Reign, ...]:
        """The champions with their periods, oldest first.

        Raises:
            RegistryError: if there is no such model, listing the existing ones.
        """
        self._exists(name)
        with failures_named():
            tags = self._client.get_registered_model(name).tags
        entries = [
            (int(key.removeprefix(_HISTORY)), json.loads(value))
            for key, value in sorted(tags.items())
            if key.startswith(_HISTORY)
        ]
        return reigns_of(entries, self.champion(name))

    def former_champion(self, name: str) -> str | None:
        """The previous champion, or ``None``."""
        reigns = self.history(name)
        return reigns[-2].version if len(reigns) > 1 else None

    def run_of(self, name: str, version: str) -> str:
        """The run that trained a version, if it is in this store.

        Raises:
            RegistryError: if it was registered without a run, or with a run in another store.
        """
        by_force = f"thawline promote {name} --version {version} --force --reason TEXT"
        with failures_named():
            run_id = self._client.get_model_version(name, version).run_id
            if not run_id:
                raise RegistryError(
                    f"{name}/{version} cannot be compared: verdicts are recorded in the run that trained the version, "
                    f"but it was registered without a run. To promote it without a comparison: {by_force}"
                )
            try:
                self._client.get_run(run_id)
            except Exception as error:
                if not is_missing(error):
                    raise
                raise RegistryError(
                    f"{name}/{version} was trained by the run {run_id}, which is not in {self._store.name}. Name "
                    f"the store of that run with --tracking-uri; or, to promote it without a comparison: {by_force}"
                ) from None
        return str(run_id)

    def model_of(self, name: str, version: str) -> str | None:
        """Id of the logged model that became a version; ``None`` if it came from elsewhere."""
        with failures_named():
            source = str(self._client.get_model_version(name, version).source)
        return source.removeprefix("models:/") if source.startswith("models:/m-") else None

    def study_file(self, name: str, version: str, file: str) -> str | None:
        """The text of an artifact of the study run whose trial became this version; ``None`` if there is none.

        Raises:
            RegistryError: if there is no such version, or the artifact cannot be read.
        """
        with failures_named(f"Cannot read {file} of the study that trained {name}/{version}"):
            run_id = self._client.get_model_version(name, version).run_id
            parent = self._client.get_run(run_id).data.tags.get("mlflow.parentRunId") if run_id else None
            return artifact_text(self._client, parent, file) if parent is not None else None

    def verdict(self, name: str, version: str) -> dict[str, Any] | None:
        """The evidence of a version's last comparison, ``verdict.json``; ``None`` if there was none.

        Raises:
            RegistryError: if there is no such version, or the evidence cannot be read.
        """
        with failures_named(f"Cannot read the verdict on {name}/{version}"):
            found = self._client.get_model_version(name, version)
            if not found.run_id:
                return None
            text = artifact_text(self._client, found.run_id, f"{verdict_folder(found.tags)}/verdict.json")
            evidence: dict[str, Any] | None = json.loads(text) if text is not None else None
        return evidence

    def newest(self, name: str) -> str:
        """The newest version.

        Raises:
            RegistryError: if there is no such model or version.
        """
        self._exists(name)
        with failures_named():
            versions = [int(found.version) for found in self._client.search_model_versions(f"name = '{name}'")]
        if not versions:
            raise RegistryError(f"The model {name!r} has no version.")
        return str(max(versions))

    def tags(self, name: str, version: str) -> dict[str, str]:
        """Tags of a version."""
        with failures_named():
            return dict(self._client.get_model_version(name, version).tags)

    def input_of(self, model: ModelName) -> ModelInput:
        """A model's kind of input, from its description only: no network is built, and no weights are downloaded."""
        version = self.resolve(model)
        with (
            failures_named(f"The description of {model} cannot be read"),
            self._files(model.name, version, "/MLmodel") as path,
        ):
            description = describe(path.read_bytes(), str(model))
        return ModelInput(description.kind, description.metadata.get("text_column"))

    def load(
        self, model: ModelName, *, device: str = "auto", engine: EngineName | None = None, lasting: bool = False
    ) -> "PackagedModel":
        """Load a model by alias or version, after checking that its files are unchanged; no code in them is run.

        Args:
            model: to load.
            device: ``auto`` for a GPU if there is one, or any PyTorch device.
            engine: to compute with, see :func:`thawline.engines.choose`; by default PyTorch, or ONNX Runtime for a
                version in int8, which no other engine supports.
            lasting: whether it will be used for long, as in a server.

        Raises:
            EngineError: if the requested engine cannot compute it.
            RegistryError: if it is missing, listing what exists; if Thawline did not package it, or its files have
                changed.
        """
        from thawline.registry.packaged import (  # loads torch, which the registry itself does not need
            compute_quantised,
            read_package,
        )

        version = self.resolve(model)
        name = ModelName(model.name, None, version)
        tags = self.tags(model.name, version)
        with failures_named(f"{model} cannot be loaded"), self._files(model.name, version) as path:
            on_cpu = engine not in (None, "auto", "pytorch", "pytorch-compiled")
            place = "cpu" if on_cpu and device == "auto" else device
            packaged = read_package(path, name, recorded=tags.get(DIGEST_TAG), device=place)
            packaged.tested = tested_of(tags)
            if packaged.is_quantised:
                compute_quantised(packaged, path / "artifacts", device, engine or "auto", tags.get(QUANTISED_FROM))
                return packaged
            if engine not in (None, "pytorch"):
                packaged.compute_by(
                    choose(packaged.servable, path / "artifacts", engine, model=str(packaged.name), lasting=lasting)
                )
        return packaged

    @contextmanager
    def artifacts(self, model: ModelName) -> Iterator[Path]:
        """Folder of a version's artifacts, valid within the block; :meth:`load` compares them with their digests.

        Raises:
            RegistryError: if they cannot be downloaded.
        """
        with failures_named(f"{model} cannot be read"), self._files(model.name, self.resolve(model)) as path:
            yield path / "artifacts"

    @contextmanager
    def _files(self, name: str, version: str, part: str = "") -> Iterator[Path]:
        """The package's folder, or a part of it, on this machine within the block."""
        import mlflow

        with tempfile.TemporaryDirectory(prefix="thawline-") as folder:
            # The location of the files: a models:/ URI would be resolved in the process's global store.
            location = self._client.get_model_version_download_uri(name, version)
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=location + part,
                # A local folder is used in place; remote files are needed only while loading.
                dst_path=None if location.startswith(("file:", "/")) else folder,
                tracking_uri=self._store.uri,
                registry_uri=self._store.registry_uri,
            )
            yield Path(path)

    def has(self, name: str) -> bool:
        """Whether a model of this name is registered."""
        with failures_named():
            try:
                self._client.get_registered_model(name)
            except Exception as error:
                if is_missing(error):
                    return False
                raise
        return True

    def _exists(self, name: str) -> None:
        if self.has(name):
            return
        names = self.names()
        none = "No model is registered yet: run `thawline search`."
        registered = f"Registered: {', '.join(names)}." if names else none
        raise RegistryError(f"No model {name!r} in {self._store.name}. {registered}")

    def resolve(self, model: ModelName) -> str:
        """The version that a name refers to.

        Raises:
            RegistryError: if it does not exist, listing what exists.
        """
        self._exists(model.name)
        if model.alias is not None:
            version = self._alias(model.name, model.alias)
            if version is None:
                with failures_named():
                    aliases = sorted(self._client.get_registered_model(model.name).aliases)
                there = f"Its aliases: {', '.join(aliases)}." if aliases else "It has no alias; name a version."
                if model.alias == CHAMPION and CHALLENGER in aliases:
                    there += f" Name {model.name}@{CHALLENGER}, or promote it: thawline promote {model.name}"
                raise RegistryError(f"The model {model.name!r} has no alias {model.alias!r}. {there}")
            return version
        with failures_named():
            found: list[ModelVersion] = self._client.search_model_versions(f"name = '{model.name}'")
        versions = sorted(int(version.version) for version in found)
        if str(model.version) not in map(str, versions):  # 03 would be another name of 3
            there = ", ".join(map(str, versions)) or "none"
            raise RegistryError(f"The model {model.name!r} has no version {model.version}. Its versions: {there}.")
        return str(model.version)

    def _alias(self, name: str, alias: str) -> str | None:
        from mlflow.exceptions import MlflowException

        with failures_named():
            try:
                return str(self._client.get_model_version_by_alias(name, alias).version)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise


_global_store = threading.RLock()


@contextmanager
def _as_global_store(store: MlflowStore) -> Iterator[None]:
    """Make the store the process's tracking URI within the block, and restore it afterwards.

    MLflow's SQL registry resolves ``models:/m-…`` in the global store, regardless of the client's store (an open point
    in its source, 3.17). Setting that store also writes MLFLOW_TRACKING_URI, for subprocesses, so this is restored too.
    """
    import mlflow

    with _global_store:
        variable, before = "MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(store.uri)
        try:
            yield
        finally:
            # Any earlier call of set_tracking_uri has set the variable, so restoring the variable is enough.
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type, unused-ignore]
            if before is not None:
                os.environ[variable] = before


def _named(version: str | None) -> str:
    return "no champion" if version is None else f"version {version}"


def check_kind(registry: MlflowRegistry, model: ModelName, what: str) -> None:
    """Reject a text model where only images make sense, before anything is computed.

    Args:
        registry: registry of the model.
        model: as the user named it.
        what: the rest of the error, such as ``"drift is measured between images"``.

    Raises:
        RegistryError: if it classifies texts, or is missing.
    """
    if registry.input_of(model).kind == "texts":
        raise RegistryError(f"{model} classifies texts, but {what}: name an image model.")
