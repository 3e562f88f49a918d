"""`thawline serve`, and the servers and workers of Prefect and MLflow, as processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from commands import Forks
from said import Said

from thawline.databases import prefect_database

__all__ = [
    "ASKS_OFTEN",
    "PREFECT",
    "ask_prefect",
    "clean_environment",
    "forked_server",
    "free_port",
    "memory_of",
    "mlflow_server",
    "prefect_server",
    "prefect_worker",
    "server",
]

PREFECT, MLFLOW = (str(Path(sys.executable).with_name(name)) for name in ("prefect", "mlflow"))
"""The commands of Prefect and MLflow."""

ASKS_OFTEN = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
"""Variables with which Prefect's worker, and a process that serves a deployment, poll more often than every ten
seconds."""


def clean_environment() -> dict[str, str]:
    """This process's environment, without variables of a home, a store or a server."""
    ours = ("PREFECT_", "MLFLOW_", "THAWLINE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(model: str, environment: dict[str, str]) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """`thawline serve` on a free port, ready for requests."""
    command = [sys.executable, "-m", "thawline", "serve", model, "--port", "0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        said = Said(process.stderr)
        try:
            yield _port_in(said), process
        finally:
            process.kill()


@contextmanager
def forked_server(model: str, environment: dict[str, str], first: Forks, folder: Path) -> Iterator[int]:
    """The same in a fork of a process with loaded libraries, with this working directory; yields the port."""
    process = first.start(["serve", model, "--port", "0"], environment, folder)
    try:
        yield _port_in(Said(process.stderr))
    finally:
        process.kill()
        process.wait()
        process.close()


def _port_in(said: Said) -> int:
    return int(said.wait_for(r"http://127\.0\.0\.1:(\d+) is ready")[1])


@contextmanager
def prefect_server(folder: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """`prefect server start` on a free port, ready for requests; yields the environment of its clients.

    Its database and its concurrency leases are in the folder, as for a permanent server.
    """
    port = free_port()
    prefect_database(folder, home=folder)
    environment = {
        **environment,
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "DO_NOT_TRACK": "true",
    }
    command = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with _process_group(command, environment, folder / "server.log") as process:
        _wait_until_healthy(f"http://127.0.0.1:{port}/api/health", process, folder / "server.log")
        yield {
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_HOME": str(folder),
            "DO_NOT_TRACK": "true",
        }


@contextmanager
def mlflow_server(folder: Path, *options: str, variables: Mapping[str, str] | None = None) -> Iterator[int]:
    """`mlflow server` on a free port, ready for requests; yields the port. Runs and artifacts are in the folder.

    Args:
        folder: folder for its data.
        options: additional options of the command.
        variables: additional environment variables.
    """
    port = free_port()
    keep = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment = {**keep, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment |= variables or {}
    command = [MLFLOW, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "a")]
    command += options
    with _process_group(command, environment, folder / "server.log") as process:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", process, folder / "server.log")
        yield port


@contextmanager
def prefect_worker(pool: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """`prefect worker start` in its own empty folder."""
    with _process_group([PREFECT, "worker", "start", "--pool", pool], environment, log):
        yield


def ask_prefect(client: dict[str, str], path: str, body: object = None) -> Any:
    """The response of Prefect's REST API to a POST with a body, or else to a GET.

    A server whose SQLite file is locked for too long responds with 503, or with 500 if it did not expect that, without
    doing anything. Like Prefect's own client, this function retries.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{client['PREFECT_API_URL']}/{path}", data)
    request.add_header("Content-Type", "application/json")
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.loads(response.read() or "null")
        except urllib.error.HTTPError as error:
            if error.code not in (500, 503) or time.monotonic() > deadline:
                raise
            time.sleep(1)  # nothing signals when it is ready again


@contextmanager
def _process_group(command: list[str], environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is ended together with its children."""
    folder = log.with_suffix(".d")
    folder.mkdir()
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True, cwd=folder
        ) as process,
    ):
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    while True:
        assert process.poll() is None, log.read_text()
        with suppress(OSError), urllib.request.urlopen(url, timeout=60):
            return
        time.sleep(0.2)  # nothing signals when it is ready


def memory_of(pid: int | None) -> int:
    """Resident bytes of a process (``None``: this one)."""
    status = Path(f"/proc/{pid or 'self'}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
