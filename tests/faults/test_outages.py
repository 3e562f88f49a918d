"""Servers that fail, locked databases, full disks: training continues, and nothing is lost or doubled."""

import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults import TRIALS, Search, epochs_of, facts
from servers import mlflow_server
from unreliable import unreliable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def nothing_lost_or_doubled(search: Search, *, trials: int = 4, epochs: int = 4) -> None:
    recorded = search.epochs()
    assert recorded.keys() == epochs_of(trials, epochs)
    assert {key for key, times in recorded.items() if len(times) > 1} == set()
    assert {run.info.status for run in search.runs()} == {"FINISHED"}


@pytest.mark.xdist_group("outages-mlflow")
def test_a_tracking_server_that_is_slow_fails_and_goes_away_gets_every_record_once_and_in_order(
    make_search: Callable[..., Search], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as port, unreliable(port) as server:
        search = make_search("mlflow", *TRIALS, "--tracking-uri", server.url, MLFLOW_TRACKING_URI=server.url)
        life = search.start()
        assert life.says("epoch 1/4")
        server.mood = "500"
        assert life.says("epoch 3/4")
        server.mood = "down"
        server.wait_until_refused(2)
        server.mood = "slow"
        assert life.wait_until(lambda lines: sum("ended after" in line for line in lines) == 2)
        server.mood = "down"  # for good, as far as this life is concerned
        code, _ = life.end()
        said = "\n".join(life.lines)
        assert code in (1, 2), said
        assert "Traceback" not in said, said
        assert "does not answer" in said or "did not reach the tracking server" in said
        server.mood = "well"
        outcome = search.finish()
        assert [row["state"] for row in outcome["trials"]] == ["complete"] * 4
        nothing_lost_or_doubled(search)
        for run in search.runs():
            if run.data.tags["thawline.role"] == "trial":
                history = search.store.client.get_metric_history(run.info.run_id, "train/loss")
                is_probe = run.data.params["policy"] == "probe"
                assert [metric.step for metric in history] == ([1] if is_probe else [1, 2, 3, 4])


@pytest.mark.xdist_group("outages-databases")
def test_databases_that_are_locked_for_a_while_are_waited_for(
    make_search: Callable[..., Search], tmp_path: Path
) -> None:
    studies = tmp_path / "studies.db"
    search = make_search("locked", *TRIALS, "--set", "study.workers=1", THAWLINE_STORAGE=f"sqlite:///{studies}")
    life = search.start()
    assert life.says("epoch 1/4")
    locks = [sqlite3.connect(file, timeout=60, isolation_level=None) for file in (studies, search.home / "mlflow.db")]
    for connection in locks:
        connection.execute("BEGIN EXCLUSIVE")
    time.sleep(5)  # for which they are locked: nobody can say that they were tried
    for connection in locks:
        connection.execute("ROLLBACK")
        connection.close()
    code, _ = life.end()
    assert code == 0, "\n".join(life.lines)
    nothing_lost_or_doubled(search)
    with closing(sqlite3.connect(studies)) as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT number) FROM trials").fetchone() == (4, 4)
        assert connection.execute("SELECT count(*) FROM thawline_leases").fetchone() == (0,), (
            "every lease was given back"
        )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1.5 GB, in memory: a search wants a gigabyte to spare before it begins."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all that is free, to the last block, also while others write."""
    ballast, size = folder / "ballast", 2**30
    with ballast.open("wb", buffering=0) as file:
        while size >= 4096:
            try:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
            except OSError:  # all or nothing, and how much is free changes
                size //= 2
    return ballast


@pytest.mark.xdist_group("outages-disk")
def test_a_disk_that_is_full_does_not_stop_training_and_what_waits_is_written_when_there_is_room(
    make_search: Callable[..., Search], small_disk: Path
) -> None:
    # A trial that ends on a full disk has no checkpoint to be packaged: this one has epochs enough until there is room.
    options = ["--trials", "3", "--epochs", "8", "--set", "space.freeze_depth=[0, 1]"]
    options += ["--set", "study.pruner=NopPruner", "--exact"]
    expected = make_search("roomy", *options).finish()
    search = make_search("full", *options, home=small_disk / "home")
    life = search.start()
    assert life.says("epoch 1/8")
    ballast = fill(small_disk)
    assert life.says("epoch 4/8"), "\n".join(life.lines)
    ballast.unlink()
    code, output = life.end()
    said = "\n".join([*life.lines, output])
    assert code in (0, 1), said
    assert "Traceback" not in said, said
    if code:
        assert "did not reach the tracking server" in said or "Not stored" in said
    outcome = search.finish()
    assert facts(outcome) == facts(expected)
    assert outcome["test"] == expected["test"]
    nothing_lost_or_doubled(search, trials=3, epochs=8)


@pytest.mark.xdist_group("outages-hung")
def test_a_worker_that_hangs_is_ended_and_its_trial_comes_out_the_same(
    make_search: Callable[..., Search], reference: dict[str, Any]
) -> None:
    search = make_search("hung", *TRIALS, "--set", "study.hang_minutes=0.2")
    life = search.start()
    assert life.says("epoch 2/4")
    # The youngest: the one that built the networks waits until there is something to package.
    worker = max(life.workers(), key=psutil.Process.create_time)
    worker.suspend()
    assert life.says("its process made no progress for 0.2 minutes; retrying from its last checkpoint")
    code, _ = life.end()
    assert code == 0, "\n".join(life.lines)
    assert facts(search.outcome()) == facts(reference)
    nothing_lost_or_doubled(search)


@pytest.mark.xdist_group("outages-left")
def test_a_search_that_is_asked_to_leave_writes_a_checkpoint_first_and_resumes_at_the_next_batch(
    make_search: Callable[..., Search],
) -> None:
    # Epochs enough that the trial has not ended before the search has heard that it must leave.
    options = ["--trials", "2", "--epochs", "5", "--set", "space.freeze_depth=[0, 0]", "--set", "train.batch_size=2"]
    expected = make_search("whole", *options, "--exact").finish()
    search = make_search("left", *options, "--exact")
    life = search.start()
    assert life.says("trial-01 epoch 1/5")
    life.process.terminate()
    code, _ = life.end(60)
    assert code == 143
    assert "The same command resumes where it stopped." in "\n".join(life.lines)
    checkpoint = search.home / "studies" / "shapes" / "trial-001" / "within-epoch.safetensors"
    assert checkpoint.exists(), "whenever it was asked, it left after a batch of the same epoch or of the next"
    outcome = search.finish()
    assert facts(outcome) == facts(expected)
    assert outcome["test"] == expected["test"]
    assert not checkpoint.exists(), "of no use any more"
