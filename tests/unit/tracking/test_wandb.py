"""W&B, offline, by what it wrote itself."""

import gc
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from wandb_runs import WandbRun, read_wandb_run, record_an_epoch, wandb_folders

from thawline.config import TrackingConfig
from thawline.exceptions import ConfigError
from thawline.tracking import wandb as module
from thawline.tracking._base import RunStatus, TrackerRun, TrackingReport
from thawline.tracking.media import Embedding, Figure, Graph, Histogram, Image, Media, Mesh, Predictions, Table
from thawline.tracking.wandb import WandbTracker, check_wandb, is_logged_in

# W&B leaves temporary folders to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")


@pytest.fixture(autouse=True)
def wandb_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither somebody's login nor what another test has left; W&B's process is ended after the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    import wandb

    with suppress(OSError):  # a test has ended it already
        wandb.teardown()


@pytest.fixture(autouse=True, scope="module")
def no_warning_for_others() -> Iterator[None]:
    """Folders of W&B that are left to the garbage collector go here, and not in another module's test."""
    yield
    gc.collect()


def run_of(home: Path, trial: int | None = 7) -> TrackerRun:
    return TrackerRun(home, "shapes", trial, f"trial {trial}", "0123456789abcdef", "accuracy")


def opened(home: Path, trial: int | None = 7, **config: Any) -> WandbTracker:
    return WandbTracker.for_run(
        run_of(home, trial), TrackingConfig(**{"wandb": "offline", "system_metrics": False, **config})
    )


def written(home: Path) -> WandbRun:
    (folder,) = wandb_folders(home)
    return read_wandb_run(folder)


def test_a_trial_is_a_run_in_the_group_of_its_study_with_parameters_metrics_and_notes(tmp_path: Path) -> None:
    tracker = opened(tmp_path, wandb_project="garments")
    tracker.log_params({"freeze_depth": "3", "learning_rate": "1e-3", "optimizer": "adamw", "limit": "inf"})
    tracker.log_tags({"mlflow.note.content": "# Trial", "thawline.state": "complete"})
    for epoch in (1, 2):
        for _ in range(2):  # the second time it is the same record
            tracker.log_metrics({"val/accuracy": epoch / 4, "loss": 1.0}, step=epoch, timestamp_ms=1_700_000_000_000)
    tracker.log_metrics({"gradient_step/head": 0.5, "val_recall/a*": 1.0}, step=250)
    assert tracker.close("FINISHED") == TrackingReport()
    run = written(tmp_path)
    assert (run.project, run.group, run.job_type, run.name) == ("garments", "shapes", "trial", "trial 7")
    values = {name: run.config[name] for name in ("freeze_depth", "learning_rate", "optimizer", "limit")}
    assert values == {"freeze_depth": 3, "learning_rate": 0.001, "optimizer": "adamw", "limit": "inf"}
    assert (run.notes, run.summary["thawline.state"], run.summary["val/accuracy"]) == ("# Trial", "complete", 0.5)
    assert run.metrics["val/accuracy"] == [(1, 0.25), (2, 0.5)]
    assert run.metrics["loss"] == [(1, 1.0), (2, 1.0)]
    assert run.metrics["val_recall/a*"] == [(250, 1.0)]
    assert run.history[0]["_timestamp"] == 1_700_000_000
    assert run.metrics["gradient_step/head"] == [(250, 0.5)]
    assert run.step_metrics["gradient_step/*"] == "global_step"
    assert {run.step_metrics[name] for name in ("val/*", "loss", "val_recall/*")} == {"epoch"}


def test_the_study_is_a_run_whose_charts_count_trials(tmp_path: Path) -> None:
    tracker = opened(tmp_path, trial=None)
    tracker.log_metrics({"best/accuracy": 0.5}, step=3)
    tracker.close("FINISHED")
    run = written(tmp_path)
    assert (run.job_type, run.step_metrics) == ("study", {"best/*": "trials"})
    assert run.metrics["best/accuracy"] == [(3, 0.5)]


@pytest.mark.parametrize(("status", "code"), [("FINISHED", 0), ("FAILED", 1), ("KILLED", 255)])
def test_how_a_trial_ended_is_its_exit_code(status: RunStatus, code: int, tmp_path: Path) -> None:
    opened(tmp_path).close(status)
    assert written(tmp_path).exit_code == code


def test_a_resumed_trial_continues_in_its_run_and_no_other_does(tmp_path: Path) -> None:
    for epoch, trial in ((1, 7), (2, 7), (1, 8)):
        tracker = opened(tmp_path, trial)
        tracker.log_metrics({"val/accuracy": epoch / 4}, step=epoch)
        tracker.close("FINISHED")
    runs = [read_wandb_run(folder) for folder in wandb_folders(tmp_path)]
    first, resumed = (run for run in runs if run.name == "trial 7")
    (other,) = (run for run in runs if run.name == "trial 8")
    assert first.id == resumed.id != other.id
    points = [run.metrics["val/accuracy"] for run in (first, resumed, other)]
    assert sorted(points[:2]) == [[(1, 0.25)], [(2, 0.5)]]


