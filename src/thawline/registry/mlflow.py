"""MLflow's model registry: versions, aliases, and the packaged model back from it."""

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
from thawline.registry.names import CHALLENGER, CHAMPION, QUANTISED_FROM, ModelInput, ModelName, verdict_folder
from thawline.registry.reigns import Reign, reigns_of
from thawline.tracking import MlflowStore, artifact_text, now_ms, pages, quiet_mlflow

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from thawline.registry.packaged import PackagedModel

__all__ = ["MlflowRegistry", "check_kind"]

_log = logging.getLogger("thawline.registry")

_HISTORY = "thawline.champion."
"""Tags of a registered model: this and the time in milliseconds; the value says who became champion, and why."""
_LONGEST_REASON = 2000


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
        """The newest version that this study registered from this run, or ``None``: a resumed study finds it.

        Args:
            name: registered model.
            study: name of the study.
            run_id: of the trial.
            quantised_from: look for the copy in int8 of this version instead.
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
        """The version in single precision that this one is a copy of in int8; ``None`` if it is none."""
        return self.tags(name, version).get(QUANTISED_FROM)

    def with_network(self, model: ModelName, what: str) -> ModelName:
        """A version whose network can be looked into: the model, or what it was quantised from, which is then said.

        Args:
            model: which.
            what: is done with it, a participle such as ``"explained"``.

        Raises:
            RegistryError: if one of them is missing.
        """
        version = self.resolve(model)
        twin = self.quantised_from(model.name, version)
        if twin is None:
            return ModelName(model.name, None, version)
        found = ModelName(model.name, None, self.resolve(ModelName(model.name, None, twin)))
        _log.warning(
            "%s/%s is in int8: what is %s is %s, which it was quantised from", model.name, version, what, found
        )
        return found

    def register(self, name: str, model_uri: str, *, run_id: str, study: str, tags: Mapping[str, str]) -> str:
        """Add a logged model (``models:/m-…``) as the next version of ``name``, which is made if it is new."""
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
            # By this tag the UI's page of the logged model names its versions. A server sets it; otherwise
            # mlflow.register_model would, which prints and works on the global store.
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
        """Make a version the champion, unless the champion is no longer the one that it was judged against.

        Who was champion when, and why, is kept in tags of the registered model (:meth:`history`). MLflow cannot compare
        and set an alias in one step; a lock in Thawline's home keeps the promotions of one home apart, and between
        several homes on one server a gap of milliseconds remains.

        Args:
            name: registered model.
            version: what to promote.
            judged_against: the champion's version when the decision was made.
            by: who decided, for the history.
            reason: on what evidence, for the history.
        """
        lock = self._store.home / "locks" / f"promote-{name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=60):
                champion = self.champion(name)
                if champion != judged_against:
                    raise RegistryError(
                        f"{name}/{version} was judged against {_named(judged_against)}, but the champion is now "
                        f"{_named(champion)}: it is not promoted. Judge it again: thawline promote {name} "
                        f"--version {version}"
                    )
                # Tags first, alias last: whoever sees the new champion sees all that is known of it.
                self.set_tags(name, version, {"thawline.previous_champion": judged_against or "none"})
                entry = {"version": version, "previous": judged_against, "by": by, "reason": reason[:_LONGEST_REASON]}
                with failures_named():
                    self._client.set_registered_model_tag(name, f"{_HISTORY}{now_ms():013d}", json.dumps(entry))
                self.set_alias(name, CHAMPION, version)
        except Timeout:
            raise RegistryError(f"Another promotion of {name!r} has been running for a minute ({lock}).") from None

    def history(self, name: str) -> tuple[Reign, ...]:
        """Who was champion from when to when, the oldest first.

        Raises:
            RegistryError: if there is no such model, listing those there are.
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
        """The champion before the present one, or ``None``."""
        reigns = self.history(name)
        return reigns[-2].version if len(reigns) > 1 else None

    def run_of(self, name: str, version: str) -> str:
        """The run that a version was trained by, which this store has.

        Raises:
            RegistryError: if it was registered without a run, or with one of another store.
        """
        from mlflow.exceptions import MlflowException

        by_force = f"thawline promote {name} --version {version} --force --reason TEXT"
        with failures_named():
            run_id = self._client.get_model_version(name, version).run_id
            if not run_id:
                raise RegistryError(
                    f"{name}/{version} was registered without a run, and a verdict is recorded in the run that trained "
                    f"the version: it cannot be judged. To make it champion on your word: {by_force}"
                )
            try:
                self._client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise RegistryError(
                    f"{name}/{version} was trained by the run {run_id}, which {self._store.name} does not hold. Name "
                    f"the store of that run with --tracking-uri; or, to make it champion on your word: {by_force}"
                ) from None
        return str(run_id)

    def model_of(self, name: str, version: str) -> str | None:
        """Id of the logged model that became a version; ``None`` if it came from elsewhere."""
        with failures_named():
            source = str(self._client.get_model_version(name, version).source)
        return source.removeprefix("models:/") if source.startswith("models:/m-") else None

    def study_file(self, name: str, version: str, file: str) -> str | None:
        """The text of an artifact of the study run whose trial became this version; ``None`` if there is none."""
        from mlflow.exceptions import MlflowException

        with failures_named():
            run_id = self._client.get_model_version(name, version).run_id
            parent = self._client.get_run(run_id).data.tags.get("mlflow.parentRunId") if run_id else None
            if parent is None:
                return None
            try:
                return artifact_text(self._client, parent, file)
            except (MlflowException, OSError):
                return None

    def verdict(self, name: str, version: str) -> dict[str, Any] | None:
        """The evidence on which a version was judged last, ``verdict.json``; ``None`` if it never was."""
        from mlflow.exceptions import MlflowException

        with failures_named():
            found = self._client.get_model_version(name, version)
            if not found.run_id:
                return None
            file = f"{verdict_folder(found.tags)}/verdict.json"
            try:
                evidence: dict[str, Any] = json.loads(artifact_text(self._client, found.run_id, file))
            except (MlflowException, OSError):
                return None
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
        """What a model classifies, by its description alone: no network is built, and no weights are fetched."""
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
        """Load a model by alias or version, once its files are what was registered; no code in them is run.

        Args:
            model: which.
            device: ``auto`` for a GPU if there is one, or any of PyTorch's.
            engine: what computes it, see :func:`thawline.engines.choose`; by default PyTorch, or ONNX Runtime for a
                version in int8, which no other engine computes.
            lasting: whether it will compute for long, as in a server.

        Raises:
            EngineError: if the engine that is wanted cannot compute it.
            RegistryError: if it is missing, listing what there is; if Thawline did not package it, or its files have
                changed.
        """
        from thawline.registry.packaged import (  # which loads torch; the registry itself does without
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
        """Folder of a version's artifacts, for the time of the block; :meth:`load` compares them with their digests.

        Raises:
            RegistryError: if they cannot be fetched.
        """
        with failures_named(f"{model} cannot be read"), self._files(model.name, self.resolve(model)) as path:
            yield path / "artifacts"

    @contextmanager
    def _files(self, name: str, version: str, part: str = "") -> Iterator[Path]:
        """The package's folder, or a part of it, on this machine for as long as it is looked at."""
        import mlflow

        with tempfile.TemporaryDirectory(prefix="thawline-") as folder:
            # Where the files lie: a models:/ URI would be looked up in the process's global store.
            location = self._client.get_model_version_download_uri(name, version)
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=location + part,
                # A local folder answers with the place itself; from elsewhere the files are needed only while loading.
                dst_path=None if location.startswith(("file:", "/")) else folder,
                tracking_uri=self._store.uri,
                registry_uri=self._store.registry_uri,
            )
            yield Path(path)

    def has(self, name: str) -> bool:
        """Whether a model of this name is registered."""
        from mlflow.exceptions import MlflowException

        with failures_named():
            try:
                self._client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise
        return True

    def _exists(self, name: str) -> None:
        if self.has(name):
            return
        names = self.names()
        registered = f"Registered: {', '.join(names)}." if names else "None is registered yet: run `thawline search`."
        raise RegistryError(f"No model {name!r} in {self._store.name}. {registered}")

    def resolve(self, model: ModelName) -> str:
        """The version that is meant, which exists.

        Raises:
            RegistryError: if it does not, with what there is.
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
        if int(model.version or 0) not in versions:
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
    """Make the store the process's tracking URI for a moment, and put back what was there.

    MLflow's SQL registry looks a ``models:/m-…`` up in the global store whatever the client's is (an open point in its
    source, 3.17). Setting that store also writes MLFLOW_TRACKING_URI, for subprocesses, so this is put back too.
    """
    import mlflow

    with _global_store:
        variable, before = "MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(store.uri)
        try:
            yield
        finally:
            # Whoever had called set_tracking_uri had thereby set the variable, so that the variable is enough.
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type, unused-ignore]
            if before is not None:
                os.environ[variable] = before


def _named(version: str | None) -> str:
    return "no champion" if version is None else f"version {version}"


def check_kind(registry: MlflowRegistry, model: ModelName, what: str) -> None:
    """Refuse a model of texts where only pictures make sense, before anything is computed.

    Args:
        registry: where the model is.
        model: as the user named it.
        what: ends the sentence, such as ``"drift is measured between pictures"``.

    Raises:
        RegistryError: if it classifies texts, or is missing.
    """
    if registry.input_of(model).kind == "texts":
        raise RegistryError(f"{model} classifies texts, but {what}: name a model of images.")
