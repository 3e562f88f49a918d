"""Files by which the processes of one home share their server: three locks and an address.

The kernel releases a lock when its last holder dies, for any reason, so that a crash leaves no stale locks:

- ``server.lock`` is held by the supervisor for its whole life, and acquired by the process that starts it;
- ``users.lock`` is shared by all users of the server; the supervisor can acquire it exclusively if there are none;
- ``change.lock`` is held briefly by a process that checks the other locks, or starts or stops the server.
"""

import fcntl
import json
import os
import platform
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thawline.exceptions import PrefectServerError

__all__ = ["Address", "Files", "new_password", "private", "try_lock"]


@dataclass(frozen=True)
class Address:
    """The server's address and password."""

    pid: int
    """Process id of the supervisor, which leads a session of its own."""
    port: int
    """On the loopback interface."""
    password: str
    """``user:password``, the format of ``PREFECT_API_AUTH_STRING``."""

    @property
    def ui(self) -> str:
        """Address of Prefect's UI."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        """Address of the API, as for ``PREFECT_API_URL``."""
        return f"{self.ui}/api"


@dataclass(frozen=True)
class Files:
    """The files of a home's server on this machine; another machine that shares the home has its own server."""

    home: Path

    @property
    def folder(self) -> Path:
        """Readable only by its user."""
        return self.home / "prefect" / "server" / (platform.node() or "localhost")

    @property
    def log(self) -> Path:
        """The server's log since its last start."""
        return self.folder / "server.log"

    @property
    def ready(self) -> Path:
        """Exists while the server responds."""
        return self.folder / "ready"

    @property
    def stay(self) -> Path:
        """Exists while the server should run even without users."""
        return self.folder / "stay"

    def save_environment(self, environment: Mapping[str, str]) -> None:
        """Store the variables for the worker, which may contain passwords; readable only by its user."""
        self._replace(self._environment, environment)

    def environment(self) -> dict[str, str] | None:
        """The variables for the worker; ``None`` if they are not stored."""
        try:
            return {str(name): str(value) for name, value in json.loads(self._environment.read_text()).items()}
        except (OSError, ValueError, AttributeError):
            return None

    def forget(self) -> None:
        """Ask for neither server nor worker any longer, and forget the worker's variables."""
        self.stay.unlink(missing_ok=True)
        self._environment.unlink(missing_ok=True)

    @property
    def _environment(self) -> Path:
        return self.folder / "worker-environment.json"

    def make(self) -> None:
        """Create the folder.

        Raises:
            PrefectServerError: if it cannot be created.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise PrefectServerError(
                f"Cannot create the folder {self.folder}: {error.strerror}. Set THAWLINE_HOME to a writable folder."
            ) from None

    def open(self, name: str) -> int:
        """Open one of the locks, and return its descriptor."""
        return os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Exclude other processes from checking, starting or stopping the server within the block."""
        descriptor = self.open("change.lock")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def alive(self) -> bool:
        """Whether the supervisor is alive; call it under :meth:`changing`."""
        descriptor = self.open("server.lock")
        try:
            return not try_lock(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> Address | None:
        """The address of the latest server, alive or not."""
        try:
            return Address(**json.loads((self.folder / "server.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, address: Address) -> None:
        """Replace the address; readable only by its user."""
        self._replace(self.folder / "server.json", asdict(address))

    def _replace(self, path: Path, content: Mapping[str, Any]) -> None:
        """Atomically."""
        new = path.with_suffix(".tmp")
        with open(new, "w", opener=private) as file:
            json.dump(content, file)
        new.replace(path)


def private(path: str, flags: int) -> int:
    """An opener for :func:`open`, for files readable only by their user."""
    return os.open(path, flags, 0o600)


def new_password() -> str:
    """A random password for the user ``thawline``, which others on this machine cannot guess."""
    return f"thawline:{secrets.token_urlsafe(24)}"


def try_lock(descriptor: int) -> bool:
    """Acquire the lock exclusively, unless another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
