"""Processes that do not import the script which started them."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["main_module_hidden"]

_lock = threading.Lock()


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """For the time of the block, ``multiprocessing`` starts processes without the caller's script.

    It runs the main module again in every process that it starts by "spawn" or "forkserver": a script without
    ``if __name__ == "__main__"`` would start its search again in each. Nothing that is sent to them is defined there.
    """
    with _lock:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
