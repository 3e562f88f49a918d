"""The messages between a driver and the workers of one call, until the call has a result."""

import math
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from thawline.search.events import emit

__all__ = ["Conversation", "Speaker", "WorkStopped", "WorkerCrashed"]

_REST_SECONDS = 5.0
"""Time for the other workers to finish once the call has a result or one of them has failed."""


class WorkerCrashed(Exception):
    """The process ended, or was killed, without a result."""

    @classmethod
    def with_exit_code(cls, code: int | None) -> "WorkerCrashed":
        """For a process that ended with this exit code, or was killed by a signal."""
        return cls(
            f"its process was killed by signal {-code}" if code and code < 0 else f"its process ended with {code}"
        )


class WorkStopped(Exception):
    """The driver is stopping; unfinished work resumes when the search runs again."""


class Speaker(Protocol):
    """A worker, as seen by its driver."""

    @property
    def connection(self) -> Connection:
        """The driver's end of its pipe."""

    def hear(self) -> tuple[str, Any]:
        """The worker's next message: its kind and value. Kinds are ``message``, ``event``, ``alive``, and the results
        ``result``, ``error`` and ``left``.

        Raises:
            WorkerCrashed: if the process has died.
            WorkStopped: if it ended because it was asked to leave.
        """

    def reply(self, answer: Any) -> None:
        """Answer a message; raises as :meth:`hear`."""

    def ask_to_leave(self) -> None:
        """The worker leaves at its next heartbeat."""


class Conversation:
    """A conversation with the workers of one call, which work together, until they have finished."""

    def __init__(
        self,
        workers: Sequence[Speaker],
        on_message: Callable[[Any], Any],
        silent_seconds: float | None,
        grace_ends: Callable[[], float | None],
    ) -> None:
        """
        Args:
            workers: the workers; the first one's result is the result of the call.
            on_message: replies to messages of all workers.
            silent_seconds: how long all workers may be silent; ``None`` waits indefinitely.
            grace_ends: when all workers are killed, in seconds of :func:`time.monotonic`; ``None`` while nothing stops.
        """
        self._workers, self._on_message = workers, on_message
        self._silent, self._grace_ends = silent_seconds, grace_ends
        self._heard, self._until = time.monotonic(), math.inf
        self._answers: dict[Speaker, tuple[str, Any]] = {}

    def hold(self, poll_seconds: float) -> dict[Speaker, tuple[str, Any]]:
        """The results, of all workers or of those that finished within seconds of the first worker or of an error.

        Raises:
            WorkerCrashed: if one dies before the first worker has a result, or all are silent for too long.
            WorkStopped: if they have not left when the grace period ends.
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
        """The result of the call: the first worker's, or else the first error, or that the workers have left."""
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
            self._until = 0.0  # everything is done: this worker is no longer needed
            return
        if kind == "message":
            worker.reply(self._on_message(value))
        elif kind == "event":
            emit(value)
        elif kind != "alive":
            self._answers[worker] = (kind, value)
            if kind == "error" or worker is self._workers[0]:
                self._until = min(self._until, time.monotonic() + _REST_SECONDS)
