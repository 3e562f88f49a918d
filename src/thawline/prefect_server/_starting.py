"""Start of the server in a session of its own, with its port and lock already acquired."""

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from thawline.exceptions import PrefectServerError
from thawline.prefect_server._files import Address, Files, new_password, private, try_lock

__all__ = ["PASSWORD", "environment_for", "find_or_start"]

PASSWORD = "PREFECT_SERVER_API_AUTH_STRING"  # noqa: S105  the name of a variable
_OF_CLIENTS = ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE", "MLFLOW_RUN_ID")
"""Variables for clients, which the server and its worker must not inherit: all their studies would share one run."""
_BACKLOG = 2048


def find_or_start(files: Files) -> Address:
    """Return the address of the home's server, and start the server unless it is running.

    The caller must hold ``users.lock``, so that the server does not consider itself unused. This process already binds
    the port and listens on it, before the server is loaded, so that early connections wait instead of being refused.

    Raises:
        PrefectServerError: if there is no free port, or no process can be started.
    """
    with files.changing():
        lock = files.open("server.lock")
        try:
            address = files.read()
            if not try_lock(lock):
                assert address is not None  # noqa: S101  written before the starter releases change.lock
                return address
            address = _start(files, lock, address)
            files.write(address)
            return address
        finally:
            os.close(lock)  # the supervisor has inherited the lock with its own descriptor


def _start(files: Files, lock: int, former: Address | None) -> Address:
    """Start the server with its former port and password if possible, so that clients and open pages keep working."""
    files.ready.unlink(missing_ok=True)
    with _listen(former.port if former else 0) as listening:
        address = Address(0, listening.getsockname()[1], former.password if former else new_password())
        command = [sys.executable, "-m", "thawline.prefect_server.supervisor"]
        arguments = [str(files.home), str(lock), str(listening.fileno())]
        try:
            with open(files.log, "wb", opener=private) as log:
                process = subprocess.Popen(
                    [*command, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=files.folder,
                    env=environment_for(files, address) | {PASSWORD: address.password},
                    pass_fds=(lock, listening.fileno()),
                    start_new_session=True,  # Ctrl-C and a closed terminal must not reach it
                )
        except OSError as error:
            raise PrefectServerError(f"Prefect's API server cannot be started: {error}.") from None
    process.returncode = 0  # suppress the warning of `subprocess`: the server outlives this process by design
    return Address(process.pid, address.port, address.password)


def _listen(wanted: int) -> socket.socket:
    for port in dict.fromkeys((wanted, 0)):
        # Without an explicit protocol, asyncio leaves Nagle's algorithm on, which delays responses by 40 ms.
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("127.0.0.1", port))
            listening.listen(_BACKLOG)
        except OSError as error:
            listening.close()
            if port == 0:
                raise PrefectServerError(f"No port on 127.0.0.1 for Prefect's API server: {error}.") from None
        else:
            return listening
    raise AssertionError("port 0 returns or raises")


def environment_for(files: Files, address: Address) -> dict[str, str]:
    """This process's variables for the server or its worker, without the password."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_CLIENTS}
    if paths := kept.get("PYTHONPATH"):  # its working directory differs
        kept["PYTHONPATH"] = os.pathsep.join(str(Path(path).absolute()) for path in paths.split(os.pathsep))
    settings = {
        "PREFECT_HOME": str(files.home / "prefect"),
        # Otherwise a restarted server loses the holders of concurrency limits, and their slots stay taken.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        **_pages(files),
    }
    return {
        **settings,
        **kept,
        "THAWLINE_HOME": str(files.home),
        "PREFECT_SERVER_UI_API_URL": address.api,
        "PREFECT__SERVER_FINAL": "1",
    }


def _pages(files: Files) -> dict[str, str]:
    """Settings for Prefect's UI, whose pages it rewrites by default beside its modules, if that is not writable."""
    found = find_spec("prefect")
    folder = Path(found.origin).parent / "server" if found and found.origin else None
    if folder is not None and os.access(folder, os.W_OK):
        return {}
    return {"PREFECT_SERVER_UI_STATIC_DIRECTORY": str(files.home / "prefect" / "ui")}
