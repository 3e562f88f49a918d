"""TensorBoard event files, for every tab of TensorBoard that applies to a trial."""

import math
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thawline.tracking._base import RunStatus, TrackerRun, TrackingReport
from thawline.tracking.media import Embedding, Graph, GraphNode, Histogram, Image, Media, Mesh, Predictions

if TYPE_CHECKING:
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.compat.proto.node_def_pb2 import NodeDef
    from tensorboard.compat.proto.summary_pb2 import Summary

__all__ = ["TensorBoardTracker"]

_MOST_CURVES = 20
"""Maximum number of precision-recall curves, one per class, for the classes with the most examples."""
_CHARTS = {
    "training": {
        "loss": ["Multiline", ["^train/loss$", "^val/loss$"]],
        "accuracy": ["Multiline", ["^train/accuracy$", "^val/accuracy$"]],
    },
    "layer groups": {"gradient norm of each layer group": ["Multiline", ["^gradient/"]]},
}
"""Charts of several scalars, selected by regular expressions; empty in TensorBoard without matching scalars."""
_SCENE = {
    "camera": {"cls": "PerspectiveCamera", "fov": 45},
    "lights": [
        {"cls": "AmbientLight", "color": "#ffffff", "intensity": 0.85},
        {"cls": "DirectionalLight", "color": "#ffffff", "intensity": 0.4, "position": [1, 2, 1]},
    ],
    "material": {"cls": "MeshStandardMaterial", "roughness": 1, "metalness": 0, "side": 2},
}
"""Settings of three.js. Surfaces are two-sided; mostly ambient light keeps the colours readable."""
_POINTS = {"camera": _SCENE["camera"], "material": {"cls": "PointsMaterial", "size": 0.06}}
_TURNED, _TILTED = np.radians([-35.0, 30.0])
"""TensorBoard's camera always starts level and in front, so a surface is rotated to be seen from above."""


