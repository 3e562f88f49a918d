"""What TensorBoard shows of a study, read back through its own reader and from its own server."""

import io
import json
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from sklearn.decomposition import PCA
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from thawline import backbones
from thawline.tracking import TensorBoardTracker, TrackerRun
from thawline.tracking.media import Embedding, Figure, Histogram, Image, Mesh, Predictions, Table
from thawline.tracking.tensorboard import _point_cloud

pytestmark = pytest.mark.xdist_group("tensorboard")

Get = Callable[..., Any]

CLASSES = ("hat", "shirt\n\t(long)", "shoe")
LABELS = np.array([0, 1, 2, 0, 1, 2])
# Always right about hats, never sure of the others.
PROBABILITIES = np.array([[0.9, 0.05, 0.05], [0, 0.5, 0.5], [0, 0.5, 0.5]] * 2)
PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
COUNTS, EDGES = np.array([3, 0, 5]), np.array([-1.0, 0.0, 0.5, 2.0])
SURFACE = Mesh(np.eye(3, dtype=np.float32), np.array([[255, 0, 7]] * 3, np.uint8), np.array([[0, 1, 2]]))


def run_of(home: Path, trial: int | None) -> TrackerRun:
    name = "birds" if trial is None else f"trial-{trial:02d} depth=3 lr=1.2e-3"
    return TrackerRun(home, "birds", trial, name, "0123456789abcdef0123456789abcdef", "macro_f1")


def embedding() -> Embedding:
    """Two classes, far from each other in the first of eight dimensions."""
    far = np.repeat([0.0, 100.0], 4)[:, None] * np.eye(8)[0]
    vectors = (far + np.random.default_rng(0).normal(size=(8, 8))).astype(np.float32)
    thumbnails = np.repeat(np.arange(8, dtype=np.uint8) * 30, 4 * 4 * 3).reshape(8, 4, 4, 3)
    return Embedding(vectors, CLASSES[:1] * 4 + CLASSES[1:2] * 4, thumbnails)


def log_trial(home: Path, number: int, depth: int) -> TensorBoardTracker:
    tracker = TensorBoardTracker.for_run(run_of(home, number))
    tracker.log_params({"freeze_depth": str(depth), "optimizer": "adamw", "train.epochs": "2", "seed": "nan"})
    for epoch in (1, 2):
        tracker.log_metrics({"train/loss": 1 / epoch, "val/loss": 2 / epoch, "val/macro_f1": epoch / 4}, step=epoch)
        tracker.log_media("val/pictures", Image(PICTURE * epoch), step=epoch)
    return tracker


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four trials: finished, pruned, failed, and one that still runs."""
    home = tmp_path_factory.mktemp("home")
    network = backbones.create("resnet18", num_classes=3, weights="none", image_size=32)
    for number, status in enumerate(("FINISHED", "KILLED", "FAILED", None)):
        tracker = log_trial(home, number, depth=number)
        tracker.log_media("network", backbones.outline(network, number), step=0)
        if status is None:
            tracker._writer.flush()
            continue
        tracker.log_metrics({"best/macro_f1": 0.5}, step=2)
        tracker.log_media("weights/layer4", Histogram(COUNTS, EDGES), step=1)
        tracker.log_media("validation", Predictions(LABELS, PROBABILITIES, CLASSES), step=2)
        tracker.log_media("features", embedding(), step=2)
        tracker.close(status)  # type: ignore[arg-type]
    study = TensorBoardTracker.for_run(run_of(home, None))
    study.log_params({"data.path": "photos"})
    study.log_media("response_surface", SURFACE, step=3)
    study.log_text("a: 1\n```", "config.yaml")
    for trials in range(3):
        study.log_tags({"note": f"**{trials}** trials"})
    study.close("FINISHED")
    return home


@pytest.fixture(scope="module")
def get(home: Path) -> Iterator[Get]:
    """Asks a real server on loopback: the answer as JSON, or its bytes."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(home / "tensorboard"), "--port", "0"]
    with subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            log = []
            for line in process.stderr:
                log.append(line)
                if found := re.search(r"at (http://127\.0\.0\.1:\d+/)", line):
                    break
            else:
                pytest.fail("the server ended by itself:\n" + "".join(log))
            threading.Thread(target=process.stderr.read, daemon=True).start()

            def get(path: str, body: object = None, **query: object) -> Any:
                request = urllib.request.Request(
                    f"{found[1]}data/{path}?{urllib.parse.urlencode(query)}",
                    data=None if body is None else json.dumps(body).encode(),
                    headers={"Content-Type": "application/json"},
                )
                with urllib.request.urlopen(request, timeout=60) as answer:
                    content = answer.read()
                    return json.loads(content) if answer.headers.get_content_type() == "application/json" else content

            deadline = time.monotonic() + 120
            while len(get("runs")) < 5 or "birds/study" not in get("plugin/mesh/tags"):  # it reads files as it serves
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield get
        finally:
            process.terminate()


