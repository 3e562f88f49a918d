"""A folder on object storage and its mirror, against a real S3 server on loopback."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from object_storage import Bucket, bucket, s3_server

from thawline.config import SearchConfig
from thawline.data import check_url, data_location, mirror, remote, scan
from thawline.exceptions import ConfigError, DataError

__all__ = ["bucket", "s3_server"]  # fixtures

STATE = ".thawline-mirror"
FILES = {"photos/cat/a.png": b"a" * 10, "photos/cat/b.png": b"b" * 20, "photos/dog/c.png": b"c" * 30}


@pytest.fixture
def photos(bucket: Bucket) -> str:
    """URL of a folder of three files, beside one of nearly the same name."""
    bucket.put({**FILES, "photos2/cat/other.png": b"not ours"})
    return f"{bucket.url}/photos"


@pytest.fixture
def in_memory() -> Iterator[Callable[[dict[str, bytes]], str]]:
    """Storage without a server, for what the protocol does not matter to."""
    files = fsspec.filesystem("memory")

    def fill(content: dict[str, bytes]) -> str:
        for path, data in content.items():
            files.pipe_file(f"/{path}", data)
        return "memory://photos"

    yield fill
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that somebody who reads the mirror finds."""
    files = (path for path in folder.rglob("*") if path.is_file() and STATE not in path.parts)
    return {f"photos/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in files}


# ------------------------------------------------------------------------------------------------------- mirroring


def test_a_mirror_holds_what_the_url_holds_and_a_second_look_fetches_nothing(photos: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    first = mirror(photos, tmp_path / "photos", lambda done, total: seen.append((done, total)))
    assert contents(tmp_path / "photos") == FILES
    assert (first.files, first.bytes, first.fetched, first.fetched_bytes, first.removed) == (3, 60, 3, 60, 0)
    assert (seen[0], seen[-1]) == ((0, 3), (3, 3))
    assert str(first) == f"{photos}: 3 files, 3 fetched (0.0 MB)"

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "photos").rglob("*.png")}
    second = mirror(photos, tmp_path / "photos")
    assert (second.files, second.fetched, second.removed) == (3, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "photos").rglob("*.png")} == before
    assert str(second) == f"{photos}: 3 files, nothing changed"


def test_what_is_new_changed_or_gone_there_is_so_here(bucket: Bucket, photos: str, tmp_path: Path) -> None:
    mirror(photos, tmp_path / "photos")
    bucket.put({"photos/cat/a.png": b"A" * 10, "photos/cat/deep/new.png": b"new"})  # the same size, another content
    bucket.remove("photos/dog/c.png")
    summary = mirror(photos, tmp_path / "photos")
    assert contents(tmp_path / "photos") == {
        "photos/cat/a.png": b"A" * 10,
        "photos/cat/b.png": b"b" * 20,
        "photos/cat/deep/new.png": b"new",
    }
    assert (summary.fetched, summary.removed) == (2, 1)
    assert not (tmp_path / "photos" / "dog").exists(), "an empty folder would be taken for a class"


def test_what_somebody_did_to_the_mirror_is_undone(photos: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    mirror(photos, folder)
    (folder / "cat" / "a.png").write_bytes(b"x" * 10)
    (folder / "cat" / "b.png").unlink()
    (folder / "dog" / "stranger.png").write_bytes(b"?")
    summary = mirror(photos, folder)
    assert contents(folder) == FILES
    assert (summary.fetched, summary.removed) == (2, 1)


def test_a_file_may_become_a_folder_and_the_other_way_round(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"photos/a": b"file", "photos/b/c": b"inner"})
    mirror(f"{bucket.url}/photos", tmp_path / "photos")
    for key in ("photos/a", "photos/b/c"):
        bucket.remove(key)
    bucket.put({"photos/a/c": b"inner", "photos/b": b"file"})
    mirror(f"{bucket.url}/photos", tmp_path / "photos")
    assert contents(tmp_path / "photos") == {"photos/a/c": b"inner", "photos/b": b"file"}


def test_a_whole_bucket_and_odd_but_harmless_names_are_mirrored(bucket: Bucket, tmp_path: Path) -> None:
    files = {f"photos/{name}": name.encode() for name in ("a b/[1]*?.png", "ü/ß.png", "...x/..y", "C#/a:b")}
    bucket.put({name.removeprefix("photos/"): content for name, content in files.items()})
    bucket.put({"empty/": b""})  # how consoles mark a folder
    mirror(bucket.url, tmp_path / "photos")
    assert contents(tmp_path / "photos") == files


