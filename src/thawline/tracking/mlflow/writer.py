"""Write records to an MLflow run idempotently."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from thawline.tracking._records import (
    Artifact,
    Checkpoint,
    Dataset,
    End,
    ImageFile,
    Metrics,
    Params,
    Record,
    TableFile,
    Tags,
    Text,
)
from thawline.tracking.mlflow.files import write_checkpoint, write_image, write_table

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["RunWriter", "is_permanent", "metric_key", "write_params", "write_tags"]

_PARAM_LIMIT, _TAG_LIMIT = 6000, 8000
"""MLflow's maximum length of a parameter and of a tag."""


def metric_key(name: str) -> str:
    """``name`` with characters that MLflow refuses in metric names replaced by ``_``.

    Class names come from folder names, which may contain anything: ``test/recall/T-shirt & top`` becomes
    ``test/recall/T-shirt _ top``.
    """
    parts = [re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/")]
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)[:250]


class RunWriter:
    """Writes records to a run.

    Writing a record again has no effect: MLflow's SQL store ignores a metric with known key, step, timestamp and value;
    files and tags are overwritten; a dataset is an input only once; a checkpoint is only created if it does not exist.
    Values that the run already has at a step, with any timestamp, are skipped, because a resumed search repeats many.
    """

    def __init__(self, client: "MlflowClient", run_id: str, *, late: bool = False) -> None:
        """Read the run's content.

        Args:
            client: client of the run's store.
            run_id: the run.
            late: whether another process may have written to the run since; then its status and tags are kept.
        """
        self._client, self._run_id = client, run_id
        run = client.get_run(run_id)
        self.started_at = int(run.info.start_time)
        """Start of the run, in milliseconds since 1970."""
        self._settled_at: int | None = run.info.end_time if late else None
        """Another process had recorded its end at this time."""
        self._settled_tags = frozenset(run.data.tags) if late else frozenset()
        self._last: dict[str, int] = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        """Largest step of each metric; values of later steps are new without a request."""
        self._values: dict[str, dict[int, float]] = {}
        """The run's values by key and step, for requested keys."""

    def write(self, records: Sequence[Record]) -> None:
        """Write one record, or several of metrics."""
        self._write_metrics([record for record in records if isinstance(record, Metrics)])
        for record in records:
            self._write(record)

    def _write(self, record: Record) -> None:
        client, run_id = self._client, self._run_id
        match record:
            case Params(_, params):
                write_params(client, run_id, params)
            case Tags(at, tags):
                write_tags(client, run_id, self._unsettled(tags) if self._is_settled(at) else tags)
            case Artifact(_, path, folder):
                if path.is_dir():
                    client.log_artifacts(run_id, str(path), folder or None)
                else:
                    client.log_artifact(run_id, str(path), folder or None)
            case Text(_, text, file):
                client.log_text(run_id, text, file)
            case ImageFile():
                write_image(client, run_id, record)
            case TableFile():
                write_table(client, run_id, record)
            case Checkpoint():
                write_checkpoint(client, run_id, record)
            case Dataset():
                self._write_dataset(record)
            case End(at, status):
                if not self._is_settled(at):
                    client.set_terminated(run_id, status, at)

    def _is_settled(self, at: int) -> bool:
        return self._settled_at is not None and at < self._settled_at

    def _unsettled(self, tags: Mapping[str, str]) -> dict[str, str]:
        return {key: value for key, value in tags.items() if metric_key(key) not in self._settled_tags}

    def _write_metrics(self, records: Sequence[Metrics]) -> None:
        from mlflow.entities import Metric

        named = [(metric_key(name), value, record) for record in records for name, value in record.values.items()]
        new = [(key, value, record) for key, value, record in named if self._is_new(key, record.step, value)]
        self._client.log_batch(
            self._run_id, metrics=[Metric(key, float(value), record.at, record.step) for key, value, record in new]
        )
        for key, value, record in new:
            self._last[key] = max(record.step, self._last.get(key, record.step))
            if key in self._values:
                self._values[key][record.step] = value

    def _is_new(self, key: str, step: int, value: float) -> bool:
        if key not in self._last or step > self._last[key]:
            return True
        if key not in self._values:
            points = sorted(self._client.get_metric_history(self._run_id, key), key=lambda point: point.timestamp)
            self._values[key] = {point.step: point.value for point in points}
        return self._values[key].get(step) != value

    def _write_dataset(self, record: Dataset) -> None:
        # Entities, not mlflow.data: its MetaDataset opens the source and warns about ambiguous kinds.
        from mlflow import entities

        dataset = entities.Dataset(
            name=record.name, digest=record.digest, source_type="local", source=record.source, profile=record.profile
        )
        context = entities.InputTag("mlflow.data.context", record.context)
        self._client.log_inputs(self._run_id, [entities.DatasetInput(dataset, [context])])


def write_params(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    """Add parameters; one with another value keeps it, and the new value becomes a tag."""
    from mlflow.entities import Param, RunTag

    wanted = {metric_key(key): str(value)[:_PARAM_LIMIT] for key, value in params.items()}
    known = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in wanted.items() if key not in known]
    changed = [
        RunTag(f"thawline.changed.{key}", value) for key, value in wanted.items() if known.get(key, value) != value
    ]
    client.log_batch(run_id, params=new, tags=changed)


def write_tags(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags, truncated to MLflow's limit."""
    from mlflow.entities import RunTag

    wanted = {metric_key(key): str(value)[:_TAG_LIMIT] for key, value in tags.items()}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in wanted.items()])


def is_permanent(error: Exception) -> bool:
    """Whether retrying is useless: MLflow refuses the value, the run was deleted, or the file is missing."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
    return isinstance(error, FileNotFoundError)
