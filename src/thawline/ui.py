"""``thawline ui``: the UIs of MLflow, TensorBoard and Prefect for this project, on loopback, until Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from thawline import stopping
from thawline.exceptions import ThawlineError
from thawline.prefect_profile import named_server
from thawline.prefect_server import ManagedServer, used

__all__ = ["serve_ui"]

_START_SECONDS = 180
"""MLflow's server takes 20 to 40 s to start on a busy machine."""
_LOOK_SECONDS = 0.5
_LEAVE_SECONDS = 1.5


def serve_ui(
    home: Path,
    tracking_uri: str | None,
    mlflow_port: int | None,
    tensorboard_port: int | None,
    say: Callable[[str], None],
    *,
    in_browser: bool = False,
) -> None:
    """Start the servers, print their addresses when they respond, and wait until the user stops them.

    MLflow's address leads to the studies, because its start page is about language models; ``in_browser`` opens it.
    Prefect's server is the one that searches of this home use, or the one that the user has configured; it keeps
    running.

    Raises:
        ThawlineError: if a port is taken, or a server does not start or stops unexpectedly.
        KeyboardInterrupt: when the user stops them.
    """
    from thawline.tracking import UI_PORT, open_store

    store = open_store(tracking_uri, home)  # first: Prefect would create a home in a wrong folder
    with used(home) as prefect:
        logs = home / "tensorboard"
        logs.mkdir(parents=True, exist_ok=True)
        ports = {"MLflow": _port(mlflow_port, UI_PORT), "TensorBoard": _port(tensorboard_port, 6006)}
        commands = {
            "MLflow": _mlflow_command(store.uri, ports["MLflow"]),
            "TensorBoard": _tensorboard_command(logs, ports["TensorBoard"]),
        }
        servers: dict[str, subprocess.Popen[bytes]] = {}
        pages: dict[str, str] = {}
        try:
            for name, command in commands.items():
                servers[name] = _start(command, home / f"{name.lower()}.log")
            for name, server in servers.items():
                address = f"http://127.0.0.1:{ports[name]}"
                if not _wait_until_up(address, server):
                    raise ThawlineError(f"{name} did not start. Its log: {home / f'{name.lower()}.log'}")
                pages[name] = f"{address}/{store.page()}" if name == "MLflow" else address
                say(f"{name:<12} {pages[name]}")
            _say_prefect(prefect, say)
            say("Press Ctrl-C to stop them.")
            if in_browser:
                opened = webbrowser.open(pages["MLflow"])
                say("Opened MLflow in a browser." if opened else "No browser found: open MLflow's address yourself.")
            while all(server.poll() is None for server in servers.values()):
                time.sleep(_LOOK_SECONDS)
            (ended,) = [name for name, server in servers.items() if server.poll() is not None][:1]
            raise ThawlineError(f"{ended} stopped unexpectedly. Its log: {home / f'{ended.lower()}.log'}")
        finally:
            _stop(servers.values())


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, env=_env())
    stopping.take_along(server.pid)
    return server


def _say_prefect(server: ManagedServer | None, say: Callable[[str], None]) -> None:
    if server is None:
        say(f"{'Prefect':<12} {(named_server() or '').removesuffix('/').removesuffix('/api')}")
        return
    server.wait()
    say(f"{'Prefect':<12} {server.address.ui}")
    say(f"Prefect's page asks for a password once: {server.address.password}")


def _mlflow_command(uri: str, port: int) -> list[str]:
    # One worker and no job runner suffice for a single user, and each worker costs 250 MB.
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", uri, "--workers", "1"),
    ]


def _tensorboard_command(logs: Path, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "tensorboard.main", "--logdir", str(logs)),
        *("--host", "127.0.0.1", "--port", str(port)),
        # By default, TensorBoard shows a random sample of ten images per run, without some of the epochs.
        "--samples_per_plugin=images=100,mesh=30,pr_curves=100",
    ]


def _env() -> dict[str, str]:
    return {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _port(wanted: int | None, first: int) -> int:
    """The requested port, or the first free one from ``first``."""
    candidates = [wanted] if wanted is not None else range(first, first + 100)
    for port in candidates:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ThawlineError(f"Port {wanted or f'{first} to {first + 99}'} is taken. Choose another one.")


def _wait_until_up(address: str, server: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):  # noqa: S310  our own loopback address
                return True
        except OSError:
            time.sleep(0.2)
    return False


def _stop(servers: Collection[subprocess.Popen[bytes]]) -> None:
    """Stop the servers and their children; each has a process group of its own."""
    for server in servers:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + _LEAVE_SECONDS
    for server in servers:
        with suppress(subprocess.TimeoutExpired):
            server.wait(max(0.0, deadline - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
