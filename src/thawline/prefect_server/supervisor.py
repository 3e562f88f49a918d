"""The process that supervises Prefect's server: restarts it when it dies, and stops it when it is idle.

``python -m thawline.prefect_server.supervisor HOME LOCK PORT``: the latter two are descriptors of ``server.lock``,
already acquired, and of the listening socket. The socket stays open during a restart of the server, so that clients
wait instead of being refused. The supervisor does not import Prefect, so that it needs only a few megabytes.
"""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from thawline.prefect_server._files import Files, try_lock
from thawline.prefect_server._starting import PASSWORD

__all__ = ["IDLE_VARIABLE", "Supervisor"]

IDLE_VARIABLE = "THAWLINE_SERVER_MINUTES"
"""Variable with the minutes before an idle server stops."""
_IDLE_MINUTES = 5.0
_LOOK_SECONDS = 0.5
_LEAVE_SECONDS = 5.0
"""Seconds for the server to finish requests before it is killed; SQLite loses nothing."""
_RESTARTS = 20


class Supervisor:
    """Supervises the server and, if requested, a worker."""

    def __init__(self, files: Files, listening: int, *, idle_seconds: float) -> None:
        """Take over a listening socket.

        Args:
            files: files of the home; ``server.lock`` must be held.
            listening: descriptor of the socket.
            idle_seconds: time before a server without users stops.
        """
        self._files, self._listening, self._idle_seconds = files, listening, idle_seconds
        self._users = files.open("users.lock")
        self._unused_since: float | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._pool = ""
        self._starts = 0
        self.stopping = threading.Event()

    def run(self) -> int:
        """Run until stopped, idle for too long, or failed; returns the exit code."""
        try:
            while not self.stopping.is_set() and self._files.folder.is_dir():
                if self._server is None or self._server.poll() is not None:
                    if not self._may_start():
                        return 1
                    self._start_server()
                self._tend_worker()
                if self._unused():
                    return 0
                self.stopping.wait(_LOOK_SECONDS)
            return 0
        finally:
            with suppress(OSError):
                self._files.ready.unlink(missing_ok=True)
            _end([process for process in (self._worker, self._server) if process is not None])

    def _may_start(self) -> bool:
        """Whether the server may be started; a restart is allowed only if it had responded before."""
        if self._server is None:
            return True
        say(f"the server ended with exit code {self._server.returncode}")
        return self._files.ready.exists() and self._starts <= _RESTARTS

    def _start_server(self) -> None:
        self._files.ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "thawline.prefect_server.process"]
        self._server = subprocess.Popen(
            [*command, str(self._listening), str(self._files.ready)], stdin=subprocess.PIPE, pass_fds=[self._listening]
        )
        self._starts += 1

    def _tend_worker(self) -> None:
        """Start or restart a worker of the requested pool, once the server responds."""
        pool = self._wanted_pool()
        ended = self._worker is not None and self._worker.poll() is not None
        if self._worker is not None and (ended or pool != self._pool):
            _end([self._worker])
            self._worker = None
        if pool and self._worker is None and self._files.ready.exists():
            self._worker, self._pool = self._start_worker(pool), pool

    def _start_worker(self, pool: str) -> "subprocess.Popen[bytes]":
        address = self._files.read()
        assert address is not None  # noqa: S101  written before this process was started
        client = {"PREFECT_API_URL": address.api, "PREFECT_API_AUTH_STRING": address.password}
        # The server may have been started by another command, with other variables.
        environment = self._files.environment()
        if environment is None:
            environment = {name: value for name, value in os.environ.items() if name != PASSWORD}
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment | client, start_new_session=True)

    def _wanted_pool(self) -> str:
        try:
            return self._files.stay.read_text().strip()
        except OSError:
            return ""

    def _unused(self) -> bool:
        """Whether it has been idle for long enough; the lock is then kept, so that the next user waits for its end.

        Users share ``users.lock``, which the kernel releases when their processes end: acquiring it briefly shows
        whether there are users, without any request.
        """
        if self._files.stay.exists() or not try_lock(self._users):
            self._unused_since = None
            return False
        now = time.monotonic()
        self._unused_since = now if self._unused_since is None else self._unused_since
        if now - self._unused_since >= self._idle_seconds:
            return True
        fcntl.flock(self._users, fcntl.LOCK_UN)
        return False


def say(text: str) -> None:
    """Write to the server's log."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)  # noqa: T201


def _end(processes: "list[subprocess.Popen[bytes]]") -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _LEAVE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def main() -> None:
    """Read the arguments and run."""
    home, _lock, listening = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    minutes = float(os.environ.get(IDLE_VARIABLE) or _IDLE_MINUTES)
    supervisor = Supervisor(Files(home), listening, idle_seconds=60 * minutes)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: supervisor.stopping.set())
    sys.exit(supervisor.run())


if __name__ == "__main__":
    main()
