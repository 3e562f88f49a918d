"""Expensive read-only data, created by one worker for all workers of a test run."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

__all__ = ["made_once"]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first worker to request it fills while the others wait. It must not be changed afterwards.

    Args:
        factory: the session's factory.
        name: name of the folder.
        make: fills the given empty folder, which is moved afterwards, so it must not contain paths to itself. After an
            exception, the next request tries again.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # shared by all workers; without workers it would outlive the session
    folder = root / f"once-{name}"
    with FileLock(root / f"once-{name}.lock"):
        if not folder.exists():
            unfinished = root / f"once-{name}-unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder
