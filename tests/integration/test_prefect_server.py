"""Prefect's API server as a process that Thawline manages: one for all, and never in anybody's way."""

import base64
import os
import signal
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import Forks
from said import Said

from thawline.exceptions import PrefectServerError
from thawline.prefect_server import Address, Files, ManagedServer, keep_up, shut_down, used

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("prefect-server")]

PATIENCE = 240
"""Seconds for what takes a server's start, on a machine that is busy with other things."""
SEARCH = [
    *("--backbone", "mobilenet_v3_small", "--weights", "starter", "--image-size", "32", "--trials", "1"),
    *("--set", "data.workers=1", "--set", "tracking.report=false", "--set", "tracking.observe=false"),
    *("--set", "promotion.exports=[]"),
]


@pytest.fixture
def home(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home that names no server, and has none afterwards."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(own_home / "prefect"))
    yield own_home
    shut_down(own_home)


def until(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)  # a process that ends by itself tells nobody


def answers(
    address: Address, path: str, *, password: str | None = None, body: bytes | None = None
) -> tuple[int, bytes]:
    """HTTP's status of a request, and what came back: of a POST if there is a body."""
    request = urllib.request.Request(f"{address.api}/{path}", body, {"Content-Type": "application/json"})
    if password is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return int(response.status), response.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def server_of(address: Address) -> psutil.Process:
    (process,) = psutil.Process(address.pid).children()
    return process


@pytest.mark.timeout(900)
def test_three_searches_at_once_in_a_fresh_home_end_well_and_share_one_server(
    home: Path,
    tmp_path: Path,
    draw_pictures: Callable[..., Path],
    environment_of: Callable[[Path], dict[str, str]],
    first_process: Forks,
) -> None:
    searches, outputs = [], []
    try:
        for number in range(3):
            data = draw_pictures(tmp_path / f"shapes-{number}", count=8)
            search = first_process.start(["search", str(data), *SEARCH], environment_of(home), tmp_path)
            outputs.append([Said(search.stdout), Said(search.stderr)])
            searches.append(search)
        codes = [search.wait(2 * PATIENCE) for search in searches]
        said = [out.all() + err.all() for out, err in outputs]
    finally:
        for search in searches:
            search.kill()
            search.close()
    assert codes == [0, 0, 0], said
    assert not any("Traceback" in each or "warning" in each.lower() for each in said), said
    address = Files(home).read()
    assert address is not None
    assert answers(address, "flow_runs/count", password=address.password, body=b"{}") == (200, b"3")


def test_it_asks_for_a_password_that_only_its_user_can_read_and_comes_back_when_it_is_killed(home: Path) -> None:
    with used(home) as server:
        assert server is not None
        server.wait()
        address = server.address
        with pytest.raises(PrefectServerError, match="in use by another command"):
            shut_down(home)
        assert os.getsid(address.pid) == address.pid != os.getsid(0), "Ctrl-C in this terminal does not reach it"
        assert answers(address, "admin/version")[0] == 401
        assert answers(address, "admin/version", password=address.password)[0] == 200
        for file in Files(home).folder.iterdir():
            assert not stat.S_IMODE(file.stat().st_mode) & 0o077, file
        assert not stat.S_IMODE(Files(home).folder.stat().st_mode) & 0o077

        # The server alone: its supervisor keeps the port, and this request waits for the next.
        first = server_of(address)
        first.kill()
        assert answers(address, "admin/version", password=address.password)[0] == 200
        assert server_of(address).pid != first.pid

        # All of it: one of its users restarts it, at the same address.
        os.killpg(address.pid, signal.SIGKILL)
        until(lambda: server.address.pid != address.pid, "nobody started it again")
        assert (server.address.port, server.address.password) == (address.port, address.password)
        assert answers(server.address, "admin/version", password=address.password)[0] == 200
    assert shut_down(home)
    assert not psutil.pid_exists(server.address.pid) or psutil.Process(server.address.pid).status() == "zombie"


def test_it_ends_by_itself_when_its_last_user_has_left_unless_it_is_to_stay(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THAWLINE_SERVER_MINUTES", "0.001")
    address, _ = keep_up(home, None)
    assert answers(address, "health")[0] == 200, "it stays without users"
    Files(home).stay.unlink()
    with used(home) as server:
        assert server is not None
        server.wait()
        pid = server.address.pid
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", "it stays")
    assert not shut_down(home), "there is none left"


def test_up_that_is_stopped_before_the_server_answers_does_not_have_it_stay(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press_ctrl_c(server: ManagedServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ManagedServer, "wait", press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        keep_up(home, None)
    assert not Files(home).stay.exists()


def test_a_worker_gets_the_variables_of_the_command_that_asked_for_it_and_not_of_the_one_that_started_the_server(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worker() -> dict[str, str] | None:
        for process in psutil.Process(address.pid).children():
            with suppress(psutil.Error):
                if "worker" in process.cmdline():
                    return process.environ()
        return None

    monkeypatch.setenv("MLFLOW_RUN_ID", "a" * 32)  # as in an MLflow project, whose run no other search may adopt
    with used(home) as server:  # as of a search that ended before
        assert server is not None
        server.wait()
        address = server.address
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5001")
        assert keep_up(home, "local") == (address, False)
    until(lambda: "MLFLOW_TRACKING_URI" in (worker() or {}), "the worker does not have it")
    found = worker()
    assert found is not None
    assert found["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5001"
    assert (found["PREFECT_API_URL"], found["PREFECT_API_AUTH_STRING"]) == (address.api, address.password)
    assert not {"MLFLOW_RUN_ID", "PREFECT_SERVER_API_AUTH_STRING"} & found.keys()
    (stored,) = Files(home).folder.glob("*environment*")
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600, "it may contain passwords"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5002")
    assert keep_up(home, "local") == (address, True)
    assert keep_up(home, None) == (address, False)  # as to read the password again
    with pytest.raises(PrefectServerError, match=r"'local' runs already\. Stop it with `thawline down`"):
        keep_up(home, "other")
    assert Files(home).stay.read_text() == "local"
    assert Files(home).environment() == {
        **(Files(home).environment() or {}),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5001",
    }
    assert shut_down(home)
    assert not stored.exists()


def test_a_server_that_cannot_start_is_one_message_at_once_with_the_place_of_its_log(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{home}/no/such/folder.db")
    with used(home) as server:
        assert server is not None
        with pytest.raises(PrefectServerError, match=r"did not start: .*unable to open database file.*server\.log"):
            server.wait()


@pytest.mark.parametrize(
    "verb", [("promote", "shapes"), ("deploy", "score", "--data", "x", "--model", "m", "--out", "o.parquet")]
)
def test_a_named_server_that_does_not_answer_is_one_message_and_exit_code_2(
    verb: tuple[str, ...], home: Path, prepared: Callable[[Path], Path], forked: Callable[..., Any]
) -> None:
    prepared(home)
    (home.parent / "prefect.toml").write_text('[api]\nurl = "http://127.0.0.1:9/api"\n')
    ended = forked(*verb, home=home)
    assert ended.code == 2, ended.err
    assert "The Prefect server at http://127.0.0.1:9/api does not respond" in ended.err
    assert "Traceback" not in ended.err