class TensorBoardTracker:
    """Writes one trial to ``<home>/tensorboard/<study>/trial-07 depth=3 lr=1.2e-3``, its name on every page.

    A resumed trial has the same name, and adds a file to the same folder.

    Scalars have the same names as in MLflow. Figures and tables are ignored. TensorBoard has no artifacts, so
    :meth:`log_artifact` does nothing; files are stored in MLflow.
    """

    def __init__(self, folder: Path, *, metric: str | None = None) -> None:
        """Open an event file.

        Args:
            folder: folder of the file; its path below TensorBoard's ``--logdir`` is the run's name.
            metric: the study's metric for a trial, for comparison in the tab HPARAMS; ``None`` for the study's own run.
        """
        self._metric = metric
        self._session = f"{folder.parent.name}/{folder.name}"
        self._texts: dict[str, str] = {}
        self._late: set[str] = set()
        self._report: TrackingReport | None = None
        from torch.utils.tensorboard.writer import SummaryWriter  # takes seconds, so only on use

        self._writer = SummaryWriter(str(folder), flush_secs=10)
        self._events: Any = self._writer.file_writer  # for records without a method of SummaryWriter
        if metric is not None:
            self._writer.add_custom_scalars(_CHARTS)

    @classmethod
    def for_run(cls, run: TrackerRun) -> "TensorBoardTracker":
        """The tracker of a trial or of the study itself, in the folder of ``thawline ui``."""
        study = run.home / "tensorboard" / run.study
        if run.trial is None:
            return cls(study / "study")
        before = study / f"trial-{run.trial:03d}"  # the name in version 0.2, so that a resumed trial stays one run
        return cls(before if before.exists() else study / run.run_name, metric=run.metric)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Write a trial's hyperparameters at once for the tab HPARAMS, or the study's as a text.

        TensorBoard uses the first that it finds, so a resumed trial has no effect.
        """
        self._check_open()
        if self._metric is None:
            self._write_text("params", "\n".join(["name | value", "--- | ---", *map(" | ".join, params.items())]))
            return
        values = {name: _number(value) for name, value in params.items()}
        if params.get("policy") != "probe":  # a probe has fewer hyperparameters than trained trials
            self._events.add_summary(_comparison(values, self._metric))
        self._events.add_summary(_session_start(values, self._session))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Write tags as texts, each at its first value; :meth:`close` writes the final one."""
        self._check_open()
        for name, value in tags.items():
            self._write_text(name, value)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, timestamp_ms: int | None = None) -> None:
        """Write scalars."""
        self._check_open()
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step, walltime=None if timestamp_ms is None else timestamp_ms / 1000)

    def log_media(self, name: str, media: Media, *, step: int) -> None:
        """Write media for which TensorBoard has a tab.

        ========================  ==========================================================================
        :class:`Image`            IMAGES, without its caption
        :class:`Histogram`        HISTOGRAMS and DISTRIBUTIONS
        :class:`Predictions`      PR CURVES: one per class, at most 20
        :class:`Embedding`        PROJECTOR with thumbnails or texts; MESH: points in 3D, a colour per class
        :class:`Mesh`             MESH
        :class:`Graph`            GRAPHS; *Color by: Device* distinguishes frozen from trainable too
        ========================  ==========================================================================
        """
        self._check_open()
        match media:
            case Image():
                self._writer.add_image(name, media.pixels, step, dataformats="HWC")
            case Histogram():
                self._write_histogram(name, media, step)
            case Predictions():
                self._write_curves(name, media, step)
            case Embedding():
                self._write_embedding(name, media, step)
                self._write_mesh(name, _point_cloud(media), step)
            case Mesh():
                self._write_mesh(name, media, step)
            case Graph():
                self._write_graph(media)

    def log_text(self, text: str, file: str) -> None:
        """Write a text unchanged under its file name; Markdown is rendered. See :meth:`log_tags` for when."""
        self._check_open()
        self._write_text(file, text if file.endswith(".md") else _as_it_is(text))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Do nothing: TensorBoard does not store files."""
        self._check_open()

    def close(self, status: RunStatus) -> TrackingReport:
        """Write the status and the final version of each text, and close the file."""
        if self._report is None:
            self._report = TrackingReport()
            for name in sorted(self._late):
                self._writer.add_text(name, self._texts[name])
            if self._metric is not None:
                self._events.add_summary(_session_end(status))
            self._writer.close()
        return self._report

    def _check_open(self) -> None:
        if self._report is not None:
            raise RuntimeError("This tracker is closed; nothing more can be logged.")

    def _write_text(self, name: str, text: str) -> None:
        """Write the first version now and the last one at the end: a leaderboard is updated after every trial."""
        if name not in self._texts:
            self._writer.add_text(name, text)
        elif self._texts[name] != text:
            self._late.add(name)
        self._texts[name] = text

    def _write_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        counts, edges = histogram.counts.astype(float), histogram.edges.astype(float)
        middles = (edges[:-1] + edges[1:]) / 2
        self._writer.add_histogram_raw(
            name,
            min=edges[0],
            max=edges[-1],
            num=counts.sum(),
            sum=(counts * middles).sum(),
            sum_squares=(counts * middles**2).sum(),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )

    def _write_curves(self, name: str, predictions: Predictions, step: int) -> None:
        examples = np.bincount(predictions.labels, minlength=len(predictions.classes))
        for number in sorted(np.argsort(-examples, kind="stable")[:_MOST_CURVES]):
            labels, probabilities = predictions.labels == number, predictions.probabilities[:, number]
            self._writer.add_pr_curve(f"{name}/{predictions.classes[number]}", labels, probabilities, step)

    def _write_embedding(self, name: str, embedding: Embedding, step: int) -> None:
        import torch

        # Files of an earlier run of the study, about which TensorBoard's writer would warn on standard output.
        shutil.rmtree(Path(self._writer.log_dir) / f"{step:05d}" / name.replace("/", "%2f"), ignore_errors=True)
        thumbnails, texts = embedding.thumbnails, embedding.texts
        labels = [_in_one_cell(label) for label in embedding.labels]
        self._writer.add_embedding(
            embedding.vectors,
            metadata=labels if texts is None else list(zip(labels, map(_in_one_cell, texts), strict=True)),
            metadata_header=None if texts is None else ["class", "text"],
            label_img=None if thumbnails is None else torch.from_numpy(thumbnails).permute(0, 3, 1, 2) / 255,
            global_step=step,
            tag=name,
        )

    def _write_mesh(self, name: str, mesh: Mesh, step: int) -> None:
        points = len(mesh.faces) == 0
        self._writer.add_mesh(
            name,
            (mesh.vertices if points else mesh.vertices @ _from_above())[None],
            colors=mesh.colours[None],
            faces=None if points else mesh.faces[None],
            config_dict=_POINTS if points else _SCENE,
            global_step=step,
        )

    def _write_graph(self, graph: Graph) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._events.add_event(Event(graph_def=_graph_def(graph).SerializeToString()))


# ----------------------------------------------------------------------------------------------------------------------


def _number(text: str) -> str | float:
    """Convert numbers, so that TensorBoard draws axes; non-finite ones, which JSON does not support, stay text."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _comparison(values: Mapping[str, str | float], metric: str) -> "Summary":
    """The columns of the tab HPARAMS. TensorBoard uses those of the first run it reads, so they are the same for all.

    Hyperparameters come before settings, whose names have a dot (``train.epochs``).
    """
    from tensorboard.plugins.hparams.api_pb2 import Experiment, HParamInfo, MetricInfo, MetricName

    kinds = {str: "DATA_TYPE_STRING", float: "DATA_TYPE_FLOAT64"}
    hyperparameters = [
        HParamInfo(name=name, type=kinds[type(value)], differs="." not in name) for name, value in values.items()
    ]
    tags = dict.fromkeys([f"best/{metric}", f"val/{metric}", "val/accuracy", "val/loss", "train/loss", "time/seconds"])
    metrics = [MetricInfo(name=MetricName(tag=tag)) for tag in tags]
    return _hparams_summary("EXPERIMENT_TAG", experiment=Experiment(hparam_infos=hyperparameters, metric_infos=metrics))