def test_the_mirror_is_the_same_data_set_and_study_as_the_folder_itself(
    bucket: Bucket, fill: Callable[..., Path], tmp_path: Path, in_process: None
) -> None:
    numbers = {f"{name}/{index}.png": ord(name[0]) * 100 + index for name in ("cat", "dog") for index in range(40)}
    folder = fill(numbers)
    bucket.put({f"photos/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*.png")})
    there = SearchConfig.build({"data": data_location(f"{bucket.url}/photos/", tmp_path / "home")})
    here = SearchConfig.build({"data": data_location(str(folder), tmp_path / "home")})
    assert there.data.url == f"{bucket.url}/photos"
    assert here.data.url is None
    assert there.data.path.name == here.data.path.name == "photos"
    mirror(there.data.url, there.data.path)
    digest = scan(there.data).digest
    assert digest == scan(here.data).digest
    assert there.fingerprint(digest) == here.fingerprint(digest)


# ------------------------------------------------------------------------------------------ interrupted and together


def test_an_interrupted_mirror_keeps_what_it_had(photos: str, tmp_path: Path) -> None:

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mirror(photos, tmp_path / "photos", interrupt, together=1)
    assert len(contents(tmp_path / "photos")) == 2
    assert mirror(photos, tmp_path / "photos").fetched == 1
    assert contents(tmp_path / "photos") == FILES


@pytest.fixture
def often_switched() -> Iterator[None]:
    """Threads take turns a thousand times more often: what can come between two steps does."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 1000)
    yield
    sys.setswitchinterval(usual)


_KILLED = """
import os, signal, sys
from pathlib import Path
from thawline.data import mirror

def kill(done, total):
    if done == 2:
        (Path(sys.argv[2]) / ".thawline-mirror" / "partial" / "torn").write_bytes(b"half a fi")
        os.kill(os.getpid(), signal.SIGKILL)

