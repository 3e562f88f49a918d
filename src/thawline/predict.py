"""``thawline predict``: classes and probabilities for images or texts, by a model from the registry."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from thawline.data import DataKind, given_files, given_texts, printable
from thawline.exceptions import DataError
from thawline.registry import MlflowRegistry, Prediction, parse_model
from thawline.tracking import open_store

__all__ = ["predict_items", "predictions_table"]

_SHOWN_LETTERS = 60
"""Of a text in the terminal."""


def predict_items(model: str, items: Sequence[str], *, tracking_uri: str | None, home: Path) -> list[dict[str, Any]]:
    """Classify images or texts, whichever the model is for.

    Args:
        model: ``NAME``, ``NAME@alias`` or ``NAME/version``.
        items: for a model of images their files, or folders that are searched for them; for a model of texts the texts
            themselves, or a file of them, see :func:`thawline.data.given_texts`.
        tracking_uri: where the registry is; by default as for a search.
        home: Thawline's home.

    Returns:
        A mapping for each image or text: ``path`` or ``text``, and ``class``, ``probability``, ``probabilities``, or
        ``error``.

    Raises:
        RegistryError: if the model or alias is missing.
        DataError: if a path does not exist or holds no image, or a file holds no text.
    """
    name = parse_model(model)
    registry = MlflowRegistry(open_store(tracking_uri, home))
    kind = registry.kind(name)
    found: Sequence[Path | str] = _texts(items) if kind == "texts" else _files(items)
    answers = registry.load(name).predict(found)
    key = "text" if kind == "texts" else "path"
    return [{key: str(item), **_plain(answer)} for item, answer in zip(found, answers, strict=True)]


def predictions_table(predictions: Sequence[dict[str, Any]]) -> Table:
    """Predictions for the terminal: the class, its probability, and the runner-up."""
    kind: DataKind = "texts" if "text" in predictions[0] else "images"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("text" if kind == "texts" else "file", "class", "probability", "next"):
        table.add_column(name, overflow="fold")
    for prediction in predictions:
        shown = escape(_shortened(prediction["text"]) if kind == "texts" else printable(prediction["path"]))
        if "error" in prediction:
            table.add_row(shown, f"[red]{escape(prediction['error'])}[/]", "", "")
            continue
        ranked = sorted(prediction["probabilities"].items(), key=lambda item: -item[1])
        runner_up = f"{ranked[1][0]} {ranked[1][1]:.3f}" if len(ranked) > 1 else ""
        table.add_row(shown, escape(prediction["class"]), f"{prediction['probability']:.3f}", escape(runner_up))
    return table


def _files(items: Sequence[str]) -> list[Path]:
    return [file for item in items for file in given_files(Path(item))]


def _texts(items: Sequence[str]) -> list[str]:
    texts = [text for item in items for text in (given_texts(Path(item)) if _is_file(item) else [item])]
    if not texts:
        raise DataError(f"There is no text in {', '.join(items)}.")
    return texts


def _is_file(item: str) -> bool:
    """Whether a text is the name of a file; one that no file can have, being too long or holding a zero, is not."""
    try:
        return Path(item).is_file()
    except (OSError, ValueError):
        return False


def _shortened(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= _SHOWN_LETTERS else f"{line[: _SHOWN_LETTERS - 1]}…"


def _plain(answer: Prediction | str) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"error": answer}
    return {"class": answer.class_name, "probability": answer.probability, "probabilities": answer.probabilities}
