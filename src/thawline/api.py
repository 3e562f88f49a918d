"""The Python API, ``import thawline``. Its functions correspond to the commands of the same names."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thawline import backbones, environment, stopping
from thawline.config import SearchConfig, load_recipe, nested
from thawline.exceptions import ConfigError, DataError
from thawline.prefect_server import used
from thawline.processes import start_fork_server

if TYPE_CHECKING:
    from PIL.Image import Image

    from thawline.backbones import Backbone
    from thawline.data import Manifest
    from thawline.labels import LabelCheck
    from thawline.prefect_server import ManagedServer
    from thawline.presets import Preset
    from thawline.registry import PackagedModel, Prediction
    from thawline.search import SearchOutcome

__all__ = [
    "LoadedModel",
    "SearchConfig",
    "check_data",
    "check_labels",
    "create_backbone",
    "list_backbones",
    "load_model",
    "run_search",
]


def run_search(
    data: "str | os.PathLike[str] | SearchConfig",
    *,
    backbone: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    trials: int | None = None,
    epochs: int | None = None,
    timeout_minutes: float | None = None,
    preset: "Preset | None" = None,
    recipe: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> "SearchOutcome":
    """Search for the best fine-tuned classifier, register it, and make it champion if it is better.

    The same call resumes an interrupted study. It works in notebooks, and in scripts without
    ``if __name__ == "__main__"``.

    Args:
        data: folder of images, ``DATA/<class>/…`` or ``DATA/train/<class>/…`` and so on, or its URL; a table of
            labelled images or texts, or a folder of tables; WebDataset shards; an archive of any of these; or a whole
            configuration.
        backbone: pretrained network, one of :func:`list_backbones` or ``hf:FOLDER_OR_ID``.
        weights: initial weights: ``default``, ``starter``, ``none``, or a file.
        image_size: input image size (pixels), the side of a square; by default the size that the weights were trained
            for.
        trials: total number over all runs of the study; by default 20, or with a time limit as many as fit.
        epochs: maximum number of epochs per trial.
        timeout_minutes: time limit over all runs of the study.
        preset: ``fast``, ``balanced`` or ``best``: a shipped recipe, adapted to the data and to the available weights;
            all other settings override it.
        recipe: file with settings, which the other arguments override, or the name of a shipped recipe.
        settings: further settings, by the keys of a recipe: ``{"train.batch_size": 64}``.
        quiet: show only warnings.

    Raises:
        ThawlineError: for bad input, before anything expensive starts.
    """
    given = {
        "backbone.name": backbone,
        "backbone.weights": None if weights is None else os.fspath(weights),
        "backbone.image_size": image_size,
        "study.trials": trials,
        "train.epochs": epochs,
        "study.timeout_minutes": timeout_minutes,
    }
    options = {key: value for key, value in given.items() if value is not None} | dict(settings or {})
    notes: tuple[str, ...] = ()
    if not isinstance(data, SearchConfig):
        layers = [*_layers(data, recipe), nested(options)]
        if preset is not None:
            from thawline.presets import fitted

            chosen = fitted(preset, *layers)
            layers, notes = [chosen.layer, *layers], chosen.notes
        data = SearchConfig.build(*layers)
    elif options or recipe is not None or preset is not None:
        raise ConfigError("A SearchConfig contains all settings: change it, or give the data as a path.")
    environment.prepare()
    environment.quiet_prefect()
    stopping.allow(data.study.grace_seconds)
    if data.data.url is None and not data.data.path.exists():
        from thawline.data import is_table

        is_table(data.data.path)  # fails at once, before anything is loaded
    with _beside_imports(data) as server:
        from thawline.search.events import Note, Phase, emit
        from thawline.terminal import watch

        with watch(quiet=quiet):
            for note in notes:
                emit(Note(note))
            emit(Phase("loading PyTorch, MLflow and Prefect"))
            from thawline.search import already_checked, check_config

            check_config(data, environment.home())
            from thawline.flows.search import search
            from thawline.orchestration.reach import value_of
            from thawline.orchestration.server import connected

            with connected(server), already_checked(data):
                return value_of(lambda: search(data))


@contextmanager
def _beside_imports(config: "SearchConfig") -> "Iterator[ManagedServer | None]":
    """Start Prefect's server and the fork server before the slow imports."""
    with used(environment.home()) as server:
        start_fork_server(backbones.modules_of(config.backbones))
        yield server


