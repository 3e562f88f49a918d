"""Flows use the server that Thawline manages, or the one that the user has named; neither may block them."""

import concurrent.futures
import functools
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
"""For events and logs still to be sent when a flow has ended."""
_STOPPED_SEND_SECONDS = 1.0


@contextmanager
def connected(server: ManagedServer | None) -> Iterator[None]:
    """Flows of the block run at this server; by default at the one that the user has named.

    Raises:
        PrefectServerError: if it does not answer.
    """
    if server is None:
        check_server()
        settings = {}
    else:
        emit(Phase("waiting for Prefect's server"))
        server.wait()
        settings = {PREFECT_API_URL: server.address.api, PREFECT_API_AUTH_STRING: server.address.password}
    with temporary_settings(settings):
        seconds = _SEND_SECONDS
        try:
            yield
        except BaseException as error:
            if _was_interrupted(error):
                seconds = _STOPPED_SEND_SECONDS
                raise KeyboardInterrupt from None  # whatever Prefect has turned it into when its server was gone too
            raise
        finally:
            _send_the_rest(seconds)


def leaving_at_once(function: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
    """A flow's function: once it is interrupted, Prefect is told in one try, not for a minute if its server is gone.

    Clusters are sent the flow by value, so that it may hold nothing that cannot be pickled, such as a generator.
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
    """Refuse a server that does not answer.

    Raises:
        PrefectServerError: naming it, and what to do.
    """
    url = str(PREFECT_API_URL.value())
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise PrefectServerError(
            f"The Prefect server at {without_password(url)} does not answer ({error}). Start it, or correct "
            "PREFECT_API_URL or the profile of Prefect that names it; without one, Thawline starts a server itself."
        )


def _send_the_rest(seconds: float) -> None:
    """Send queued events and logs within a time limit, and drop the rest: at interpreter exit it would wait.

    Prefect tries each event eleven times, a second each, when its server is gone.
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
