"""Studies in a file in Thawline's home: the journal, and the claim of a whole study."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from thawline.exceptions import StudyError
from thawline.search.leases import beating

__all__ = ["Journal", "JournalLock", "WholeStudy"]


class JournalLock(JournalFileOpenLock):
    """A lock that the system releases when its process dies. Optuna's own stays for 30 s and is then stolen."""

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._lock = FileLock(file.with_suffix(".journal.lock"), thread_local=False)
        self._threads = threading.Lock()

    def acquire(self) -> bool:
        """Wait for the other threads, then for the other processes."""
        self._threads.acquire()
        try:
            self._lock.acquire()
        except BaseException:
            self._threads.release()
            raise
        return True

    def release(self) -> None:
        """Release both."""
        self._lock.release()
        self._threads.release()


class Journal(JournalFileBackend):
    """Optuna's journal, extended to survive a partially written line, as after a full disk or a power cut.

    Optuna's own appends to such a line, after which the file can no longer be read.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines or nothing."""
        self._cut_torn_line()
        try:
            super().append_logs(logs)
        except OSError:
            with suppress(OSError):
                self._cut_torn_line()
            raise

    def _cut_torn_line(self) -> None:
        self._lock.acquire()
        try:
            with Path(self._file_path).open("rb+") as file:
                end = file.seek(0, os.SEEK_END)
                whole = end
                while whole > 0:
                    file.seek(max(0, whole - 4096))
                    block = file.read(whole - file.tell())
                    newline = block.rfind(b"\n")
                    if newline >= 0:
                        whole = whole - len(block) + newline + 1
                        break
                    whole -= len(block)
                if whole < end:
                    file.truncate(whole)
        finally:
            self._lock.release()


class WholeStudy:
    """One process claims the whole study: any other RUNNING trial was left by a process that died."""

    def __init__(self, folder: Path, study: str) -> None:
        self._folder, self._study = folder, study

    def take(self, name: str) -> bool:
        """See :class:`~thawline.search.storage.Claims`."""
        return True

    def release(self, name: str) -> None:
        """See :class:`~thawline.search.storage.Claims`."""
        pass

    def lost(self, name: str) -> bool:
        """See :class:`~thawline.search.storage.Claims`."""
        return False

    def taken_by_others(self, name: str) -> bool:
        """See :class:`~thawline.search.storage.Claims`."""
        return False

    @contextmanager
    def held(self, on_beat: Callable[[], None]) -> Iterator[None]:
        """See :class:`~thawline.search.storage.Claims`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / "study.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise StudyError(
                f"The study {self._study!r} is being run by another process. "
                "Wait for it, stop it, or give this one another --study name."
            ) from None
        try:
            with beating(on_beat):
                yield
        finally:
            lock.release()

    def alone(self, name: str) -> AbstractContextManager[None]:
        """See :class:`~thawline.search.storage.Claims`."""
        return nullcontext()
