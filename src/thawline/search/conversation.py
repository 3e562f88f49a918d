"""What a driver and the workers of one call say to each other, until the call has an answer."""

import math
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from thawline.search.events import emit

__all__ = ["Conversation", "Speaker", "WorkStopped", "WorkerCrashed"]

_REST_SECONDS = 5.0
"""What the others have to come back, when the call has an answer or one of them has failed."""


class WorkerCrashed(Exception):
    """The process ended, or had to be ended, without a result."""

    @classmethod
    def with_exit_code(cls, code: int | None) -> "WorkerCrashed":
        """It ended by itself, or was killed."""
        return cls(
            f"its process was killed by signal {-code}" if code and code < 0 else f"its process ended with {code}"
        )


class WorkStopped(Exception):
    """The driver is stopping; what was begun resumes when the search is run again."""


class Speaker(Protocol):
    """A worker as its driver hears it."""

    @property
    def connection(self) -> Connection:
        """The driver's end of its pipe."""

    def hear(self) -> tuple[str, Any]:
        """What it says next: ``message``, ``event``, ``alive``, or one of the answers ``result``, ``error`` and
        ``left``; with the value.

        Raises:
            WorkerCrashed: if the process has died.
            WorkStopped: if it died of being asked to leave.
        """

    def reply(self, answer: Any) -> None:
        """Answer a message; raises as :meth:`hear`."""

    def ask_to_leave(self) -> None:
        """It leaves when it next says that it is alive."""


class Conversation:
    """With the workers of one call, which work together, until they have answered."""

    def __init__(
        self,
        workers: Sequence[Speaker],
        on_message: Callable[[Any], Any],
        silent_seconds: float | None,
        grace_ends: Callable[[], float | None],
    ) -> None:
        """
        Args:
            workers: the first one's result is that of all.
            on_message: answers messages of all.
            silent_seconds: for which all of them may be silent; ``None`` waits indefinitely.
            grace_ends: in seconds of :func:`time.monotonic`, when all are ended; ``None`` as long as nothing stops.
        """
        self._workers, self._on_message = workers, on_message
        self._silent, self._grace_ends = silent_seconds, grace_ends
        self._heard, self._until = time.monotonic(), math.inf
        self._answers: dict[Speaker, tuple[str, Any]] = {}

    def hold(self, poll_seconds: float) -> dict[Speaker, tuple[str, Any]]:
        """The answers, of all or of those that came within seconds of the first worker's or of an error.

        Raises:
            WorkerCrashed: if one dies before the first worker has a result, or all are silent for too long.
            WorkStopped: if they have not left when their grace ends.
        """
        asked_to_leave = False
        while len(self._answers) < len(self._workers) and time.monotonic() < self._until:
            grace_ends = self._grace_ends()
            if grace_ends is not None:
                if time.monotonic() >= grace_ends:
                    raise WorkStopped
                if not asked_to_leave:
                    for worker in self._workers:
                        worker.ask_to_leave()
                    asked_to_leave = True
            self._listen(poll_seconds)
        return self._answers

    def answer(self) -> tuple[str, Any]:
        """That of all: the first worker's result, or else the first error, or that they have left."""
        first = self._answers.get(self._workers[0], ("left", None))
        errors = [answer for answer in self._answers.values() if answer[0] == "error"]
        return first if first[0] == "result" or not errors else errors[0]

    def _listen(self, seconds: float) -> None:
        working = {worker.connection: worker for worker in self._workers if worker not in self._answers}
        speaking = wait(list(working), seconds)
        for connection in speaking:
            self._hear(working[connection])  # type: ignore[index]
        if speaking:
            self._heard = time.monotonic()
        elif self._silent is not None and time.monotonic() - self._heard > self._silent:
            raise WorkerCrashed(f"its process made no progress for {self._silent / 60:g} minutes")

    def _hear(self, worker: Speaker) -> None:
        try:
            kind, value = worker.hear()
        except WorkerCrashed:
            if self._answers.get(self._workers[0], ("left",))[0] != "result":
                raise
            self._until = 0.0  # all is done: nobody needs it any more
            return
        if kind == "message":
            worker.reply(self._on_message(value))
        elif kind == "event":
            emit(value)
        elif kind != "alive":
            self._answers[worker] = (kind, value)
            if kind == "error" or worker is self._workers[0]:
                self._until = min(self._until, time.monotonic() + _REST_SECONDS)