def test_trials_that_are_trained_together_are_kept_apart(tmp_path: Path) -> None:
    trackers = {trial: opened(tmp_path, trial) for trial in (1, 2)}
    for trial, tracker in trackers.items():
        tracker.log_metrics({"val/accuracy": trial / 4}, step=1)
    for tracker in trackers.values():
        tracker.close("FINISHED")
    runs = {run.name: run for run in map(read_wandb_run, wandb_folders(tmp_path))}
    assert {name: run.metrics["val/accuracy"] for name, run in runs.items()} == {
        "trial 1": [(1, 0.25)],
        "trial 2": [(1, 0.5)],
    }


PIXELS = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
CORNERS = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.5]])
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def test_media_are_shown_under_their_names_and_a_graph_is_left_out(tmp_path: Path) -> None:
    media: dict[str, Media] = {
        "val/pictures": Image(PIXELS, "boot"),
        "weights/head": Histogram(np.array([3, 1]), np.array([-1.0, 0.0, 1.0])),
        "validation/..": Table({"class": ["a", "b"], "recall": [0.5, None], "mixed": [1, "x"]}),
        "chart": Figure("<svg><title>é</title></svg>", "a chart"),
        "features": Embedding(np.eye(2), ("boot", "hat"), np.stack([PIXELS] * 2)),
        "sentences": Embedding(np.eye(2), ("ham", "spam"), texts=("see you", "win now")),
        "surface": Mesh(CORNERS, COLOURS, np.array([[0, 1, 2]])),
        "points": Mesh(CORNERS, COLOURS, np.empty((0, 3), int)),
        "graph": Graph(()),
        "x" * 200: Table({"a": [1]}),
    }
    tracker = opened(tmp_path)
    for name, value in media.items():
        tracker.log_media(name, value, step=4)
    files = tracker.folder / "files"
    assert tracker.close("FINISHED") == TrackingReport()
    run = written(tmp_path)
    shown = {}
    for row in run.history:
        assert row["epoch"] == 4
        (name,) = {key.split("\0")[0] for key in row if not key.startswith("_")} - {"epoch"}
        shown[name] = {key.split("\0")[1]: value for key, value in row.items() if "\0" in key}
    assert len(shown) == len(media) - 1
    assert (shown["val/pictures"]["_type"], shown["val/pictures"]["caption"]) == ("image-file", "boot")
    from PIL import Image as Pillow

    with Pillow.open(files / shown["val/pictures"]["path"]) as picture:
        assert np.array_equal(np.asarray(picture), PIXELS)
    assert (shown["weights/head"]["values"], shown["weights/head"]["bins"]) == ([3, 1], [-1, 0, 1])
    table = json.loads((files / shown["validation/_"]["path"]).read_text())
    assert (table["columns"], table["data"]) == (["class", "recall", "mixed"], [["a", 0.5, 1], ["b", None, "x"]])
    assert (files / shown["chart"]["path"]).read_text(encoding="utf-8") == "<svg><title>é</title></svg>"
    embedding = json.loads((files / shown["features"]["path"]).read_text())
    assert embedding["columns"] == ["picture", "class", "x0", "x1"]
    assert embedding["data"][1][1:] == ["hat", 0.0, 1.0]
    sentences = json.loads((files / shown["sentences"]["path"]).read_text())
    assert sentences["columns"] == ["text", "class", "x0", "x1"]
    assert sentences["data"][1] == ["win now", "spam", 0.0, 1.0]
    surface = (files / shown["surface"]["path"]).read_text()
    assert surface.splitlines()[1:] == ["v 1 0 0 0.000 1.000 0.000", "v 0 1 0.5 0.000 0.000 1.000", "f 1 2 3"]
    assert "f" not in (files / shown["points"]["path"]).read_text()


def test_curves_are_those_of_the_classes_that_occur(tmp_path: Path) -> None:
    labels = np.array([0, 0, 2, 2, 2])
    perfect = np.eye(3)[labels] * 0.9 + 0.05  # and the second class gets the same everywhere
    tracker = opened(tmp_path)
    tracker.log_media("test", Predictions(labels, perfect, ("boot", "coat", "hat")), step=1)
    tracker.log_media("alone", Predictions(labels[:2], perfect[:2], ("boot", "coat", "hat")), step=1)
    files = tracker.folder / "files" / "media" / "table"
    assert tracker.close("FINISHED") == TrackingReport()
    wandb_folders(tmp_path)

    def table(name: str) -> list[list[Any]]:
        rows: list[list[Any]] = json.loads(next(files.glob(f"{name}_table_*.json")).read_text())["data"]
        return rows

    assert {tuple(row) for row in table("test/confusion") if row[2]} == {("boot", "boot", 2), ("hat", "hat", 3)}
    assert {(kind, precision) for kind, precision, _ in table("test/precision_recall")} == {("boot", 1), ("hat", 1)}
    assert {kind for kind, *_ in table("test/roc")} == {"boot", "hat"}
    assert [path.name.split("_")[0] for path in (files / "alone").iterdir()] == ["confusion"]