def load_model(name: str, *, tracking_uri: str | None = None) -> "LoadedModel":
    """Load a model from the registry.

    Args:
        name: ``NAME`` (its champion), ``NAME@alias`` or ``NAME/version``.
        tracking_uri: URI of the registry; by default as for a search.

    Raises:
        RegistryError: if there is no such model, alias or version.
    """
    environment.prepare()
    from thawline.registry import MlflowRegistry, parse_model
    from thawline.tracking import open_store

    registry = MlflowRegistry(open_store(tracking_uri, environment.home()))
    return LoadedModel(registry.load(parse_model(name)))


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A model from the registry, see :func:`load_model`."""

    _model: "PackagedModel"

    def __repr__(self) -> str:
        return f"<{self._model.name}, a classifier of {self._model.kind}>"

    def predict(self, items: "Sequence[str | os.PathLike[str] | bytes | Image]") -> "list[Prediction]":
        """Predict the class and probabilities of each image or text.

        Args:
            items: for an image model, files, encoded images as bytes, or PIL images; for a text model, texts.

        Raises:
            DataError: naming the first unreadable item.
            RegistryError: if an item is of the other kind.
        """
        if isinstance(items, str | bytes):
            raise DataError("predict takes a list: pass a single item as [item].")
        answers = self._model.predict([self._sent(item) for item in items])
        predictions: list[Prediction] = []
        for item, answer in zip(items, answers, strict=True):
            if isinstance(answer, str):
                raise DataError(
                    f"Cannot read {item if isinstance(item, str | os.PathLike) else 'the image'}: {answer}."
                )
            predictions.append(answer)
        return predictions

    def _sent(self, item: Any) -> bytes | Path | str:
        if hasattr(item, "save") and hasattr(item, "convert"):  # a PIL image, without importing PIL for files
            encoded = BytesIO()
            item.save(encoded, format="PNG")
            return encoded.getvalue()
        if isinstance(item, bytes) or (isinstance(item, str) and self._model.kind == "texts"):
            return item
        return Path(item)


def list_backbones(pattern: str | None = None) -> list[str]:
    """Names of the backbones in installed libraries.

    Args:
        pattern: part of a name, or a pattern: ``resnet``, ``conv*``.
    """
    from thawline import backbones

    return backbones.names(pattern)


def create_backbone(name: str, *, num_classes: int, weights: str = "default", **options: Any) -> "Backbone":
    """Build a backbone with pretrained weights and a new head; see :func:`thawline.backbones.create`."""
    from thawline import backbones

    return backbones.create(name, num_classes=num_classes, weights=weights, **options)


def check_data(
    data: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> "Manifest":
    """Read all data as a search would: classes, splits, and all problems, in ``Manifest.problems``.

    Args:
        data: as for :func:`run_search`, except a configuration.
        recipe: file with settings, which ``settings`` override, or the name of a shipped recipe.
        settings: keys of a recipe's section ``data``: ``{"data.text_column": "message"}``.

    Raises:
        ConfigError: if the recipe or a setting is wrong.
        DataError: if the data cannot be trained on.
    """
    _, manifest = _read(data, recipe, settings)
    return manifest


def check_labels(
    data: str | os.PathLike[str],
    network: str,
    *,
    recipe: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    tracking_uri: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> "tuple[Manifest, LabelCheck]":
    """Read all data, and find labels that contradict a pretrained network's frozen features.

    Args:
        data: as for :func:`run_search`.
        network: a backbone, one of :func:`list_backbones`; a study; or a registered model. For a study or model, the
            features are those of its pretrained network, because a fine-tuned one may have learnt the wrong labels.
        recipe: file with settings, which ``settings`` override, or the name of a shipped recipe.
        settings: keys of a recipe: those of ``data``, and for a backbone ``backbone.weights`` and sizes.
        tracking_uri: URI of the store with studies and models; by default as for a search.
        on_progress: called with (examples done, total) while features are computed.

    Raises:
        DataError: if the data cannot be trained on.
        RegistryError: if there is no backbone, study or model of that name.
        ThawlineError: if the pretrained network of a study or model is not known, or does not fit the data.
    """
    environment.prepare()
    from thawline.labels import check_labels

    home = environment.home()
    config, manifest = _read(data, recipe, settings)
    return manifest, check_labels(
        manifest, network, config, home=home, tracking_uri=tracking_uri, on_progress=on_progress
    )


def _read(
    data: str | os.PathLike[str], recipe: str | os.PathLike[str] | None, settings: Mapping[str, Any] | None
) -> "tuple[SearchConfig, Manifest]":
    from thawline.data import mirror, scan

    config = SearchConfig.build(*_layers(data, recipe), nested(settings or {}))
    if config.data.url is not None:
        mirror(config.data.url, config.data.path)
    return config, scan(config.data)


def _layers(data: str | os.PathLike[str], recipe: str | os.PathLike[str] | None) -> list[dict[str, Any]]:
    from thawline.data import data_location
    from thawline.recipes import find_recipe

    location = data_location(os.fspath(data), environment.home())
    return [load_recipe(find_recipe(Path(recipe))) if recipe is not None else {}, {"data": location}]
