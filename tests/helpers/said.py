"""Wait for output of a process, with a time limit."""

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO

__all__ = ["Said"]


class Said:
    """The lines of a process's output, read by a thread, because a full pipe would block the process."""

    def __init__(self, stream: IO[str] | None) -> None:
        assert stream is not None
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._stream = stream
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """The output so far."""
        with self._changed:
            return "".join(self.lines)

    def wait_for(self, pattern: str, seconds: float = 300) -> re.Match[str]:
        """Wait for the first line that matches.

        Raises:
            AssertionError: with all output, if it ends without a match or the time is up.
        """
        found = self._wait(lambda: next(filter(None, (re.search(pattern, line) for line in self.lines)), None), seconds)
        assert found, f"{pattern!r} did not appear:\n{self.text}"
        return found

    def all(self, seconds: float = 300) -> str:
        """Wait for the end of the output, and return all of it.

        Raises:
            AssertionError: with all output, if the time is up.
        """
        self._reader.join(seconds)
        assert self._ended, f"still open after {seconds} seconds:\n{self.text}"
        return self.text

    def _wait(self, found: Callable[[], re.Match[str] | None], seconds: float) -> re.Match[str] | None:
        deadline = time.monotonic() + seconds
        with self._changed:
            while not (result := found()) and not self._ended:
                if not self._changed.wait(deadline - time.monotonic()):
                    return None
            return result

    def _read(self) -> None:
        with suppress(ValueError):  # closed by the process's parent, after its end
            for line in self._stream:
                with self._changed:
                    self.lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
