"""Pictures, tables and checkpoints in MLflow, written idempotently.

MLflow's own ``log_image``, ``log_table`` and ``create_logged_model`` add another one each time. These write the same,
under names that depend only on the record.
"""

import hashlib
import io
import json
import math
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thawline.tracking._records import Checkpoint, ImageFile, TableFile, Text
from thawline.tracking.media import Figure, Image, Media, Table

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["CHECKPOINT", "file_of", "png", "write_checkpoint", "write_image", "write_table"]

CHECKPOINT = "checkpoint"
"""Type of the logged models that are checkpoints of trials."""
_THUMBNAIL = 256
"""Longest side of the small copy that MLflow's UI shows first, in pixels."""


def file_of(name: str, media: Media, *, step: int, at: int) -> ImageFile | TableFile | Text | None:
    """What is written; ``None`` for what MLflow's UI does not show.

    A picture is encoded only when it is written, since training waits here.

    Args:
        name: of characters that MLflow takes, see :func:`~thawline.tracking.mlflow.metric_key`.
        media: see there.
        step: kept of pictures; a table or a figure replaces that of an earlier step.
        at: when it was logged, in milliseconds since 1970.

    Raises:
        ValueError: if a picture has other pixels than it should, or a table columns of different lengths.
    """
    match media:
        case Image(pixels):
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
                raise ValueError(
                    f"pixels must be uint8 [H, W, 3], but {name} has {pixels.dtype} {list(pixels.shape)}. Convert them."
                )
            # MLflow's UI reads name, step and time from the file's name; the digits stand where log_image has a random
            # number.
            key = _short(name.replace("/", "~"))
            digits = hashlib.sha256(f"{name} {step} {at}".encode()).hexdigest()[:16]
            return ImageFile(at, media, f"{key}+step+{step}+timestamp+{at}+{digits}")
        case Table(columns):
            rows = [[_json_value(value) for value in row] for row in zip(*columns.values(), strict=True)]
            return TableFile(at, json.dumps({"columns": list(columns), "data": rows}), f"tables/{_path(name)}.json")
        case Figure(svg):
            return Text(at, svg, f"figures/{_path(name)}.svg")
        case _:
            return None


def write_image(client: "MlflowClient", run_id: str, record: ImageFile) -> None:
    """A picture of one step, and its small copy, where MLflow's UI looks for them."""
    from PIL import Image as Pillow

    encoded = png(record.image)
    with tempfile.TemporaryDirectory(prefix="thawline-") as temporary:
        Path(temporary, f"{record.file}.png").write_bytes(encoded)
        with Pillow.open(io.BytesIO(encoded)) as small:
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            small.save(Path(temporary, f"{record.file}+compressed.webp"))
        client.log_artifacts(run_id, temporary, "images")
    client.set_tag(run_id, "mlflow.loggedImages", True)


def write_table(client: "MlflowClient", run_id: str, record: TableFile) -> None:
    """A table as MLflow's UI reads it, and its entry in the list of the run's tables."""
    client.log_text(run_id, record.text, record.file)
    listed = json.loads(client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
    entry = {"path": record.file, "type": "table"}
    if entry not in listed:
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*listed, entry]))


def write_checkpoint(client: "MlflowClient", run_id: str, record: Checkpoint) -> None:
    """A checkpoint as a logged model, an output of its run, with what it reached.

    It becomes ready last, so that an unfinished one is resumed, and one that is ready is complete.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    path, epoch = record.path, record.epoch
    if not path.is_file():
        raise FileNotFoundError(f"{path} is gone")
    run = client.get_run(run_id)
    experiment_id = run.info.experiment_id
    same = f"source_run_id = '{run_id}' AND model_type = '{CHECKPOINT}' AND tags.`thawline.epoch` = '{epoch}'"
    found = client.search_logged_models([experiment_id], filter_string=same, max_results=1)
    model = (
        found[0]
        if found
        else client.create_logged_model(
            experiment_id,
            name=re.sub(r"[/:.%\"']", "_", record.name) or CHECKPOINT,
            source_run_id=run_id,
            tags={"thawline.epoch": str(epoch)},
            params=dict(record.params),
            model_type=CHECKPOINT,
        )
    )
    if model.status == LoggedModelStatus.READY:
        return
    client.log_model_artifact(model.model_id, str(path))
    name, digest = record.dataset or (None, None)
    metrics = []
    for key, value in record.metrics.items():
        # The run has this value of this epoch already; with another time it would be there twice.
        points = client.get_metric_history(run_id, key)
        times = [point.timestamp for point in points if (point.step, point.value) == (epoch, value)]
        timestamp = times[0] if times else record.at
        metrics.append(Metric(key, value, timestamp, epoch, model.model_id, name, digest, run_id))
    client.log_batch(run_id, metrics=metrics)
    if all(output.model_id != model.model_id for output in (run.outputs.model_outputs if run.outputs else ())):
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=epoch)])
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def png(image: Image) -> bytes:
    """A picture's file, the same whenever it is made."""
    from PIL import Image as Pillow

    encoded = io.BytesIO()
    # The fastest level: the file is hardly larger.
    Pillow.fromarray(image.pixels).save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def _json_value(value: Any) -> Any:
    """As JSON has it, which has no word for what is not finite, nor numpy's numbers."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _path(name: str) -> str:
    return "/".join(_short(part) for part in name.split("/"))


def _short(part: str) -> str:
    """A file name that is not too long for file systems with the rest of it; digits keep shortened ones apart."""
    encoded = part.encode()
    if len(encoded) <= 100:
        return part
    return f"{encoded[:80].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:8]}"