def test_texts_and_files_are_among_the_files_of_the_run_and_a_checkpoint_is_a_model_where_it_lies(
    tmp_path: Path,
) -> None:
    (tmp_path / "plots[1]").mkdir()
    (tmp_path / "plots[1]" / "loss.csv").write_text("1")
    checkpoint = tmp_path / "epoch-0001.safetensors"
    checkpoint.write_bytes(b"weights")
    tracker = opened(tmp_path / "home")
    tracker.log_text("epochs: 1\n", "config.yaml")
    tracker.log_artifact(tmp_path / "plots[1]", "figures")
    tracker.log_artifact(checkpoint, "checkpoints")
    files = tracker.folder / "files"
    assert tracker.close("FINISHED") == TrackingReport()
    run = written(tmp_path / "home")
    assert (files / "thawline" / "config.yaml").read_text() == "epochs: 1\n"
    assert (files / "thawline" / "figures" / "plots[1]" / "loss.csv").read_text() == "1"
    assert {"thawline/config.yaml", "thawline/figures/plots[1]/loss.csv"} <= set(run.files)
    assert run.artifacts == {f"model/checkpoint-{run.id}": [str(checkpoint)]}


@pytest.mark.parametrize("password", ["", ":secret"])
def test_the_command_is_recorded_unless_it_holds_a_password(
    password: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["thawline", "search", "--storage", f"postgresql://me{password}@host/db"])
    opened(tmp_path).close("FINISHED")
    wandb_folders(tmp_path)
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert (b"@host/db" in content) == (not password)
    assert b"secret" not in content


def test_what_fails_is_reported_and_the_rest_is_recorded(tmp_path: Path) -> None:
    tracker = opened(tmp_path)
    tracker.log_artifact(tmp_path / "gone.csv")
    tracker.log_metrics({"val/accuracy": 0.5}, step=1)
    problem = tracker.close("FINISHED").problem
    assert problem is not None
    assert "gone.csv" in problem
    assert written(tmp_path).metrics["val/accuracy"] == [(1, 0.5)]


def test_nothing_is_raised_when_the_process_of_wandb_dies(tmp_path: Path) -> None:
    import wandb

    before = set(psutil.Process().children())
    tracker = opened(tmp_path)
    (service,) = set(psutil.Process().children()) - before
    service.kill()
    wandb.setup().assert_service()._proc.join()
    for epoch in range(1, 4):  # the first may still go into the socket
        tracker.log_metrics({"val/accuracy": 0.5}, step=epoch)
    assert tracker.close("FINISHED").problem


def test_after_the_end_nothing_is_taken_and_closing_again_changes_nothing(tmp_path: Path) -> None:
    tracker = opened(tmp_path)
    report = tracker.close("FINISHED")
    with pytest.raises(RuntimeError, match="closed"):
        tracker.log_metrics({"a": 1.0}, step=1)
    assert tracker.close("FAILED") is report


def test_a_run_whose_server_does_not_answer_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    config = TrackingConfig(wandb="online", system_metrics=False)
    tracker = WandbTracker.for_run(run_of(tmp_path, 7), config, answer_seconds=1.0)
    tracker.log_metrics({"val/accuracy": 0.5}, step=1)
    problem = tracker.close("FINISHED").problem
    assert problem is not None
    assert f"`wandb sync {tracker.folder}` sends the run" in problem
    assert written(tmp_path).metrics["val/accuracy"] == [(1, 0.5)]


def test_offline_no_connection_leaves_the_machine(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    tracker = opened(tmp_path, system_metrics=True)
    tracker.log_metrics({"val/accuracy": 0.5}, step=1)
    (service,) = set(psutil.Process().children()) - before
    assert service.net_connections("inet") == []
    assert service.net_connections("unix")  # what it hears us by
    tracker.close("FINISHED")


def test_a_worker_leaves_a_whole_run_and_no_process(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("forkserver").Process(
        target=record_an_epoch, args=(tmp_path, theirs), daemon=True
    )
    worker.start()
    (service,) = (psutil.Process(pid) for pid in ours.recv())
    worker.join(60)
    assert worker.exitcode == 0
    psutil.wait_procs([service], timeout=60)
    assert not service.is_running()
    run = written(tmp_path)
    assert (run.metrics["val/accuracy"], run.exit_code) == ([(1, 0.5)], 0)


def test_wandb_is_imported_where_it_is_used_alone() -> None:
    code = "import sys, thawline.tracking.wandb; assert 'wandb' not in sys.modules; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_search_is_refused_where_wandb_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline, online = TrackingConfig(wandb="offline"), TrackingConfig(wandb="online")
    check_wandb(offline)
    with pytest.raises(ConfigError, match="run `wandb login`"):
        check_wandb(online)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tracking\.wandb=offline .* pip install 'thawline\[wandb\]'"):
        check_wandb(offline)
    check_wandb(TrackingConfig())


@pytest.mark.parametrize("where", ["environment", "netrc"])
def test_a_login_is_found_without_asking_a_server(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    else:
        (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    assert is_logged_in()
    check_wandb(TrackingConfig(wandb="online"))


def test_a_key_that_can_be_none_is_no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert not is_logged_in()
