"""Write pictures, tables and checkpoints to MLflow idempotently.

MLflow's own ``log_image``, ``log_table`` and ``create_logged_model`` add a new one each time. These functions use names
that depend only on the record.
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
"""Model type of trials' checkpoints."""
_THUMBNAIL = 256
"""Longest side of the thumbnail for MLflow's UI, in pixels."""


def file_of(name: str, media: Media, *, step: int, at: int) -> ImageFile | TableFile | Text | None:
    """The file record of media; ``None`` for media that MLflow's UI does not show.

    Pictures are encoded on delivery, because training waits for this function.

    Args:
        name: a name that is valid in MLflow, see :func:`~thawline.tracking.mlflow.metric_key`.
        media: the media.
        step: step of a picture; a table or a figure replaces that of an earlier step.
        at: time of logging, in milliseconds since 1970.

    Raises:
        ValueError: if a picture has invalid pixels, or a table has columns of different lengths.
    """
    match media:
        case Image(pixels):
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
                raise ValueError(
                    f"pixels must be uint8 [H, W, 3], but {name} has {pixels.dtype} {list(pixels.shape)}. Convert them."
                )
            # MLflow's UI reads name, step and time from the file name; the digits replace the random number of
            # log_image.
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
    """Write a picture of one step, and its thumbnail, where MLflow's UI expects them."""
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
    """Write a table in the format of MLflow's UI, and its entry in the run's list of tables."""
    client.log_text(run_id, record.text, record.file)
    listed = json.loads(client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
    entry = {"path": record.file, "type": "table"}
    if entry not in listed:
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*listed, entry]))


def write_checkpoint(client: "MlflowClient", run_id: str, record: Checkpoint) -> None:
    """Write a checkpoint as a logged model, an output of its run, with its metrics.

    It becomes ready last, so that a ready one is complete, and an unfinished one is resumed.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    path, epoch = record.path, record.epoch
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
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
        # The run already has this value of this epoch; with a different time it would be duplicated.
        points = client.get_metric_history(run_id, key)
        times = [point.timestamp for point in points if (point.step, point.value) == (epoch, value)]
        timestamp = times[0] if times else record.at
        metrics.append(Metric(key, value, timestamp, epoch, model.model_id, name, digest, run_id))
    client.log_batch(run_id, metrics=metrics)
    if all(output.model_id != model.model_id for output in (run.outputs.model_outputs if run.outputs else ())):
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=epoch)])
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def png(image: Image) -> bytes:
    """The deterministic PNG file of a picture."""
    from PIL import Image as Pillow

    encoded = io.BytesIO()
    # The fastest level, as the file is hardly larger.
    Pillow.fromarray(image.pixels).save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def _json_value(value: Any) -> Any:
    """A JSON value: JSON supports neither non-finite numbers nor numpy's types."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _path(name: str) -> str:
    return "/".join(_short(part) for part in name.split("/"))


def _short(part: str) -> str:
    """Shorten a part of a file name for file systems; digits keep shortened names unique."""
    encoded = part.encode()
    if len(encoded) <= 100:
        return part
    return f"{encoded[:80].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:8]}"