def events_of(home: Path, run: str) -> EventAccumulator:
    events = EventAccumulator(str(home / "tensorboard" / "birds" / run))
    events.Reload()
    return events


def test_every_tab_has_what_it_shows(get: Get) -> None:
    shown = {name for name, plugin in get("plugins_listing").items() if plugin["enabled"]}
    # The projector looks for its files in the background, for seconds.
    assert shown | {"projector"} == {
        "timeseries", "scalars", "custom_scalars", "images", "graphs", "distributions", "histograms", "text",
        "pr_curves", "hparams", "mesh", "projector",
    }  # fmt: skip


def test_scalars_have_mlflows_names_and_epochs(home: Path, get: Get) -> None:
    events = events_of(home, "trial-00 depth=3 lr=1.2e-3")
    assert [(event.step, event.value) for event in events.Scalars("val/macro_f1")] == [(1, 0.25), (2, 0.5)]
    assert set(events.Tags()["scalars"]) == {"train/loss", "val/loss", "val/macro_f1", "best/macro_f1"}
    served = get("plugin/scalars/scalars", run="birds/trial-00 depth=3 lr=1.2e-3", tag="val/macro_f1")
    assert [point[1:] for point in served] == [[1, 0.25], [2, 0.5]]


def test_train_and_validation_loss_are_on_one_chart(get: Get) -> None:
    charts = {
        chart["title"]: chart["multiline"]["tag"]
        for category in get("plugin/custom_scalars/layout")["category"]
        for chart in category["chart"]
    }
    assert set(charts) == {"loss", "accuracy", "gradient norm of each layer group"}
    found = [
        get("plugin/custom_scalars/scalars", run="birds/trial-00 depth=3 lr=1.2e-3", tag=pattern)
        for pattern in charts["loss"]
    ]
    assert [list(answer["tag_to_events"]) for answer in found] == [["train/loss"], ["val/loss"]]


