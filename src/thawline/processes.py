"""Start processes that do not import the calling script, and that leave Ctrl-C to their parent.

This module imports no heavy library, so that the fork server loads its libraries in parallel with the parent's imports.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext
from types import FrameType, ModuleType

__all__ = ["ctrl_c_withheld", "main_module_hidden", "start_fork_server", "worker_context"]

_PRELOAD = "thawline.search.preload"
_lock = threading.Lock()


def start_fork_server(modules: Sequence[str] = ()) -> None:
    """Start the fork server unless it runs; on systems without one, workers are spawned.

    Loading PyTorch and other libraries takes seconds, so an early start saves time.

    Args:
        modules: full names of further modules to load once for all workers; a failed import is left to them.
    """
    context = worker_context()
    if isinstance(context, ForkServerContext):
        context.set_forkserver_preload([*modules, _PRELOAD])  # the last one freezes what is loaded
        from multiprocessing import forkserver

        with ctrl_c_withheld():
            forkserver.ensure_running()


def worker_context() -> ForkServerContext | SpawnContext:
    """This system's start method for workers."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """Within the block, ``multiprocessing`` starts processes without the caller's script.

    Otherwise it runs the main module again in every process started by "spawn" or "forkserver": a script without ``if
    __name__ == "__main__"`` would start its search in each of them. Nothing sent to them is defined there.
    """
    with _lock, ctrl_c_withheld():
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


@contextmanager
def ctrl_c_withheld() -> Iterator[None]:
    """Processes that this thread starts within the block never receive Ctrl-C.

    A terminal sends it to them too, and one that is still importing would die with a traceback before it can ignore the
    signal. This process handles it at the end of the block: one that leaves while it starts another would leave that
    with half of its arguments, and with a traceback, too.
    """
    _start_tracker()  # first, because an implicit start by multiprocessing unblocks SIGINT within the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _handlers_deferred():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _handlers_deferred() -> Iterator[None]:
    """Call the handlers of SIGINT and SIGTERM after the block.

    Blocking a signal is not enough: another thread receives it, and the handler then runs in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():  # where no handler runs
        yield
        return
    handlers = {
        number: handler for number in (signal.SIGINT, signal.SIGTERM) if callable(handler := signal.getsignal(number))
    }
    came: list[tuple[int, FrameType | None]] = []
    for number in handlers:
        signal.signal(number, lambda *signalled: came.append(signalled))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for received, frame in came:
            handlers[signal.Signals(received)](received, frame)


def _start_tracker() -> None:
    """Start the resource tracker, which cleans up semaphores of killed workers, without a warning for each."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker"]))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before
