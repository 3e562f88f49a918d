"""Turns at something that few threads may use at a time; those that are about to end go first."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turns"]


class Turns:
    """As a semaphore, with a right of way."""

    def __init__(self, most: int) -> None:
        """Let at most so many threads in at a time."""
        self._free = most
        self._hurried: set[object] = set()
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, who: object) -> Iterator[None]:
        """Wait for a turn, and give it back."""
        with self._changed:
            self._changed.wait_for(lambda: self._free > 0 and (not self._hurried or who in self._hurried))
            self._free -= 1
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def hurry(self, who: object) -> None:
        """From now on, those that have not hurried wait until this one has :meth:`finished`."""
        with self._changed:
            self._hurried.add(who)
            self._changed.notify_all()

    def finished(self, who: object) -> None:
        """It is in a hurry no more."""
        with self._changed:
            self._hurried.discard(who)
            self._changed.notify_all()