def test_trials_are_compared_by_numbers_also_while_they_run(get: Get) -> None:
    experiment = get("plugin/hparams/experiment", {"experimentName": ""})
    types = {info["name"]: info["type"] for info in experiment["hparamInfos"]}
    assert list(types)[:3] == ["freeze_depth", "optimizer", "seed"]  # before the settings
    assert types["freeze_depth"] == "DATA_TYPE_FLOAT64"
    assert types["optimizer"] == types["seed"] == "DATA_TYPE_STRING"
    assert [info["name"]["tag"] for info in experiment["metricInfos"]][:2] == ["best/macro_f1", "val/macro_f1"]

    every = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    asked = {"experimentName": "", "allowedStatuses": every, "colParams": [], "startIndex": 0, "sliceSize": 9}
    trials = {group["name"]: group for group in get("plugin/hparams/session_groups", asked)["sessionGroups"]}
    assert list(trials) == [f"birds/trial-{number:02d} depth=3 lr=1.2e-3" for number in range(4)]
    assert [trial["hparams"]["freeze_depth"] for trial in trials.values()] == [0, 1, 2, 3]
    assert [trial["sessions"][0]["status"] for trial in trials.values()] == [
        *("STATUS_SUCCESS", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_UNKNOWN")
    ]
    values = [{metric["name"]["tag"]: metric["value"] for metric in trial["metricValues"]} for trial in trials.values()]
    assert values[0] == {"best/macro_f1": 0.5, "val/macro_f1": 0.5, "val/loss": 1, "train/loss": 0.5}
    assert values[3] == {"val/macro_f1": 0.5, "val/loss": 1, "train/loss": 0.5}  # runs, and has no best yet


def test_pictures_of_each_epoch_are_those_that_were_logged(get: Get) -> None:
    found = get("plugin/images/images", run="birds/trial-00 depth=3 lr=1.2e-3", tag="val/pictures", sample=0)
    assert [picture["step"] for picture in found] == [1, 2]
    for epoch, picture in enumerate(found, start=1):
        pixels = PIL.Image.open(io.BytesIO(get(f"plugin/images/individualImage?{picture['query']}&")))
        assert np.array_equal(np.asarray(pixels), PICTURE * epoch)


def test_a_histogram_has_the_bins_that_were_counted(get: Get) -> None:
    (found,) = get("plugin/histograms/histograms", run="birds/trial-00 depth=3 lr=1.2e-3", tag="weights/layer4")
    assert found[1] == 1
    assert found[2] == [[-1, 0, 3], [0, 0.5, 0], [0.5, 2, 5]]


def test_each_class_has_a_precision_recall_curve(get: Get) -> None:
    tags = get("plugin/pr_curves/tags")["birds/trial-00 depth=3 lr=1.2e-3"]
    assert set(tags) == {f"validation/{name}" for name in CLASSES}

    def precision_at_full_recall(name: str) -> float:
        curve = get("plugin/pr_curves/pr_curves", run="birds/trial-00 depth=3 lr=1.2e-3", tag=f"validation/{name}")[
            "birds/trial-00 depth=3 lr=1.2e-3"
        ][0]
        reached = zip(curve["precision"], curve["recall"], strict=True)
        return float(max(precision for precision, recall in reached if recall == 1))

    assert precision_at_full_recall("hat") == 1
    assert precision_at_full_recall("shoe") == 0.5


def test_of_many_classes_those_with_the_most_examples_have_curves(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    labels = np.repeat(np.arange(25), [1] * 5 + [2] * 20)
    tracker.log_media(
        "p", Predictions(labels, np.full((len(labels), 25), 0.04), tuple("abcdefghijklmnopqrstuvwxy")), step=1
    )
    tracker.close("FINISHED")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["tensors"]) == {f"p/{name}" for name in "fghijklmnopqrstuvwxy"}


def test_the_projector_has_vectors_labels_and_thumbnails(get: Get) -> None:
    run, points = "birds/trial-00 depth=3 lr=1.2e-3", embedding()
    (found,) = get("plugin/projector/info", run=run)["embeddings"]
    assert found["tensorShape"] == [8, 8]
    tensor = np.frombuffer(get("plugin/projector/tensor", run=run, name=found["tensorName"]), np.float32)
    assert np.allclose(tensor.reshape(8, 8), points.vectors)
    labels = get("plugin/projector/metadata", run=run, name=found["tensorName"]).decode().splitlines()
    assert labels == ["hat"] * 4 + ["shirt (long)"] * 4
    sprite = np.asarray(
        PIL.Image.open(io.BytesIO(get("plugin/projector/sprite_image", run=run, name=found["tensorName"])))
    )
    assert found["sprite"]["singleImageDim"] == [4, 4]
    assert points.thumbnails is not None
    assert np.array_equal(sprite[:4, 4:8], points.thumbnails[1])


def test_the_projector_has_texts_in_a_column_beside_their_classes(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path / "study")
    points = Embedding(np.eye(2, dtype=np.float32), ("ham", "spam"), texts=("see\tyou", "win\n\n£1000"))
    tracker.log_media("features", points, step=0)
    tracker.close("FINISHED")
    (folder,) = (tmp_path / "study" / "00000").iterdir()
    assert (folder / "metadata.tsv").read_text(encoding="utf-8").splitlines() == [
        *("class\ttext", "ham\tsee you", "spam\twin £1000")
    ]
    assert "sprite" not in (tmp_path / "study" / "projector_config.pbtxt").read_text()


def mesh(get: Get, run: str, tag: str, part: str, step: int) -> np.ndarray:
    kind = {"VERTEX": np.float32, "COLOR": np.uint8, "FACE": np.int32}[part]
    content = get("plugin/mesh/data", run=run, tag=tag, content_type=part, step=step, sample=0)
    return np.frombuffer(content, kind).reshape(-1, 3)


def test_a_surface_keeps_its_shape_colours_and_triangles_and_is_seen_from_above(get: Get) -> None:
    vertices = mesh(get, "birds/study", "response_surface", "VERTEX", 3)
    assert np.array_equal(mesh(get, "birds/study", "response_surface", "COLOR", 3), SURFACE.colours)
    assert np.array_equal(mesh(get, "birds/study", "response_surface", "FACE", 3), SURFACE.faces)
    assert np.allclose(vertices @ vertices.T, np.eye(3), atol=1e-6)  # turned, neither stretched nor bent
    assert np.isclose(np.linalg.det(vertices), 1)  # nor mirrored
    assert vertices[1, 1] > 0.8  # up is still up,
    assert vertices[1, 2] > 0.3  # and leans towards who looks along -z, as what is seen from above does


def test_features_are_points_in_three_dimensions_with_a_colour_for_each_class(get: Get) -> None:
    vertices = mesh(get, "birds/trial-00 depth=3 lr=1.2e-3", "features", "VERTEX", 2)
    colours = mesh(get, "birds/trial-00 depth=3 lr=1.2e-3", "features", "COLOR", 2)
    assert mesh(get, "birds/trial-00 depth=3 lr=1.2e-3", "features", "FACE", 2).size == 0
    assert np.abs(vertices).max() == 1
    assert len(np.unique(colours[:4], axis=0)) == len(np.unique(colours[4:], axis=0)) == 1
    assert not np.array_equal(colours[0], colours[4])
    assert np.ptp(vertices[:4, 0]) < 0.2 < np.abs(vertices[:4, 0] - vertices[4:, 0]).min()


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (2, 2), (5, 1)])
def test_those_points_are_the_principal_components(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = PCA(min(3, *shape), svd_solver="full").fit_transform(vectors)
    expected /= np.abs(expected).max()
    vertices = _point_cloud(Embedding(vectors, tuple("ab" * shape[0])[: shape[0]])).vertices
    assert np.allclose(vertices[:, : expected.shape[1]], expected, atol=1e-5)
    assert not vertices[:, expected.shape[1] :].any()


def test_a_single_point_is_in_the_middle() -> None:
    assert not _point_cloud(Embedding(np.ones((1, 4), np.float32), ("a",))).vertices.any()


@pytest.mark.parametrize("depth", [0, 2])
def test_the_graph_tells_frozen_layers_from_trainable_ones(home: Path, get: Get, depth: int) -> None:
    run = f"trial-{depth:02d} depth=3 lr=1.2e-3"
    nodes = {node.name: node for node in events_of(home, run).Graph().node}
    place = "frozen" if depth > 1 else "trainable"
    convolution = nodes[f"{place}/layer1/0/conv1"]
    assert convolution.device == place
    assert convolution.op == "Conv2d"
    assert [size.size for size in convolution.attr["_output_shapes"].list.shape[0].dim] == [-1, 64, 8, 8]
    assert nodes["trainable/layer2/0/conv1"].device == "trainable"
    assert list(nodes["trainable/layer2/0/conv1"].input) == [f"{place}/layer1/1/relu_1"]
    assert "images" in nodes
    assert {name for node in nodes.values() for name in node.input} <= set(nodes)
    served = get("plugin/graphs/graph", run=f"birds/{run}").decode()
    assert f'name: "{place}/layer1/0/conv1"' in served


def test_texts_are_kept_in_their_first_and_last_state(home: Path, get: Get) -> None:
    events = events_of(home, "study")
    notes = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("note/text_summary")]
    assert notes == ["**0** trials", "**2** trials"]
    assert (
        "<strong>2</strong> trials" in get("plugin/text/text", run="birds/study", tag="note/text_summary")[-1]["text"]
    )
    (config,) = get("plugin/text/text", run="birds/study", tag="config.yaml/text_summary")
    assert "a: 1\n```\n</code>" in config["text"]  # as it is, its own fence included
    assert "photos" in get("plugin/text/text", run="birds/study", tag="params/text_summary")[0]["text"]


