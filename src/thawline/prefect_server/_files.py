"""How the processes of one home share their server: three locks and a file.

The kernel frees a lock when its last holder dies, however it dies, so that nothing here can be left behind by a crash:

- ``server.lock`` is held by the supervisor for its whole life, taken by the process that starts it;
- ``users.lock`` is shared by all who use the server; the supervisor can take it for itself when nobody does;
- ``change.lock`` is held for moments, by a process that checks the others or starts or ends the server.
"""

import fcntl
import json
import os
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from thawline.exceptions import PrefectServerError

__all__ = ["Address", "Files", "new_password", "private", "try_lock"]


@dataclass(frozen=True)
class Address:
    """The server's address and password."""

    pid: int
    """Of the supervisor, which leads a session of its own."""
    port: int
    """On the loopback interface."""
    password: str
    """``user:password``, as Prefect's ``PREFECT_API_AUTH_STRING`` has it."""

    @property
    def ui(self) -> str:
        """Of Prefect's UI."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        """What ``PREFECT_API_URL`` would name."""
        return f"{self.ui}/api"


@dataclass(frozen=True)
class Files:
    """The files of one home's server, on this machine: another machine that shares the home has a server of its own."""

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
        """Exists while the server answers."""
        return self.folder / "ready"

    @property
    def stay(self) -> Path:
        """Exists while the server is to stay without users."""
        return self.folder / "stay"

    def make(self) -> None:
        """Make the folder.

        Raises:
            PrefectServerError: if it cannot be made.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise PrefectServerError(
                f"Cannot make the folder {self.folder}: {error.strerror}. Set THAWLINE_HOME to a folder you may write "
                "to."
            ) from None

    def open(self, name: str) -> int:
        """A descriptor of one of the locks."""
        return os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """No other process looks at the server, starts it or ends it during the block."""
        descriptor = self.open("change.lock")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def alive(self) -> bool:
        """Whether the supervisor lives; to be asked under :meth:`changing`."""
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
        """Replace it atomically; readable only by its user."""
        new = self.folder / "server.json.tmp"
        with open(new, "w", opener=private) as file:
            json.dump(asdict(address), file)
        new.replace(self.folder / "server.json")


def private(path: str, flags: int) -> int:
    """An opener for :func:`open`, for files readable only by their user."""
    return os.open(path, flags, 0o600)


def new_password() -> str:
    """Of a user ``thawline``; not to be guessed by others on this machine."""
    return f"thawline:{secrets.token_urlsafe(24)}"


def try_lock(descriptor: int) -> bool:
    """Take the lock exclusively unless another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
