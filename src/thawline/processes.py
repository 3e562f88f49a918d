"""Processes that do not import the script which started them, and that leave Ctrl-C to their parent.

Nothing here imports a heavy library, so that the fork server loads its libraries in parallel with the imports of its
parent.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext
from types import ModuleType

__all__ = ["ctrl_c_withheld", "main_module_hidden", "start_fork_server", "worker_context"]

_PRELOAD = ["thawline.search.preload"]
_lock = threading.Lock()


def start_fork_server() -> None:
    """Start the process that workers are forked from, unless it runs; where there is none, workers are spawned.

    Loading PyTorch and other libraries takes seconds, which cost nothing if it is started early.
    """
    context = worker_context()
    if isinstance(context, ForkServerContext):
        context.set_forkserver_preload(_PRELOAD)
        from multiprocessing import forkserver

        with ctrl_c_withheld():
            forkserver.ensure_running()


def worker_context() -> ForkServerContext | SpawnContext:
    """How this system starts workers."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """For the time of the block, ``multiprocessing`` starts processes without the caller's script.

    It runs the main module again in every process that it starts by "spawn" or "forkserver": a script without
    ``if __name__ == "__main__"`` would start its search again in each. Nothing that is sent to them is defined there.
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
    """Processes that this thread starts during the block never receive Ctrl-C, from their start on.

    A terminal sends it to them too, and one that is still importing would die of it with a traceback, before it can
    ignore the signal. This process hears of it when the block is left, at the latest.
    """
    _start_tracker()  # first: where multiprocessing starts it implicitly, it unblocks SIGINT in the middle of the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """The resource tracker cleans up the semaphores of killed workers; users need not be warned of each."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker"]))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before
