"""MLflow's model registry: versions, aliases, and the packaged model back from it."""

import json
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from thawline.data import DataKind, encoded_image
from thawline.exceptions import RegistryError
from thawline.tracking import MlflowStore, artifact_text, first_line, now_ms, quiet_mlflow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.entities.model_registry import ModelVersion

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "COLUMNS",
    "MlflowRegistry",
    "ModelInput",
    "ModelName",
    "PackagedModel",
    "Prediction",
    "Reign",
    "check_kind",
    "check_text_column",
    "parse_model",
]

CHAMPION, CHALLENGER = "champion", "challenger"
COLUMNS: Mapping[DataKind, str] = {"images": "image", "texts": "text"}
"""The only column of the table that a packaged model takes; also the word for one of what it classifies."""
_BATCH = 32
_HISTORY = "thawline.champion."
"""Tags of a registered model: this and the time in milliseconds; the value says who became champion, and why."""
_LONGEST_REASON = 2000


@dataclass(frozen=True)
class ModelName:
    """A model as a user names it: exactly one of alias and version is given."""

    name: str
    alias: str | None = CHAMPION
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.name}/{self.version}" if self.version else f"{self.name}@{self.alias}"


def parse_model(text: str) -> ModelName:
    """``name`` (its champion), ``name@alias`` or ``name/3``.

    Raises:
        RegistryError: for anything else.
    """
    match = re.fullmatch(r"(?:models:/)?([^@/:\s]+)(?:@([\w-]+)|/([1-9]\d*))?", text)
    if match is None:
        raise RegistryError(f"A model is named as NAME, NAME@ALIAS or NAME/VERSION, but got {text!r}.")
    name, alias, version = match.groups()
    return ModelName(name, None if version else alias or CHAMPION, version)


@dataclass(frozen=True)
class ModelInput:
    """What a model classifies."""

    kind: DataKind
    text_column: str | None = None
    """Name of the column of texts in the table that it was trained on; ``None`` where it had none, or is not known."""


