"""Prefect's own server, started ahead of time.

Without ``PREFECT_API_URL`` Prefect starts a server of its own for as long as a flow runs, and waits for it: six
seconds, sixteen the first time. Started here it comes up on another core while the heavy libraries are imported.
"""

import atexit
import threading
from collections.abc import Callable

from thawline import environment

__all__ = ["start_ahead"]


def start_ahead() -> Callable[[], object]:
    """Begin to start the server, if Prefect would; returns a function that waits until it answers.

    A server that does not come up is left to Prefect, which tries again when the flow begins and says what is wrong.
    """
    environment.prepare_flows()
    ready = threading.Event()

    def start() -> None:
        try:
            from prefect.server.api.server import SubprocessASGIServer
            from prefect.settings import get_current_settings

            settings = get_current_settings()
            if settings.api.url is None and settings.server.ephemeral.enabled:
                server = SubprocessASGIServer()
                atexit.register(server.stop)
                try:
                    server.start(settings.server.ephemeral.startup_timeout_seconds)
                except RuntimeError:
                    server.stop()
        finally:
            ready.set()

    # A daemon: a wrong option must not wait for a server that nobody needs.
    threading.Thread(target=start, name="thawline-prefect-server", daemon=True).start()
    return ready.wait