mirror(sys.argv[1], Path(sys.argv[2]), kill, together=1, index_seconds=0.0)
"""


def test_a_killed_mirror_is_resumed_and_shows_no_torn_file(photos: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    killed = subprocess.run([sys.executable, "-c", _KILLED, photos, str(folder)], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert contents(folder).items() < FILES.items()
    summary = mirror(photos, folder)
    assert 1 <= summary.fetched <= 2, "the first was noted before the process died"
    assert contents(folder) == FILES
    assert sorted(path.name for path in (folder / STATE).iterdir()) == ["index.json", "lock"]


def test_several_at_once_share_the_work(photos: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        summaries = list(pool.map(lambda _: mirror(photos, tmp_path / "photos"), range(4)))
    assert sum(summary.fetched for summary in summaries) == 3
    assert [summary.files for summary in summaries] == [3] * 4
    assert contents(tmp_path / "photos") == FILES


def test_a_folder_that_another_marks_at_the_same_moment_is_no_foreign_one(tmp_path: Path, often_switched: None) -> None:
    with ThreadPoolExecutor(8) as pool:
        for number in range(100):
            list(pool.map(remote._mark, [tmp_path / str(number)] * 8))
            assert (tmp_path / str(number) / STATE).is_dir()


def test_a_file_that_changes_while_it_is_fetched_is_listed_and_fetched_again(
    in_memory: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = in_memory(FILES)
    find, calls = MemoryFileSystem.find, []

    def stale(self: MemoryFileSystem, path: str, **options: Any) -> Any:
        listed = find(self, path, **options)
        calls.append(path)
        if len(calls) == 1:
            listed["/photos/cat/a.png"] = {**listed["/photos/cat/a.png"], "size": 99}
            listed["/photos/cat/gone.png"] = {"name": "/photos/cat/gone.png", "size": 1, "type": "file", "created": 0}
        return listed

    monkeypatch.setattr(MemoryFileSystem, "find", stale)
    assert mirror(url, tmp_path / "photos").files == 3
    assert contents(tmp_path / "photos") == FILES

    def always_stale(self: MemoryFileSystem, path: str, **options: Any) -> Any:
        listed = find(self, path, **options)
        return {name: {**info, "size": 99} for name, info in listed.items()}

    monkeypatch.setattr(MemoryFileSystem, "find", always_stale)
    with pytest.raises(DataError, match=r"changes while it is read \(cat/a.png has 10 bytes, not 99\)"):
        mirror(url, tmp_path / "photos")


# -------------------------------------------------------------------------------------------- what must not happen


@pytest.mark.parametrize(
    "key",
    [
        "../outside.png",
        "cat/../../outside.png",
        "/outside.png",
        "cat//a.png",
        "./a.png",
        "..\\outside.png",
        "C:outside.png",
        "cat/" + "x" * 256,
        f"{STATE}/index.json",
    ],
)
def test_keys_that_are_no_files_below_the_folder_are_refused_by_name(bucket: Bucket, key: str, tmp_path: Path) -> None:
    bucket.put({**FILES, f"photos/{key}": b"out"})
    with pytest.raises(DataError, match=r"has 1 key that cannot be a file below a folder:\n  .*\n.*Rename or remove"):
        mirror(f"{bucket.url}/photos", tmp_path / "mirrors" / "photos")
    assert contents(tmp_path / "mirrors" / "photos") == {}
    assert [path.name for path in tmp_path.iterdir()] == ["mirrors"]
    assert [path.name for path in (tmp_path / "mirrors").iterdir()] == ["photos"]


def test_a_key_with_a_nul_is_refused(in_memory: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be a file below a folder"):
        mirror(in_memory({**FILES, "photos/cat/a\0b": b"out"}), tmp_path / "photos")


def test_a_file_that_is_a_folder_as_well_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"photos/cat": b"file", "photos/cat/a.png": b"inner"})
    with pytest.raises(DataError, match=r"has files that are also folders:\n  cat\n"):
        mirror(f"{bucket.url}/photos", tmp_path / "photos")


def test_a_folder_that_is_no_mirror_keeps_everything(photos: str, tmp_path: Path) -> None:
    own = tmp_path / "photos" / "mine.png"
    own.parent.mkdir()
    own.write_bytes(b"mine")
    with pytest.raises(DataError, match="is not a mirror, and its content would be lost"):
        mirror(photos, tmp_path / "photos")
    assert [path.name for path in own.parent.iterdir()] == ["mine.png"]
    own.unlink()
    assert mirror(photos, tmp_path / "photos").fetched == 3, "an empty folder may become one"


def test_a_mirror_of_another_url_is_refused(bucket: Bucket, photos: str, tmp_path: Path) -> None:
    mirror(photos, tmp_path / "photos")
    with pytest.raises(DataError, match=rf"is the mirror of {photos}, not of {bucket.url}/photos2"):
        mirror(f"{bucket.url}/photos2", tmp_path / "photos")
    assert contents(tmp_path / "photos") == FILES


def test_links_in_a_mirror_lead_nowhere_out_of_it(photos: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.png").write_bytes(b"precious")
    (outside / "z.png").write_bytes(b"precious too")
    folder = tmp_path / "photos"
    mirror(photos, folder)
    for path in (folder / "cat").iterdir():
        path.unlink()
    (folder / "cat").rmdir()
    (folder / "cat").symlink_to(outside)
    (folder / "dog" / "c.png").unlink()
    (folder / "dog" / "c.png").symlink_to(outside / "z.png")
    mirror(photos, folder)
    assert contents(folder) == FILES
    assert not (folder / "cat").is_symlink()
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {
        "a.png": b"precious",
        "z.png": b"precious too",
    }


def test_a_damaged_index_costs_a_new_fetch_and_nothing_else(photos: str, tmp_path: Path) -> None:
    mirror(photos, tmp_path / "photos")
    (tmp_path / "photos" / STATE / "index.json").write_text('{"url": "s3://')
    assert mirror(photos, tmp_path / "photos").fetched == 3
    assert contents(tmp_path / "photos") == FILES


# ------------------------------------------------------------------------------------------------------- what fails


def test_a_bucket_or_a_folder_that_is_not_there_is_said(bucket: Bucket, photos: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s3://no-such-bucket/x cannot be mirrored .*does not exist\. Correct the URL"):
        mirror("s3://no-such-bucket/x", tmp_path / "x")
    with pytest.raises(DataError, match=rf"{bucket.url}/fotos contains no files"):
        mirror(f"{bucket.url}/fotos", tmp_path / "fotos")
    with pytest.raises(DataError, match=rf"{photos}/cat/a.png is a file"):
        mirror(f"{photos}/cat/a.png", tmp_path / "a.png")


def test_an_emptied_bucket_does_not_empty_the_mirror(bucket: Bucket, photos: str, tmp_path: Path) -> None:
    mirror(photos, tmp_path / "photos")
    for key in FILES:
        bucket.remove(key)
    with pytest.raises(DataError, match="the existing mirror is unchanged"):
        mirror(photos, tmp_path / "photos")
    assert contents(tmp_path / "photos") == FILES


def test_missing_and_wrong_credentials_are_said(photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto import settings
    from moto.core.responses import ActionAuthenticatorMixin

    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)  # from now on the server asks who it is
    monkeypatch.setattr(ActionAuthenticatorMixin, "request_count", 0)
    with pytest.raises(DataError, match=r"Access Key Id .* does not exist.*Set credentials .* AWS_ACCESS_KEY_ID"):
        mirror(photos, tmp_path / "photos")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(DataError, match=r"Unable to locate credentials\. Set credentials .* AWS_ACCESS_KEY_ID"):
        mirror(photos, tmp_path / "photos")


def test_a_server_that_does_not_answer_is_said(photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(DataError, match=r"Could not connect to the endpoint.*AWS_ENDPOINT_URL"):
        mirror(photos, tmp_path / "photos")


def test_a_disk_that_is_too_small_is_known_before_anything_is_fetched(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**6})())
    with pytest.raises(DataError, match=r"needs 0\.0 GB in .*, but 0\.0 GB are free\. Free some"):
        mirror(photos, tmp_path / "photos")
    assert contents(tmp_path / "photos") == {}


def test_a_storage_whose_package_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    check_url("s3://bucket/photos")
    check_url("memory://photos")
    with pytest.raises(DataError, match="fsspec does not support 'nowhere'"):
        check_url("nowhere://bucket/photos")
    registry = sys.modules["fsspec.registry"]
    monkeypatch.delitem(registry._registry, "s3", raising=False)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=re.escape("pip install 'thawline[s3]'")):
        check_url("s3://bucket/photos")


# ------------------------------------------------------------------------------------------- as a person writes it


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("s3://bucket/set/photos", "photos"),
        ("s3://bucket/photos/", "photos"),
        ("s3://bucket", "bucket"),
        ("gs://bucket/my photos (2)", "my-photos-2"),
        ("s3://bucket/фото", "images"),
        ("s3://bucket/..", "images"),
    ],
)
def test_a_url_has_a_mirror_in_home_that_bears_its_last_name(text: str, name: str, tmp_path: Path) -> None:
    location = data_location(text, tmp_path)
    path = Path(location["path"])
    assert path.name == name
    assert path.parents[1] == tmp_path / "cache" / "mirrors"
    assert location["url"] == text.rstrip("/")
    assert data_location(f"{text}/", tmp_path) == location
    assert Path(data_location(f"{text}x", tmp_path)["path"]).parent != path.parent


@pytest.mark.parametrize("text", ["photos", "/data/photos", "C:\\photos", "~/photos", "s3:/bucket"])
def test_a_path_stays_a_path(text: str, tmp_path: Path) -> None:
    assert data_location(text, tmp_path) == {"path": text}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:hunter2@bucket/photos", "credentials belong in the environment"),
        ("s3://key:12/hunter2@bucket/photos", "credentials belong in the environment"),
        ("S3://key:hunter2@bucket/photos", "credentials belong in the environment"),
        ("az://box/photos?sig=hunter2", "credentials belong in the environment"),
        ("zip://x::s3://key:hunter2@bucket", "must name one folder, without '::'"),
        ("http://127.0.0.1/photos", "must be object storage"),
        ("https://example.com/photos", "must be object storage"),
        ("file:///etc", "for a local folder, give its path"),
        ("s3://", "must be a URL of a folder such as"),
        ("s3://bucket/../other", r"must not contain '.' or '..'"),
        ("photos", "must be a URL of a folder such as"),
    ],
)
def test_urls_that_hold_secrets_or_are_no_storage_are_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.url: .*" + message) as caught:
        SearchConfig.build({"data": {"path": "photos", "url": url}})
    assert "hunter2" not in str(caught.value)