def test_what_tensorboard_cannot_show_is_left_out(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    for media in (Figure("<svg/>", "a line"), Table({"class": ["hat"]}), Image(PICTURE)):
        tracker.log_media(type(media).__name__, media, step=1)
    tracker.log_artifact(Path(__file__))
    tracker.close("FINISHED")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [tag for tags in events.Tags().values() if isinstance(tags, list) for tag in tags] == ["Image"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_resumed_trial_continues_in_the_same_run(tmp_path: Path) -> None:
    log_trial(tmp_path, 7, depth=3)._writer.close()
    resumed = TensorBoardTracker.for_run(run_of(tmp_path, 7))
    resumed.log_params({"freeze_depth": "3"})
    resumed.log_metrics({"val/macro_f1": 0.75}, step=3)
    resumed.close("FINISHED")
    events = events_of(tmp_path, "trial-07 depth=3 lr=1.2e-3")
    assert [(event.step, event.value) for event in events.Scalars("val/macro_f1")] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert b"optimizer" in events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content


def test_a_trial_that_an_earlier_version_began_continues_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "tensorboard" / "birds" / "trial-007").mkdir(parents=True)
    log_trial(tmp_path, 7, depth=3).close("FINISHED")
    assert len(events_of(tmp_path, "trial-007").Scalars("val/macro_f1")) == 2
    assert [folder.name for folder in (tmp_path / "tensorboard" / "birds").iterdir()] == ["trial-007"]


def test_a_linear_probe_does_not_say_which_hyperparameters_trials_have(tmp_path: Path) -> None:
    """TensorBoard shows those of one run for all, of the one that it reads first."""
    for number, params in enumerate(({"policy": "probe"}, {"policy": "static", "learning_rate": "0.001"})):
        tracker = TensorBoardTracker.for_run(run_of(tmp_path, number))
        tracker.log_params(params)
        tracker.close("FINISHED")
    probe, trained = (
        events_of(tmp_path, f"trial-{number:02d} depth=3 lr=1.2e-3").Tags()["tensors"] for number in (0, 1)
    )
    assert "_hparams_/session_start_info" in probe
    assert ["_hparams_/experiment" in tags for tags in (probe, trained)] == [False, True]


def test_nothing_may_be_logged_after_the_end(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    tracker.log_metrics({"a": 1}, step=1)
    assert tracker.close("FINISHED") is tracker.close("FAILED")
    for log in (
        lambda: tracker.log_metrics({"a": 2}, step=2),
        lambda: tracker.log_params({"a": "1"}),
        lambda: tracker.log_tags({"a": "1"}),
        lambda: tracker.log_media("a", Image(PICTURE), step=1),
        lambda: tracker.log_text("a", "b.txt"),
        lambda: tracker.log_artifact(tmp_path),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            log()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.value for event in events.Scalars("a")] == [1]


def test_points_that_are_written_again_replace_those_before_and_print_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        tracker = TensorBoardTracker(tmp_path / "study")
        tracker.log_media("test/features", embedding(), step=0)
        tracker.close("FINISHED")
    assert capsys.readouterr().out == ""
    assert (tmp_path / "study" / "00000" / "test%2ffeatures" / "tensors.tsv").is_file()