def _session_start(values: Mapping[str, str | float], session: str) -> "Summary":
    """A trial's own hyperparameters, written at its start, so that running trials are shown too."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    summary: Summary = hparams_pb(dict(values), trial_id=session)
    return summary


def _session_end(status: RunStatus) -> "Summary":
    """The status of a trial. A pruned one is a success, as intended; the tag ``thawline.state`` has the details."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import SessionEndInfo

    word = "STATUS_FAILURE" if status == "FAILED" else "STATUS_SUCCESS"
    ended = SessionEndInfo(status=word, end_time_secs=time.time())
    return _hparams_summary("SESSION_END_INFO_TAG", session_end_info=ended)


def _hparams_summary(tag: str, **content: Any) -> "Summary":
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    described = metadata.create_summary_metadata(HParamsPluginData(**content))
    value = Summary.Value(tag=getattr(metadata, tag), metadata=described, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def _as_it_is(text: str) -> str:
    """Markdown that shows a text unchanged; its fence is longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _in_one_cell(text: str) -> str:
    """Escape text for the projector, which reads tab-separated values without quotes."""
    return " ".join(text.split())


def _point_cloud(embedding: Embedding) -> Mesh:
    """The first three principal components, with a colour for each class."""
    from matplotlib import colormaps

    found = _principal_components(embedding.vectors, 3)
    vertices = np.zeros((len(found), 3), np.float32)
    vertices[:, : found.shape[1]] = found / (np.abs(found).max() or 1.0)
    classes, numbers = np.unique(embedding.labels, return_inverse=True)
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"]
    colours = palette(numbers % palette.N, bytes=True)[:, :3]
    return Mesh(vertices, colours, np.empty((0, 3), int))


def _principal_components(vectors: np.ndarray, most: int) -> np.ndarray:
    """Like scikit-learn's PCA, which would take longer to load than all writes at the end of a search.

    Args:
        vectors: ``[N, D]``.
        most: maximum number of components, ``[N, min(most, N, D)]``, with signs such that the largest weight of each is
            positive.
    """
    centred = vectors - vectors.mean(0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:most]
    largest = np.abs(directions).argmax(1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    components: np.ndarray = centred @ (directions * signs[:, None]).T
    return components


def _from_above() -> np.ndarray:
    """Rotation of rows of x, y (upwards) and z: first about y, then about x."""
    turn, tilt = (np.cos(_TURNED), np.sin(_TURNED)), (np.cos(_TILTED), np.sin(_TILTED))
    about_y = np.array([[turn[0], 0, -turn[1]], [0, 1, 0], [turn[1], 0, turn[0]]])
    about_x = np.array([[1, 0, 0], [0, tilt[0], tilt[1]], [0, -tilt[1], tilt[0]]])
    rotation: np.ndarray = about_y @ about_x
    return rotation


def _graph_def(graph: Graph) -> "GraphDef":
    """The graph in TensorFlow's format, the only one that TensorBoard's tab reads."""
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.compat.proto.versions_pb2 import VersionDef

    places = {node.name: _place(node) for node in graph.nodes}
    nodes = [_node_def(node, places) for node in graph.nodes]
    return GraphDef(node=nodes, versions=VersionDef(producer=22))


def _place(node: GraphNode) -> str:
    """``frozen/layer1/0/conv1`` or ``trainable/layer1/0/conv1``; the input, in no layer group, is neither."""
    if "/" not in node.name:
        return node.name
    return f"{'frozen' if node.frozen else 'trainable'}/{node.name}"


def _node_def(node: GraphNode, places: Mapping[str, str]) -> "NodeDef":
    from tensorboard.compat.proto.attr_value_pb2 import AttrValue
    from tensorboard.compat.proto.node_def_pb2 import NodeDef
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    place = places[node.name]
    attributes = {}
    if node.shape is not None:
        # The batch size is variable, which is written as -1.
        sizes = [TensorShapeProto.Dim(size=size) for size in (-1, *node.shape)]
        attributes["_output_shapes"] = AttrValue(list=AttrValue.ListValue(shape=[TensorShapeProto(dim=sizes)]))
    return NodeDef(
        name=place,
        op=node.operation,
        input=[places[name] for name in node.inputs],
        device=place.partition("/")[0] if place != node.name else "",
        attr=attributes,
    )
