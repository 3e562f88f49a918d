"""``thawline predict``: classes and probabilities for files, by a model from the registry."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from thawline.data import given_files
from thawline.registry import MlflowRegistry, Prediction, parse_model
from thawline.tracking import open_store

__all__ = ["predict_files", "predictions_table"]


def predict_files(model: str, paths: Sequence[Path], *, tracking_uri: str | None, home: Path) -> list[dict[str, Any]]:
    """Classify image files.

    Args:
        model: ``NAME``, ``NAME@alias`` or ``NAME/version``.
        paths: image files, or folders that are searched for them.
        tracking_uri: where the registry is; by default as for a search.
        home: Thawline's home.

    Returns:
        A mapping for each file: ``path``, and ``class``, ``probability``, ``probabilities``, or ``error``.

    Raises:
        RegistryError: if the model or alias is missing.
        DataError: if a path does not exist or holds no image.
    """
    name = parse_model(model)
    files = [file for path in paths for file in given_files(path)]
    store = open_store(tracking_uri, home)
    answers = MlflowRegistry(store).load(name).predict(files)
    return [{"path": str(file), **_plain(answer)} for file, answer in zip(files, answers, strict=True)]


def predictions_table(predictions: Sequence[dict[str, Any]]) -> Table:
    """Predictions for the terminal: the class, its probability, and the runner-up."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("file", "class", "probability", "next"):
        table.add_column(name, overflow="fold")
    for prediction in predictions:
        if "error" in prediction:
            table.add_row(prediction["path"], f"[red]{prediction['error']}[/]", "", "")
            continue
        ranked = sorted(prediction["probabilities"].items(), key=lambda item: -item[1])
        runner_up = f"{ranked[1][0]} {ranked[1][1]:.3f}" if len(ranked) > 1 else ""
        table.add_row(prediction["path"], prediction["class"], f"{prediction['probability']:.3f}", runner_up)
    return table


def _plain(answer: Prediction | str) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"error": answer}
    return {"class": answer.class_name, "probability": answer.probability, "probabilities": answer.probabilities}
