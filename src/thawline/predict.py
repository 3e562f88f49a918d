"""``thawline predict``: classes and probabilities for images or texts, by a model from the registry."""

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
    """Classify images or texts, whichever the model is for.

    Args:
        model: ``NAME``, ``NAME@alias`` or ``NAME/version``.
        items: for a model of images their files, or folders that are searched for them; for a model of texts the texts
            themselves, or a file of them, see :func:`thawline.data.given_texts`.
        tracking_uri: where the registry is; by default as for a search.
        home: Thawline's home.
        text_column: name of the column of texts in the tables among the items, or its number from 1 where no line names
            the columns; by default the one that the model was trained on, else guessed.
        engine: what computes the network, see :func:`thawline.engines.choose`.

    Returns:
        A mapping for each image or text: ``path`` or ``text``, and ``class``, ``probability``, ``probabilities`` and,
        where the package has what they need, ``prediction_set`` and ``unknown``; or ``error``.

    Raises:
        RegistryError: if the model or alias is missing, or a column of texts is named for a model of images.
        DataError: if a path does not exist or holds no image, a file holds no text, or a model of texts is given a
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
        raise DataError("--text-column names a column of a table, but no table was given.")
    if not texts:
        raise DataError(f"There is no text in {', '.join(items)}.")
    return texts


def _is_path(item: str) -> bool:
    """Whether a text is the name of a file or folder; an impossible name, too long or with a zero byte, is not.

    The empty text is not, although it means the current folder elsewhere.
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
