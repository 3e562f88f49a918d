"""What is expensive to make and only read afterwards: made by one worker, for all workers of a run of the suite."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

__all__ = ["made_once"]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first worker to ask for it fills, while the others wait; nobody may change it afterwards.

    Args:
        factory: of the session.
        name: of the folder.
        make: fills the empty folder that it is given, which is moved to another place then: it must hold no paths to
            itself. Whatever it raises, the next one to ask tries again.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers; without workers it would outlive the session
    folder = root / f"once-{name}"
    with FileLock(root / f"once-{name}.lock"):
        if not folder.exists():
            unfinished = root / f"once-{name}-unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder
