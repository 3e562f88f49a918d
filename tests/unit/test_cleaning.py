"""``thawline clean``: exactly what nobody needs goes, and only when asked."""

import hashlib
import io
import json
import os
import sqlite3
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest
from colours import folder_of, picture, register
from filelock import FileLock
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from typer.testing import CliRunner

from thawline.activations import ActivationStore
from thawline.cleaning import Item, Survey, parse_age, parse_kinds, remove, survey
from thawline.cli import app
from thawline.config import DataConfig, SearchConfig
from thawline.data import mirror, scan
from thawline.exceptions import ConfigError, TrackingError
from thawline.registry import MlflowRegistry, ModelName, log_packaged_model
from thawline.search.study import Study
from thawline.search.trial_result import TrialResult, trial_folder
from thawline.tracking import MlflowStore, MlflowTracker, connect, start_study_run
from thawline.training import EpochResult

DAY = 86400.0
MONTH = 30 * DAY


def open_study(home: Path, name: str = "pets", storage: str | None = None) -> Study:
    config = SearchConfig.build(
        {"data": {"path": "photos"}, "train": {"epochs": 4}, "study": {"name": name, "storage": storage}}
    )
    return Study.open(home, name, config, {"resnet18": 5}, "f")


def trial(study: Study, home: Path, state: str | None, value: float = 0.5, run_id: str | None = None) -> int:
    """A trial that ended so, or runs (``None``), and left two checkpoints, of which the first is the better one."""
    asked = study.draw(1, trials=1000)[0]
    study.report(asked.number, EpochResult(1, {"val/accuracy": value}, 0))
    for epoch in (1, 2):
        write(trial_folder(home, study.name, asked.number) / f"epoch-000{epoch}.safetensors", b"w" * 100)
    if state is not None:
        checkpoint = f"studies/{study.name}/trial-{asked.number:03d}/epoch-0001.safetensors"
        study.tell(TrialResult(asked.number, state, value, 1, 2, 1.0, "", run_id, checkpoint))  # type: ignore[arg-type]
    return asked.number


def write(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def grow_old(path: Path, days: float = 45) -> None:
    """As if nobody had written to any of it for so long."""
    then = time.time() - days * DAY
    for each in (path, *path.rglob("*")):
        if not each.is_symlink():
            os.utime(each, (then, then))


def snapshot(folder: Path) -> dict[str, str]:
    """All files by content; without locks, which are empty, and what SQLite keeps beside a database that is open."""
    return {
        str(path.relative_to(folder)): os.readlink(path)  # noqa: PTH115
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_symlink() or (path.is_file() and not path.name.endswith((".lock", "-wal", "-shm")))
    }


def gone(before: dict[str, str], home: Path) -> set[str]:
    after = snapshot(home)
    assert after.items() <= before.items(), "what stays is unchanged, and nothing is new"
    return before.keys() - after.keys()


def clean(home: Path, *kinds: str, age: float = MONTH, **options: Any) -> tuple[Survey, list[str]]:
    found = survey(home, older_than=age, kinds=parse_kinds(kinds), **options)
    return found, [str(failure) for failure in remove(found)]


def named(found: Survey, kind: str) -> list[str]:
    return [item.name for item in found.items if item.kind == kind]


@pytest.fixture
def pets(own_home: Path) -> Study:
    """A study whose search was killed 45 days ago: its trial 4 is not finished, trial 1 is the best."""
    study = open_study(own_home)
    for state, value in (("complete", 0.6), ("complete", 0.9), ("failed", 0.99), ("pruned", 0.3), (None, 0.7)):
        trial(study, own_home, state, value)
    write(own_home / "studies" / "pets" / "plan-resnet18.json")
    grow_old(own_home / "studies")
    return study


# ------------------------------------------------------------------------------------------------- studies' own files


def test_checkpoints_of_finished_trials_go_but_the_best_one_and_those_of_an_unfinished_trial_stay(
    pets: Study, own_home: Path
) -> None:
    before = snapshot(own_home)
    found, failures = clean(own_home, "checkpoints")
    assert failures == []
    checkpoints = {
        f"studies/pets/trial-00{number}/epoch-000{epoch}.safetensors" for number in range(4) for epoch in (1, 2)
    }
    checkpoints -= {"studies/pets/trial-001/epoch-0001.safetensors"}
    assert gone(before, own_home) == checkpoints
    (item,) = found.items
    assert (item.name, set(item.parts), item.bytes) == ("studies/pets", checkpoints, 700)
    assert [path.name for path in sorted((own_home / "studies" / "pets").glob("trial-*"))] == ["trial-001", "trial-004"]
    best = open_study(own_home).best()
    assert best is not None
    assert best.result is not None
    assert (own_home / str(best.result.checkpoint)).exists(), "the model of the study can still be made"


def test_a_study_that_was_used_lately_keeps_everything(pets: Study, own_home: Path) -> None:
    write(own_home / "studies" / "pets" / "trial-004" / "within-epoch.safetensors")
    assert clean(own_home, "checkpoints")[0].items == ()
    grow_old(own_home / "studies")
    assert named(clean(own_home, "checkpoints")[0], "checkpoints") == ["studies/pets"]


def test_a_study_that_is_being_run_keeps_everything_and_the_caches(pets: Study, own_home: Path) -> None:
    write(own_home / "cache" / "decoded" / "d.npy")
    write(own_home / "studies" / "pets" / "trial-004" / "epoch-0003.tmp")
    grow_old(own_home)
    with FileLock(own_home / "studies" / "pets" / "study.lock"):
        before = snapshot(own_home)
        found, failures = clean(own_home)
        assert (found.items, failures, gone(before, own_home)) == ((), [], set())
        assert found.notes == ("The study pets is running: it is kept, and so are the caches.",)
    found, _ = clean(own_home)
    assert {item.kind for item in found.items} == {"checkpoints", "decoded", "temporary"}


def test_a_study_that_begins_between_looking_and_removing_keeps_everything(pets: Study, own_home: Path) -> None:
    found = survey(own_home, older_than=MONTH)
    assert named(found, "checkpoints") == ["studies/pets"]
    with FileLock(own_home / "studies" / "pets" / "study.lock"):
        assert [str(failure) for failure in remove(found)] == ["studies/pets: it is in use"]
    write(own_home / "studies" / "pets" / "trial-004" / "epoch-0003.safetensors")
    assert [str(failure) for failure in remove(found)] == ["studies/pets: it was used a moment ago"]
    assert len(list((own_home / "studies").rglob("*.safetensors"))) == 11


def test_a_study_in_a_database_is_busy_while_one_of_its_trials_has_a_lease(own_home: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    study = open_study(own_home, storage=url)
    trial(study, own_home, "complete")
    trial(study, own_home, "complete", 0.6)
    trial(study, own_home, None)
    grow_old(own_home)
    with closing(sqlite3.connect(tmp_path / "studies.db")) as database, database:
        database.execute("UPDATE thawline_leases SET owner = owner || '-other'")  # a process beside this one
    found = survey(own_home, older_than=MONTH, storage=url)
    assert found.items == ()
    assert found.notes == ("The study pets is running: it is kept, and so are the caches.",)
    with closing(sqlite3.connect(tmp_path / "studies.db")) as database, database:
        database.execute("DELETE FROM thawline_leases")
    assert named(survey(own_home, older_than=MONTH, storage=url), "checkpoints") == ["studies/pets"]


def test_folders_of_studies_that_are_gone_go_whole(pets: Study, own_home: Path) -> None:
    for name in ("old", "young"):
        write(own_home / "studies" / name / "trial-000" / "epoch-0001.safetensors")
        write(own_home / "tensorboard" / name / "trial-000" / "events.out.tfevents.1")
    write(own_home / "tensorboard" / "pets" / "trial-000" / "events.out.tfevents.1")
    write(own_home / "studies" / ".hidden" / "file")
    grow_old(own_home)
    for top in ("studies", "tensorboard"):
        grow_old(own_home / top / "young", days=1)
    before = snapshot(own_home)
    found, failures = clean(own_home, "studies", "tensorboard")
    assert failures == []
    assert [item.name for item in found.items] == ["studies/old", "tensorboard/old"]
    assert gone(before, own_home) == {
        "studies/old/trial-000/epoch-0001.safetensors",
        "tensorboard/old/trial-000/events.out.tfevents.1",
    }
    assert not (own_home / "studies" / "old").exists()


@pytest.mark.parametrize("journal", [False, True])
def test_where_the_studies_are_kept_must_be_known_before_a_folder_is_called_orphaned(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: bool
) -> None:
    """A deployment keeps its studies in a database; a clean-up from another shell would see none."""
    url = f"sqlite:///{tmp_path}/studies.db"
    open_study(own_home, "elsewhere", storage=url)
    if journal:
        open_study(own_home, "here")
        monkeypatch.setenv("THAWLINE_STORAGE", url)
    for name in ("elsewhere", "here"):
        write(own_home / "studies" / name / "plan.json")
    grow_old(own_home / "studies")
    found, _ = clean(own_home, "studies")
    assert found.items == ()
    assert [note for note in found.notes if "It is not clear where studies are stored" in note]
    if not journal:
        assert named(clean(own_home, "studies", storage=url)[0], "studies") == ["studies/here"]


def test_a_study_that_mlflow_knows_in_another_database_is_not_orphaned(store: MlflowStore, pets: Study) -> None:
    url = "postgresql://me:***@host/optuna"
    start_study_run(store, study="elsewhere", params={"study.storage": url}, tags={})
    start_study_run(store, study="deleted", params={"study.storage": "None"}, tags={})
    for name in ("elsewhere", "deleted"):
        write(store.home / "studies" / name / "plan.json")
    grow_old(store.home / "studies")
    found, _ = clean(store.home, "studies")
    assert named(found, "studies") == ["studies/deleted"]
    assert f"Files of the study elsewhere are kept: its storage is {url}, which --storage does not name." in found.notes


def test_what_mlflow_has_not_got_yet_stays(pets: Study, own_home: Path) -> None:
    waiting = own_home / "studies" / "pets" / "trial-000" / "epoch-0001.safetensors"
    orphan = write(own_home / "studies" / "old" / "trial-000" / "epoch-0001.safetensors")
    lines = [{"record": {"kind": "artifact", "path": str(path), "folder": ""}} for path in (waiting, orphan)]
    lines.append({"record": {"kind": "metrics", "metrics": []}})
    checkpoint = own_home / "studies" / "pets" / "trial-001" / "epoch-0002.safetensors"
    lines.append({"record": {"kind": "checkpoint", "path": str(checkpoint), "name": "trial-01"}})
    unsent = write(own_home / "unsent" / "pets-000.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    write(own_home / "unsent" / ".pets-000.jsonl.1.2")
    write(own_home / "unsent" / "other.tmp")
    grow_old(own_home)
    found, _ = clean(own_home)
    assert waiting.exists()
    assert orphan.exists()
    assert checkpoint.exists()
    assert len(list(unsent.parent.iterdir())) == 3
    assert found.notes == ("studies/old is kept: it contains files that MLflow has not received yet.",)
    assert not waiting.with_name("epoch-0002.safetensors").exists(), "the others of the trial are gone"

    unsent.write_bytes(b'{"record": ')
    with pytest.raises(ConfigError, match=r"pets-000\.jsonl lists records for MLflow, but cannot be read"):
        clean(own_home)


# ------------------------------------------------------------------------------------------------------------- caches


def test_cache_entries_go_by_their_last_use(own_home: Path) -> None:
    for kind, suffix in (("decoded", "npy"), ("tokens", "npy"), ("activations", "bin")):
        for digest, days in (("old", 45.0), ("used", 45.0), ("young", 1.0), ("half", 45.0)):
            folder = own_home / "cache" / kind
            for name in (f"{digest}.partial",) if digest == "half" else (f"{digest}.{suffix}", f"{digest}.json"):
                grow_old(write(folder / name, b"x" * 50), days)
            grow_old(write(folder / f"{digest}.lock", b""), days)
        os.utime(own_home / "cache" / kind / "used.json")  # as opening an entry does
    before = snapshot(own_home)
    found, failures = clean(own_home, "decoded", "tokens", "activations")
    assert failures == []
    assert gone(before, own_home) == {
        *(f"cache/{kind}/{name}" for kind in ("decoded", "tokens") for name in ("old.npy", "old.json", "half.partial")),
        *(f"cache/activations/{name}" for name in ("old.bin", "old.json", "half.partial")),
    }
    assert found.bytes == 450


def test_an_entry_that_is_being_built_or_was_just_used_stays(own_home: Path) -> None:
    folder = own_home / "cache" / "activations"
    for name in ("built.partial", "used.json", "used.bin"):
        write(folder / name)
    grow_old(own_home)
    found = survey(own_home, older_than=MONTH)
    os.utime(folder / "used.json")
    with FileLock(folder / "built.lock"):
        assert [failure.name for failure in remove(found)] == [
            "cache/activations/built.partial",
            "cache/activations/used.json",
        ]
    assert {path.name for path in folder.iterdir()} >= {"built.partial", "used.json", "used.bin"}


def test_an_activation_store_works_after_it_was_cleaned(own_home: Path) -> None:
    store = ActivationStore(own_home / "cache" / "activations", budget=10**6)
    for name in ("a.bin", "a.json", "a.progress"):
        write(store.folder / name, b"x" * 10)
    grow_old(store.folder)
    assert store.bytes_used() == 10
    clean(own_home, "activations")
    assert store.bytes_used() == 0
    assert [path.name for path in store.folder.iterdir()] == ["a.lock"]


def test_unpacked_data_that_no_search_used_go_with_their_folder(own_home: Path, tmp_path: Path) -> None:
    def look_at(name: str) -> int:
        return len(scan(DataConfig(path=tmp_path / f"{name}.zip")).rows)

    for name in ("old", "used"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for number in range(60):
                image = io.BytesIO()
                Image.new("RGB", (4, 4), (number, len(name), 0)).save(image, "PNG")
                archive.writestr(f"{'ab'[number % 2]}/{number}.png", image.getvalue())
        assert look_at(name) == 60
    grow_old(own_home)
    look_at("used")
    (old,) = (path.parent for path in (own_home / "cache" / "unpacked").glob("*/old"))
    found, failures = clean(own_home, "unpacked")

    assert (named(found, "unpacked"), failures) == ([f"cache/unpacked/{old.name}"], [])
    assert [path.name for path in (own_home / "cache" / "unpacked").glob("*/*")] == ["used"]
    assert look_at("old") == 60


def test_what_a_killed_process_has_unpacked_goes_unless_it_is_being_unpacked_again(own_home: Path) -> None:
    place = own_home / "cache" / "unpacked"
    for name in ("half", "again", "whole"):
        write(place / name / "pets" / "cat" / "1.png", b"x" * 10)
    grow_old(own_home)
    found = survey(own_home, older_than=MONTH, kinds=("unpacked",))
    assert named(found, "unpacked") == [f"cache/unpacked/{name}" for name in ("again", "half", "whole")]
    assert found.bytes == 30
    assert "died" in found.items[0].why

    write(place / "whole.json", b"[]")  # another process has unpacked it since, with the times of its members
    with FileLock(place / "again.lock"):
        assert [failure.name for failure in remove(found)] == ["cache/unpacked/again", "cache/unpacked/whole"]
    assert [path.name for path in place.iterdir() if path.is_dir()] == ["again", "whole"]


@pytest.fixture
def mirrored(own_home: Path) -> Iterator[Callable[[str], Path]]:
    def make(name: str) -> Path:
        files = fsspec.filesystem("memory")
        for path in (f"/{name}/cat/a.png", f"/{name}/dog/b.tmp"):
            files.pipe_file(path, b"image")
        folder = own_home / "cache" / "mirrors" / f"digest-of-{name}" / name
        mirror(f"memory://{name}", folder)
        return folder

    yield make
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def test_mirrors_that_no_search_used_go_with_their_folder(mirrored: Callable[[str], Path], own_home: Path) -> None:
    old, used = mirrored("old"), mirrored("used")
    grow_old(own_home)
    mirror("memory://used", used)  # nothing has changed there, but it was looked at
    before = snapshot(own_home)
    found, failures = clean(own_home, "mirrors")
    assert (named(found, "mirrors"), failures) == (["cache/mirrors/digest-of-old/old"], [])
    assert all(path.startswith("cache/mirrors/digest-of-old/") for path in gone(before, own_home))
    assert not old.parent.exists()
    assert mirror("memory://used", used).fetched == 0
    assert mirror("memory://old", old).fetched == 2


def test_a_mirror_whose_removal_was_killed_is_a_mirror_still(
    mirrored: Callable[[str], Path], own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mirrored("old")
    grow_old(folder / ".thawline-mirror" / "index.json")
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name == "b.tmp":
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            clean(own_home, "mirrors")
    assert not (folder / "cat").exists()
    assert mirror("memory://old", folder).fetched == 1
    assert (folder / "cat" / "a.png").read_bytes() == b"image"


# ------------------------------------------------------------------------------------------------ what the dead left


def test_temporary_files_of_the_dead_go_and_those_of_the_living_stay(
    pets: Study, mirrored: Callable[[str], Path], own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = mirrored("photos") / ".thawline-mirror"
    dead = [
        write(own_home / "studies" / "pets" / "trial-004" / "epoch-0003.tmp"),
        write(own_home / "studies" / "pets" / ".plan-resnet18.json.ab12.partial"),
        write(own_home / "cache" / "activations" / "young.json.tmp"),
        write(state / ".index.json.cd34.partial"),
        write(own_home / "tmp" / "thawline-abcd1234" / "model.safetensors"),
    ]
    grow_old(own_home, days=1)
    living = [
        write(own_home / "studies" / "pets" / "trial-004" / "epoch-0004.tmp"),
        write(own_home / "tmp" / "thawline-metrics-abcd1234" / "gauge.db"),
        write(own_home / "tmp" / "thawline-efgh5678" / "model.safetensors"),
        write(own_home / "prefect" / "storage" / "result.tmp"),
    ]
    grow_old(living[1].parent)
    grow_old(living[3].parent)
    monkeypatch.setattr("tempfile.tempdir", str(own_home / "tmp"))
    before = snapshot(own_home)
    _, failures = clean(own_home)
    assert failures == []
    assert gone(before, own_home) == {str(path.relative_to(own_home)) for path in dead}


def test_nothing_outside_the_home_is_touched(
    pets: Study, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    for name in ("trial-000/epoch-0001.safetensors", "thawline-abcd1234/file", "old.npy", "old.json", "precious.tmp"):
        write(outside / name)
    grow_old(outside)
    monkeypatch.setattr("tempfile.tempdir", str(outside))
    (own_home / "studies" / "linked").symlink_to(outside)  # a study's folder that is a link
    (own_home / "cache").mkdir()
    (own_home / "cache" / "decoded").symlink_to(outside)
    orphan = own_home / "studies" / "old"
    orphan.mkdir()
    (orphan / "trial-000").symlink_to(outside / "trial-000")  # a folder that goes, with links in it
    (orphan / "epoch-0001.safetensors").symlink_to(outside / "precious.tmp")
    grow_old(own_home)
    links = {orphan / "trial-000", orphan / "epoch-0001.safetensors"}
    for link in (*links, own_home / "studies" / "linked", own_home / "cache" / "decoded"):
        os.utime(link, (0, 0), follow_symlinks=False)
    before = snapshot(outside)
    found, failures = clean(own_home)
    assert failures == []
    (item,) = (item for item in found.items if item.kind == "studies")  # a positive control
    assert (item.name, set(item.parts)) == ("studies/old", {str(link.relative_to(own_home)) for link in links})
    assert not orphan.exists()
    assert snapshot(outside) == before
    assert (own_home / "studies" / "linked").is_symlink()
    assert (own_home / "cache" / "decoded").is_symlink()


# ------------------------------------------------------------------------------------------------------------- MLflow


def run_of(store: MlflowStore, study: str, number: int, status: str, state: str, days: float = 45) -> str:
    tags = {"thawline.role": "trial", "thawline.study": study, "thawline.trial": str(number), "thawline.state": state}
    run_id = str(store.client.create_run(store.experiment_id, tags=tags).info.run_id)
    store.client.log_text(run_id, "x" * 1000, "log.txt")
    store.client.set_terminated(run_id, status, int(1000 * (time.time() - days * DAY)))
    return run_id


def alive(store: MlflowStore, run_id: str) -> bool:
    return bool(store.client.get_run(run_id).info.lifecycle_stage == "active")


def test_runs_of_failed_trials_go_to_the_trash_and_those_with_a_result_stay(store: MlflowStore, pets: Study) -> None:
    parent = start_study_run(store, study="pets", params={}, tags={})
    store.client.set_terminated(parent, "FAILED", int(1000 * (time.time() - 45 * DAY)))
    failed = run_of(store, "pets", 2, "FAILED", "failed")
    lost = run_of(store, "gone", 0, "KILLED", "")
    kept = {
        "complete": run_of(store, "pets", 0, "FINISHED", "complete"),
        "pruned": run_of(store, "pets", 3, "KILLED", "pruned"),
        "unfinished, killed by Ctrl-C": run_of(store, "pets", 4, "KILLED", ""),
        "pruned, of a study that is gone": run_of(store, "gone", 1, "KILLED", "pruned"),
        "young": run_of(store, "gone", 2, "FAILED", "failed", days=1),
        "the study's own": parent,
    }
    found = survey(store.home, older_than=MONTH, kinds=["runs"])
    assert all(alive(store, run_id) for run_id in (failed, lost, *kept.values()))
    assert [(item.name, item.parts, item.bytes) for item in found.items] == [
        ("failed trials of the study gone", (lost,), 1000),
        ("failed trials of the study pets", (failed,), 1000),
    ]
    assert f"mlflow gc --backend-store-uri {store.uri} --tracking-uri {store.uri}" in found.notes[0]
    assert remove(found) == []
    assert [alive(store, run_id) for run_id in (failed, lost)] == [False, False]
    assert {why: alive(store, run_id) for why, run_id in kept.items()} == dict.fromkeys(kept, True)
    assert survey(store.home, older_than=MONTH, kinds=["runs"]).items == ()
    store.client.restore_run(failed)
    assert store.client.download_artifacts(failed, "log.txt"), "whatever was a mistake can be taken back"


def test_what_a_registered_version_comes_from_stays_and_still_predicts(
    store: MlflowStore, pets: Study, folder: Path, own_home: Path
) -> None:
    """All of it is older than the age, and every run has failed: only the registry protects it."""

    def packaged(number: int) -> tuple[str, str]:
        run_id = run_of(store, "gone", number, "RUNNING", "failed")
        uri = log_packaged_model(store, run_id, folder, "birds")
        store.client.set_terminated(run_id, "FAILED", int(1000 * (time.time() - 45 * DAY)))
        return run_id, uri

    registry = MlflowRegistry(store)
    versions = [packaged(0), packaged(1)]
    for run_id, uri in versions:
        registry.register("birds", uri, run_id=run_id, study="gone", tags={})
    store.client.copy_model_version("models:/birds/2", "birds-abroad")
    store.client.delete_model_version("birds", "2")  # the copy still needs its files
    unused, unused_uri = packaged(2)
    assert survey(own_home, older_than=MONTH, kinds=["models"]).items == ()

    found, failures = clean(own_home, age=-1.0)  # whatever was made until now
    assert failures == []
    parts = {item.kind: set(item.parts) for item in found.items if item.kind in ("runs", "models")}
    assert parts == {"runs": {unused}, "models": {unused_uri.removeprefix("models:/")}}
    assert not alive(store, unused)
    for name in ("birds", "birds-abroad"):
        (answer,) = registry.load(ModelName(name, None, "1")).predict([picture("green")])
        assert not isinstance(answer, str)
        assert answer.class_name == "green"
    assert all(alive(store, run_id) for run_id, _ in versions)
    assert folder_of(store, versions[0][1]).is_dir()


@pytest.fixture
def champion_elsewhere(store: MlflowStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of the package of a model that was registered in another database than the runs are in."""
    registry = f"sqlite:///{store.home}/models.db"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", registry)
    apart = connect(store.uri, home=store.home, experiment="thawline")
    start_study_run(apart, study="pets", params={}, tags={})
    run_id = run_of(apart, "pets", 0, "RUNNING", "complete")
    uri = log_packaged_model(apart, run_id, folder, "birds")
    MlflowRegistry(apart).register("birds", uri, run_id=run_id, study="pets", tags={})
    apart.client.set_terminated(run_id, "FINISHED", int(1000 * (time.time() - 45 * DAY)))
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")
    return uri.removeprefix("models:/")


def test_what_is_registered_in_another_registry_than_is_looked_at_is_left_alone(
    store: MlflowStore, pets: Study, champion_elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = run_of(store, "pets", 2, "FAILED", "failed")
    found = survey(store.home, older_than=-1.0, kinds=["models", "runs"])
    assert found.items == ()
    (note,) = found.notes
    assert f"its models are registered in sqlite:///{store.home}/models.db, which is not checked" in note
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{store.home}/models.db")
    found = survey(store.home, older_than=-1.0, kinds=["models", "runs"])
    assert [item.parts for item in found.items] == [(failed,)]
    other = connect(f"sqlite:///{store.home}/others.db", home=store.home, experiment="thawline")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", other.uri)
    assert survey(store.home, older_than=-1.0, kinds=["models", "runs"]).items == ()


def test_a_registry_that_is_not_there_is_reported_and_not_made(
    store: MlflowStore, pets: Study, champion_elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{store.home}/typo.db")
    with pytest.raises(TrackingError, match=r"There is no MLflow database .*typo\.db\. Correct MLFLOW_REGISTRY_URI"):
        survey(store.home, older_than=-1.0)
    assert not (store.home / "typo.db").exists()


def test_a_package_that_was_registered_before_registries_were_recorded_is_left_alone(
    store: MlflowStore, pets: Study, champion_elsewhere: str
) -> None:
    (run,) = store.client.search_runs([store.experiment_id], "tags.`thawline.role` = 'study'")
    for key in [key for key in run.data.tags if key.startswith("thawline.registry.")]:
        store.client.delete_tag(run.info.run_id, key)
    assert survey(store.home, older_than=-1.0, kinds=["models"]).items == ()


def test_a_version_whose_package_lies_in_the_trash_is_warned_of(store: MlflowStore, folder: Path) -> None:
    register(store, folder, "birds")
    (model,) = store.client.search_logged_models([store.experiment_id])
    store.client.delete_logged_model(model.model_id)
    open_study(store.home)
    run_of(store, "gone", 0, "FAILED", "failed")
    found = survey(store.home, older_than=MONTH, kinds=["runs"])
    assert [note for note in found.notes if "MLflow's trash also contains the package of birds/1" in note]


def test_of_a_store_that_others_use_only_what_this_home_has_recorded_goes(
    store: MlflowStore, tmp_path: Path, folder: Path
) -> None:
    elsewhere = tmp_path / "other-home"
    study = open_study(elsewhere)
    mine = run_of(store, "pets", 0, "FAILED", "failed")
    trial(study, elsewhere, "failed", run_id=mine)
    others = [run_of(store, "pets", 0, "FAILED", "failed"), run_of(store, "theirs", 0, "FAILED", "failed")]
    log_packaged_model(store, others[0], folder, "birds")
    found, failures = clean(elsewhere, "runs", "models", age=-1.0, tracking_uri=store.uri)
    assert failures == []
    assert [item.parts for item in found.items] == [(mine,)]
    assert [alive(store, run_id) for run_id in (mine, *others)] == [False, True, True]


def test_nothing_is_removed_where_mlflow_does_not_answer(pets: Study, own_home: Path) -> None:
    with pytest.raises(TrackingError, match="cannot be reached"):
        survey(own_home, older_than=MONTH, tracking_uri="http://127.0.0.1:9")


def test_a_failed_trials_checkpoints_go_with_its_run_but_for_registered_ones(
    store: MlflowStore, own_home: Path, tmp_path: Path
) -> None:
    open_study(store.home)
    (tmp_path / "epoch-0001.safetensors").write_bytes(b"x" * 500)

    def checkpointed(number: int) -> tuple[str, str]:
        run_id = run_of(store, "gone", number, "RUNNING", "failed")
        tracker = MlflowTracker.for_study(store, run_id=run_id, study="gone")
        tracker.log_checkpoint(tmp_path / "epoch-0001.safetensors", name=f"trial-{number:02d}", epoch=1, metrics={})
        assert tracker.close("FAILED").problem is None
        store.client.set_terminated(run_id, "FAILED", int(1000 * (time.time() - 45 * DAY)))
        (output,) = store.client.get_run(run_id).outputs.model_outputs
        return run_id, output.model_id

    run_id, _ = checkpointed(0)
    registered_run, registered = checkpointed(1)
    MlflowRegistry(store).register("birds", f"models:/{registered}", run_id=registered_run, study="gone", tags={})
    found, failures = clean(own_home, "runs", "models", age=-1.0)
    assert failures == []
    assert [(item.parts, item.bytes) for item in found.items] == [((run_id,), 1500)]
    assert not alive(store, run_id)
    left = store.client.search_logged_models([store.experiment_id])
    assert [model.model_id for model in left] == [registered]


# ------------------------------------------------------------------------------------------------------- the command


def full_home(home: Path) -> None:
    """Something of every kind that is a file."""
    study = open_study(home)
    trial(study, home, "complete", 0.6)
    trial(study, home, "complete", 0.9)
    write(home / "studies" / "old" / "trial-000" / "epoch-0001.safetensors")
    write(home / "studies" / "pets" / ".plan.json.ab12.partial")
    write(home / "tensorboard" / "old" / "events")
    write(home / "cache" / "decoded" / "d.npy")
    write(home / "cache" / "activations" / "a.bin")
    write(home / "unsent" / "pets-001.jsonl", b"")
    grow_old(home)


def test_without_yes_nothing_changes_and_with_it_all_that_was_shown_goes(store: MlflowStore) -> None:
    home = store.home
    full_home(home)
    failed = run_of(store, "old", 0, "FAILED", "failed")
    before, paths = snapshot(home), set(home.rglob("*.lock"))
    shown = CliRunner().invoke(app, ["clean"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert (gone(before, home), set(home.rglob("*.lock"))) == (set(), paths)
    assert "Nothing was removed. The same command with --yes removes all of this" in " ".join(shown.output.split())
    for place in ("studies/pets", "studies/old", "tensorboard/old", "cache/decoded/d.npy", "cache/activations/a.bin"):
        assert place in shown.output

    listed = json.loads(CliRunner().invoke(app, ["clean", "--json"]).output)
    assert listed["removed"] is False
    assert {item["kind"] for item in listed["items"]} == {
        *("checkpoints", "studies", "tensorboard", "decoded", "activations", "temporary", "runs")
    }
    parts = {part for item in listed["items"] for part in item["parts"]}
    removed = json.loads(CliRunner().invoke(app, ["clean", "--yes", "--json"]).output)
    assert (removed["removed"], removed["failures"], removed["items"]) == (True, [], listed["items"])
    assert gone(before, home) == parts - {failed}
    assert not alive(store, failed)
    again = CliRunner().invoke(app, ["clean", "--yes"])
    assert (again.exit_code, again.output.strip()) == (0, "There is nothing to remove.")


def test_what_cannot_be_removed_is_named_and_the_rest_goes(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_home(own_home)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "d.npy":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    ended = CliRunner().invoke(app, ["clean", "--yes"])
    assert ended.exit_code == 1
    assert "Not removed: cache/decoded/d.npy: Permission denied" in ended.stderr
    assert "except 1" in " ".join(ended.stdout.split())
    assert (own_home / "cache" / "decoded" / "d.npy").exists()
    assert not (own_home / "cache" / "activations" / "a.bin").exists()
    assert not (own_home / "studies" / "old").exists()


def test_a_clean_up_that_was_killed_leaves_a_home_that_works_and_is_resumed(
    pets: Study, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(own_home / "studies" / "old" / "trial-000" / "epoch-0001.safetensors")
    grow_old(own_home)
    unlink, count = Path.unlink, 0

    def killed(path: Path, missing_ok: bool = False) -> None:
        nonlocal count
        count += 1
        if count > 3:
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            clean(own_home)
    study = open_study(own_home)
    with study.held():
        best = study.best()
    assert best is not None
    assert best.result is not None
    assert (own_home / str(best.result.checkpoint)).exists()
    assert clean(own_home)[1] == []
    assert {path.parent.name for path in own_home.rglob("*.safetensors")} == {"trial-001", "trial-004"}


def test_only_what_is_asked_for_goes(own_home: Path) -> None:
    full_home(own_home)
    before = snapshot(own_home)
    assert CliRunner().invoke(app, ["clean", "--yes", "--only", "decoded", "--only", "tensorboard"]).exit_code == 0
    assert gone(before, own_home) == {"cache/decoded/d.npy", "tensorboard/old/events"}


def test_an_empty_home_has_nothing_to_remove_and_is_not_made(own_home: Path) -> None:
    assert CliRunner().invoke(app, ["clean", "--yes"]).output.strip().endswith("There is nothing to remove.")
    assert not own_home.exists()


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 30 * DAY), ("12h", DAY / 2), ("2w", 14 * DAY), ("0d", 0.0), ("0", 0.0)]
)
def test_an_age_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["30", "d", "-1d", "1.5d", "30 d", "1y", ""])
def test_any_other_age_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--older-than takes an age such as 30d, 12h or 2w"):
        parse_age(text)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--only takes checkpoints, studies, .* but got 'everything'"):
        parse_kinds(["decoded", "everything"])


def test_an_item_says_what_it_is_in_plain_values() -> None:
    item = Item("runs", "failed trials", ("a", "b"), None, "old", list)
    assert item.as_dict() == {"kind": "runs", "name": "failed trials", "bytes": None, "why": "old", "parts": ["a", "b"]}
