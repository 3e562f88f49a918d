"""The connection of flows to Thawline's server or the user's; neither may block them."""

import concurrent.futures
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from prefect._internal.concurrency.services import QueueService
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker
from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, get_current_settings, temporary_settings

from thawline.config import without_password
from thawline.exceptions import PrefectServerError
from thawline.prefect_server import ManagedServer
from thawline.search import Phase, emit

__all__ = ["check_server", "connected", "leaving_at_once"]

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")
_SEND_SECONDS = 5.0
"""Time to send queued events and logs after the end of a flow."""
_STOPPED_SEND_SECONDS = 1.0


@contextmanager
def connected(server: ManagedServer | None) -> Iterator[None]:
    """Connect flows in the block to this server; ``None`` means the one configured by the user.

    Raises:
        PrefectServerError: if it does not respond.
    """
    if server is None:
        check_server()
        settings = {}
    else:
        emit(Phase("waiting for Prefect's server"))
        server.wait()
        settings = {PREFECT_API_URL: server.address.api, PREFECT_API_AUTH_STRING: server.address.password}
    with temporary_settings(settings), _quiet_about_lost_logs():
        seconds = _SEND_SECONDS
        try:
            yield
        except BaseException as error:
            if _was_interrupted(error):
                seconds = _STOPPED_SEND_SECONDS
                raise KeyboardInterrupt from None  # whatever Prefect turned it into, if its server was gone too
            raise
        finally:
            _send_the_rest(seconds)


@contextmanager
def _quiet_about_lost_logs() -> Iterator[None]:
    """Keep the log worker from writing to standard error, in the middle of the progress, that a server is gone.

    What matters about a server that is gone is reported by the flow. This is the ``logging`` module's own switch for
    programs in production, and the only one that the worker has.
    """
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


def leaving_at_once(function: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
    """Decorate a flow's function: after an interrupt, Prefect is notified in a single attempt, not for a minute.

    Flows are pickled for clusters, so the function must not refer to anything unpicklable, such as a generator.
    """

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        with told_in_one_try():
            return function(*args, **kwargs)

    return call


@contextmanager
def told_in_one_try() -> Iterator[None]:
    """Within a flow; see :func:`leaving_at_once`."""
    try:
        yield
    except (KeyboardInterrupt, TerminationSignal):
        get_current_settings().client.max_retries = 0
        raise


def _was_interrupted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, KeyboardInterrupt | TerminationSignal):
            return True
        error = error.__context__
    return False


def check_server() -> None:
    """Reject a server that does not respond.

    Raises:
        PrefectServerError: naming it, with advice.
    """
    url = str(PREFECT_API_URL.value())
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise PrefectServerError(
            f"The Prefect server at {without_password(url)} does not respond ({error}). Start it, or correct "
            "PREFECT_API_URL or the Prefect profile; without either, Thawline starts its own server."
        )


def _send_the_rest(seconds: float) -> None:
    """Send queued events and logs within a time limit, and drop the rest, which would delay interpreter exit.

    If its server is gone, Prefect tries each event eleven times, one second each.
    """
    services = [service for kind in (EventsWorker, APILogWorker) for service in _running(kind)]
    tasks = [(service._loop, service._task) for service in services]
    sent = [service._drain(at_exit=True) for service in services]
    _, late = concurrent.futures.wait(sent, timeout=seconds)
    if late:
        for loop, task in tasks:
            if loop is not None and task is not None:
                loop.call_soon_threadsafe(task.cancel)
        concurrent.futures.wait(late, timeout=1)


def _running(kind: type[QueueService[Any]]) -> list[QueueService[Any]]:
    return [service for service in list(kind._instances.values()) if isinstance(service, kind)]