@dataclass(frozen=True)
class Reign:
    """A version's time as champion."""

    version: str
    since: datetime | None
    """``None`` if the alias was moved by other means than Thawline."""
    until: datetime | None
    """``None`` for the present champion."""
    by: str
    reason: str


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image or text."""

    class_name: str
    probability: float
    probabilities: dict[str, float]
    """Of every class."""


class PackagedModel:
    """A model loaded from the registry. It knows only what MLflow's ``pyfunc`` promises: a table in, a table out."""

    def __init__(self, model: Any, name: ModelName, *, size: int | None = None) -> None:
        self._model = model
        self.name = name
        self.bytes = size
        """Of all its files."""
        self.kind: DataKind = _kind(model.metadata)
        described: Mapping[str, Any] = model.metadata.metadata or {}
        self.parity: float | None = described.get("parity")
        """Largest difference of a probability from the trained network, measured when it was packaged."""
        self.train_classes: Mapping[str, int] | None = described.get("train_classes")
        """How many images or texts each class had in the training split; older packages do not know."""
        self.calibration: Mapping[str, Any] | None = described.get("calibration")

    @property
    def unwrapped(self) -> Any:
        """The object of ``servable.py`` that MLflow wraps."""
        return self._model.unwrap_python_model()

    def check(self) -> None:
        """Classify the model's own input example.

        Raises:
            RegistryError: if it has none, or does not answer.
        """
        with _failures_named(f"{self.name} does not answer its own input example"):
            answer = self.predict([self.example()])[0]
            if isinstance(answer, str):
                raise RegistryError(f"{self.name} does not answer its own input example: {answer}")

    def example(self) -> bytes | str:
        """The encoded image or the text that was packaged with it."""
        return self._sent(self._model.input_example[COLUMNS[self.kind]].iloc[0])

    def items_in(self, body: bytes, content_type: str) -> list[bytes | str]:
        """The encoded images, or the texts, of a request in MLflow's scoring protocol (JSON or CSV, in any form).

        MLflow's own server reads the request, so that every client of ``mlflow models serve`` is understood.

        Raises:
            ValueError: if it cannot be read, with the reason for people.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc.scoring_server import invocations

        reader = _Reader(self._model.metadata)
        try:
            answer: Any = invocations(  # type: ignore[no-untyped-call, unused-ignore]
                body, content_type, reader, self._model.metadata.get_input_schema()
            )
        except MlflowException as error:
            raise ValueError(first_line(error)) from None
        if answer.status != 200:
            raise ValueError(answer.response)
        table, column = reader.table, COLUMNS[self.kind]
        columns = list(table.keys()) if hasattr(table, "keys") else []  # a DataFrame's columns, or a plain mapping
        if columns != [column]:
            raise ValueError(f"the only column must be {column!r}, but got {', '.join(map(str, columns)) or 'none'}")
        items = []
        for row, value in enumerate(table[column]):
            try:
                items.append(self._sent(value))
            except ValueError as error:
                raise ValueError(f"row {row}: {error}") from None
        return items

    def _sent(self, value: object) -> bytes | str:
        """An encoded image, or a text, from a value of a table."""
        if self.kind == "images":
            return encoded_image(value)
        if not isinstance(value, str):
            raise ValueError(f"a text must be a string, but got {type(value).__name__}")
        return value

    def predict(self, items: Sequence[bytes | Path | str]) -> list[Prediction | str]:
        """Classify in batches; a string in place of a prediction is the reason why an item cannot be read.

        Args:
            items: encoded images (bytes) or image files (Path) for a model of images, texts (str) for one of texts.

        Raises:
            RegistryError: if an item is of the other kind.
        """
        for item in items:
            if isinstance(item, str) != (self.kind == "texts"):
                got = "a text" if isinstance(item, str) else "an image"
                raise RegistryError(f"{self.name} classifies {self.kind}, but got {got}.")
        results: list[Prediction | str] = []
        for start in range(0, len(items), _BATCH):
            results += self._batch([_read(item) for item in items[start : start + _BATCH]])
        return results

    def _batch(self, items: list[bytes | str | OSError]) -> list[Prediction | str]:
        import pandas as pd
        from mlflow.exceptions import MlflowException

        readable = [item for item in items if not isinstance(item, OSError)]
        try:
            table = self._model.predict(pd.DataFrame({COLUMNS[self.kind]: readable})) if readable else pd.DataFrame()
        except MlflowException as error:
            # One bad item refuses its whole batch: ask again one by one to learn which.
            if len(items) > 1:
                return [result for item in items for result in self._batch([item])]
            return [re.sub(r"^Row \d+: ", "", first_line(error))]
        rows = iter(table.to_dict(orient="records"))
        return [
            item.strerror or type(item).__name__ if isinstance(item, OSError) else _prediction(next(rows))
            for item in items
        ]


class _Reader:
    """Stands in for a model in MLflow's server, to have what it read."""

    def __init__(self, metadata: Any) -> None:
        self.metadata = metadata
        self.table: Any = None

    def predict(self, data: Any, params: Any = None) -> list[Any]:
        self.table = data
        return []


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
        with _failures_named():
            return sorted(model.name for model in self._client.search_registered_models())

    def champion(self, name: str) -> str | None:
        """The champion's version, or ``None``."""
        return self._alias(name, CHAMPION)

    def challenger(self, name: str) -> str | None:
        """The challenger's version, or ``None``."""
        return self._alias(name, CHALLENGER)

    def find_version(self, name: str, *, study: str, run_id: str) -> str | None:
        """The newest version that this study registered from this run, or ``None``: a study that goes on finds it."""
        with _failures_named():
            found = [
                int(version.version)
                for version in self._client.search_model_versions(f"name = '{name}'")
                if version.run_id == run_id and version.tags.get("thawline.study") == study
            ]
        return str(max(found)) if found else None

    def register(self, name: str, model_uri: str, *, run_id: str, study: str, tags: Mapping[str, str]) -> str:
        """Add a logged model (``models:/m-…``) as the next version of ``name``, which is made if it is new."""
        from mlflow.exceptions import MlflowException

        model_id = model_uri.removeprefix("models:/")
        with _failures_named():
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            with _as_global_store(self._store), quiet_mlflow():
                created = self._client.create_model_version(
                    name, model_uri, run_id=run_id, tags={**tags, "thawline.study": study}, model_id=model_id
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
        with _failures_named():
            for key, value in tags.items():
                self._client.set_model_version_tag(name, version, key, value)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias to a version."""
        with _failures_named():
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
                        f"{_named(champion)}: it is not promoted. Judge it anew: thawline promote {name} "
                        f"--version {version}"
                    )
                # Tags first, alias last: whoever sees the new champion sees all that is known of it.
                self.set_tags(name, version, {"thawline.previous_champion": judged_against or "none"})
                entry = {"version": version, "previous": judged_against, "by": by, "reason": reason[:_LONGEST_REASON]}
                with _failures_named():
                    self._client.set_registered_model_tag(name, f"{_HISTORY}{now_ms():013d}", json.dumps(entry))
                self.set_alias(name, CHAMPION, version)
        except Timeout:
            raise RegistryError(f"Another promotion of {name!r} has been going on for a minute ({lock}).") from None

    def history(self, name: str) -> tuple[Reign, ...]:
        """Who was champion from when to when, the oldest first.

        Raises:
            RegistryError: if there is no such model, listing those there are.
        """
        self._exists(name)
        with _failures_named():
            tags = self._client.get_registered_model(name).tags
        entries = [
            (int(key.removeprefix(_HISTORY)), json.loads(value))
            for key, value in sorted(tags.items())
            if key.startswith(_HISTORY)
        ]
        return _reigns(entries, self.champion(name))

    def former_champion(self, name: str) -> str | None:
        """The champion before the present one, or ``None``."""
        reigns = self.history(name)
        return reigns[-2].version if len(reigns) > 1 else None

    def run_of(self, name: str, version: str) -> str:
        """The run that a version was trained by."""
        with _failures_named():
            return str(self._client.get_model_version(name, version).run_id)

    def model_of(self, name: str, version: str) -> str | None:
        """Id of the logged model that became a version; ``None`` if it came from elsewhere."""
        with _failures_named():
            source = str(self._client.get_model_version(name, version).source)
        return source.removeprefix("models:/") if source.startswith("models:/m-") else None

    def study_file(self, name: str, version: str, file: str) -> str | None:
        """The text of an artifact of the study run whose trial became this version; ``None`` if there is none."""
        from mlflow.exceptions import MlflowException

        with _failures_named():
            parent = self._client.get_run(self.run_of(name, version)).data.tags.get("mlflow.parentRunId")
            if parent is None:
                return None
            try:
                return artifact_text(self._client, parent, file)
            except (MlflowException, OSError):
                return None

    def newest(self, name: str) -> str:
        """The newest version.

        Raises:
            RegistryError: if there is no such model or version.
        """
        self._exists(name)
        with _failures_named():
            versions = [int(found.version) for found in self._client.search_model_versions(f"name = '{name}'")]
        if not versions:
            raise RegistryError(f"The model {name!r} has no version.")
        return str(max(versions))

    def tags(self, name: str, version: str) -> dict[str, str]:
        """Tags of a version."""
        with _failures_named():
            return dict(self._client.get_model_version(name, version).tags)

    def input_of(self, model: ModelName) -> ModelInput:
        """What a model classifies, by its description alone: no network is built, and no weights are fetched."""
        from mlflow.models import Model

        version = self.resolve(model)
        with (
            _failures_named(f"The description of {model} cannot be read"),
            self._files(model.name, version, "/MLmodel") as path,
        ):
            description = Model.load(str(path))
            return ModelInput(_kind(description), (description.metadata or {}).get("text_column"))

    def load(self, model: ModelName) -> PackagedModel:
        """Load a model by alias or version; a message lists what there is if it is missing."""
        version = self.resolve(model)
        with _failures_named(f"{model} cannot be loaded"), self._files(model.name, version) as path:
            loaded = load_pyfunc(path)
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return PackagedModel(loaded, ModelName(model.name, None, version), size=size)

    @contextmanager
    def _files(self, name: str, version: str, part: str = "") -> "Iterator[Path]":
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

    def _exists(self, name: str) -> None:
        if name not in (names := self.names()):
            registered = (
                f"Registered: {', '.join(names)}." if names else "None is registered yet: run `thawline search`."
            )
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
                with _failures_named():
                    aliases = sorted(self._client.get_registered_model(model.name).aliases)
                there = f"Its aliases: {', '.join(aliases)}." if aliases else "It has no alias; name a version."
                if model.alias == CHAMPION and CHALLENGER in aliases:
                    there += f" Name {model.name}@{CHALLENGER}, or promote it: thawline promote {model.name}"
                raise RegistryError(f"The model {model.name!r} has no alias {model.alias!r}. {there}")
            return version
        with _failures_named():
            found: list[ModelVersion] = self._client.search_model_versions(f"name = '{model.name}'")
        versions = sorted(int(version.version) for version in found)
        if int(model.version or 0) not in versions:
            there = ", ".join(map(str, versions)) or "none"
            raise RegistryError(f"The model {model.name!r} has no version {model.version}. Its versions: {there}.")
        return str(model.version)

    def _alias(self, name: str, alias: str) -> str | None:
        from mlflow.exceptions import MlflowException

        with _failures_named():
            try:
                return str(self._client.get_model_version_by_alias(name, alias).version)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise


_global_store = threading.RLock()


@contextmanager
def _as_global_store(store: MlflowStore) -> "Iterator[None]":
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


def load_pyfunc(folder: str | Path) -> Any:
    """An MLflow model from its folder, as MLflow's server loads it, but without leaving bytecode in the folder."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return import_pyfunc().load_model(str(folder))
    finally:
        sys.dont_write_bytecode = before


def import_pyfunc() -> Any:
    """MLflow's module ``pyfunc``; importing it warns about the type hints of classes of MLflow's own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType", category=UserWarning)
        import mlflow.pyfunc
    return mlflow.pyfunc


@contextmanager
def _failures_named(what: str = "The model registry failed") -> "Iterator[None]":
    """Any error of the registry as a :class:`RegistryError` of one line."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:
        raise RegistryError(f"{what}: {type(error).__name__}: {first_line(error)}") from error


def _reigns(entries: Sequence[tuple[int, Mapping[str, Any]]], champion: str | None) -> tuple[Reign, ...]:
    """From what was written before each move of the alias, and where the alias is now.

    A process may have died between writing and moving. Then the next entry, or the alias, still names the champion that
    this one was to replace, and the entry is left out.
    """
    moved = []
    for index, (milliseconds, entry) in enumerate(entries):
        followed_by = entries[index + 1][1]["previous"] if index + 1 < len(entries) else champion
        if followed_by != entry["previous"]:
            moved.append((milliseconds, entry))
    reigns = []
    for index, (milliseconds, entry) in enumerate(moved):
        until = _moment(moved[index + 1][0]) if index + 1 < len(moved) else None
        reigns.append(Reign(entry["version"], _moment(milliseconds), until, entry["by"], entry["reason"]))
    if champion is not None and (not reigns or reigns[-1].version != champion):
        reigns.append(Reign(champion, None, None, "unknown", "the alias was moved by other means than Thawline"))
    return tuple(reigns)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)


def _named(version: str | None) -> str:
    return "no champion" if version is None else f"version {version}"


def _kind(description: Any) -> DataKind:
    """Of an MLflow model, by the column that it takes; a model that was packaged elsewhere may say nothing."""
    schema = description.get_input_schema()
    names = schema.input_names() if schema is not None else []
    return "texts" if names == [COLUMNS["texts"]] else "images"


def check_kind(registry: "MlflowRegistry", model: ModelName, what: str) -> None:
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


def check_text_column(text_column: str | None, model: ModelName, kind: DataKind) -> None:
    """Refuse the name of a column of texts for a model of images.

    Raises:
        RegistryError: if there is one.
    """
    if text_column is not None and kind == "images":
        raise RegistryError(f"{model} classifies images, which lie in no column: leave --text-column out.")


def _read(item: bytes | Path | str) -> bytes | str | OSError:
    if not isinstance(item, Path):
        return item
    try:
        return item.read_bytes()
    except OSError as error:
        return error


def _prediction(row: Mapping[Any, Any]) -> Prediction:
    return Prediction(str(row["class"]), float(row["probability"]), dict(row["probabilities"]))
