"""``thawline predict``: classes and probabilities for images or texts, with a registered model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thawline.data import given_files, given_texts
from thawline.engines import EngineName
from thawline.exceptions import DataError
from thawline.registry import MlflowRegistry, Prediction, check_text_column, parse_model
from thawline.tracking import open_store

__all__ = ["predict_items"]


def predict_items(
    model: str,
    items: Sequence[str],
    *,
    tracking_uri: str | None,
    home: Path,
    text_column: str | None = None,
    engine: EngineName = "auto",
) -> list[dict[str, Any]]:
    """Classify images or texts, depending on the model.

    Args:
        model: ``NAME``, ``NAME@alias`` or ``NAME/version``.
        items: for an image model, image files or folders of images; for a text model, the texts themselves or files of
            texts, see :func:`thawline.data.given_texts`.
        tracking_uri: URI of the registry; by default as for a search.
        home: Thawline's home.
        text_column: column with the texts in tables among the items: its name, or its number (from 1) in tables without
            header; by default the column that the model was trained on, else detected.
        engine: for the network, see :func:`thawline.engines.choose`.

    Returns:
        A mapping for each image or text: ``path`` or ``text``, and ``class``, ``probability``, ``probabilities`` and,
        if the package supports them, ``prediction_set`` and ``unknown``; or ``error``.

    Raises:
        RegistryError: if the model or alias is missing, or a text column is given for an image model.
        DataError: if a path does not exist or contains no image, a file contains no text, or if a text model is given a
            folder, or a column without a table.
    """
    name = parse_model(model)
    registry = MlflowRegistry(open_store(tracking_uri, home))
    taken = registry.input_of(name)
    check_text_column(text_column, name, taken.kind)
    kind = taken.kind
    found: Sequence[Path | str] = _texts(items, text_column, taken.text_column) if kind == "texts" else _files(items)
    answers = registry.load(name, engine=engine).predict(found)
    key = "text" if kind == "texts" else "path"
    return [{key: str(item), **_plain(answer)} for item, answer in zip(found, answers, strict=True)]


def _files(items: Sequence[str]) -> list[Path]:
    return [file for item in items for file in given_files(Path(item))]


def _texts(items: Sequence[str], text_column: str | None, trained: str | None) -> list[str]:
    texts: list[str] = []
    for item in items:
        texts += given_texts(Path(item), text_column, trained=trained) if _is_path(item) else [item]
    if text_column is not None and not any(map(_is_path, items)):
        raise DataError("--text-column needs a table, but none was given.")
    if not texts:
        raise DataError(f"There is no text in {', '.join(items)}.")
    return texts


def _is_path(item: str) -> bool:
    """Whether a text is the name of a file or folder; impossible names, too long or with a null byte, are not.

    Nor is the empty text, although as a path it is the current folder.
    """
    try:
        return item != "" and Path(item).exists()
    except (OSError, ValueError):
        return False


def _plain(answer: Prediction | str) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"error": answer}
    plain: dict[str, Any] = {
        "class": answer.class_name,
        "probability": answer.probability,
        "probabilities": answer.probabilities,
    }
    if answer.prediction_set is not None:
        plain["prediction_set"] = list(answer.prediction_set)
    return plain if answer.unknown is None else plain | {"unknown": answer.unknown}
