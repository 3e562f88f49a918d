"""``thawline ui``: the MLflow UI and TensorBoard on this project's store, on loopback, until Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from thawline.exceptions import ThawlineError

__all__ = ["serve_ui"]

_START_SECONDS = 180
"""MLflow's server takes 20 to 40 s to start on a busy machine."""


def serve_ui(
    home: Path,
    tracking_uri: str | None,
    mlflow_port: int | None,
    tensorboard_port: int | None,
    say: Callable[[str], None],
) -> int:
    """Start both servers, say their addresses when they answer, and wait until one ends or the user stops them.

    Returns:
        Exit code: 0 when stopped by the user, 1 when a server ended by itself.

    Raises:
        ThawlineError: if a port is taken, or a server does not start.
    """
    from thawline.tracking import open_store

    uri = open_store(tracking_uri, home).uri
    logs = home / "tensorboard"
    logs.mkdir(parents=True, exist_ok=True)
    ports = {"MLflow": _port(mlflow_port, 5000), "TensorBoard": _port(tensorboard_port, 6006)}
    commands = {
        "MLflow": _mlflow_command(uri, ports["MLflow"]),
        "TensorBoard": _tensorboard_command(logs, ports["TensorBoard"]),
    }
    stopped = _StopSignals()
    servers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            log = (home / f"{name.lower()}.log").open("wb")
            with log:
                servers[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=_env())
        for name, server in servers.items():
            address = f"http://127.0.0.1:{ports[name]}"
            if not _wait_until_up(address, server, stopped):
                if stopped:
                    return 0
                raise ThawlineError(f"{name} did not start. Its log: {home / f'{name.lower()}.log'}")
            say(f"{name:<12} {address}")
        say("Ctrl-C stops both.")
        while not stopped and all(server.poll() is None for server in servers.values()):
            stopped.wait(0.5)
        return 0 if stopped else 1
    finally:
        for server in servers.values():
            _stop(server)


class _StopSignals:
    """True once SIGINT or SIGTERM has come."""

    def __init__(self) -> None:
        self._came = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._came = True

    def __bool__(self) -> bool:
        return self._came

    def wait(self, seconds: float) -> None:
        """Sleep, at most so long."""
        if not self._came:
            time.sleep(seconds)


def _mlflow_command(uri: str, port: int) -> list[str]:
    # One worker and no job runner: the UI of one person needs no more, and each worker costs 250 MB.
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", uri, "--workers", "1"),
    ]


def _tensorboard_command(logs: Path, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "tensorboard.main", "--logdir", str(logs)),
        *("--host", "127.0.0.1", "--port", str(port)),
        # By default it shows ten pictures of a run, drawn by chance, and so leaves out epochs.
        "--samples_per_plugin=images=100,mesh=30,pr_curves=100",
    ]


def _env() -> dict[str, str]:
    return {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _port(wanted: int | None, first: int) -> int:
    """The port asked for, or the first free one from ``first``."""
    candidates = [wanted] if wanted is not None else range(first, first + 100)
    for port in candidates:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ThawlineError(f"Port {wanted or f'{first} to {first + 99}'} is taken. Give another one.")


def _wait_until_up(address: str, server: subprocess.Popen[bytes], stopped: _StopSignals) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None and not stopped:
        try:
            with urllib.request.urlopen(address, timeout=2):  # noqa: S310  our own loopback address
                return True
        except OSError:
            stopped.wait(0.2)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and what it started; it has a process group of its own."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
