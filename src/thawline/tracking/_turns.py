"""Turns at a resource that only a few threads may use at a time, with priority for those about to end."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turns"]


class Turns:
    """A semaphore with priorities."""

    def __init__(self, most: int) -> None:
        """Allow at most this many threads at a time."""
        self._free = most
        self._hurried: set[object] = set()
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, who: object) -> Iterator[None]:
        """Wait for a turn, and release it after the block."""
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
        """Give priority: from now on, threads without it wait until this one has :meth:`finished`."""
        with self._changed:
            self._hurried.add(who)
            self._changed.notify_all()

    def finished(self, who: object) -> None:
        """End the priority."""
        with self._changed:
            self._hurried.discard(who)
            self._changed.notify_all()
