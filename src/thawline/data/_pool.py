"""Map a function over files in other processes, so that a crash of a decoder affects one file, not the run."""

import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from thawline.exceptions import ThawlineError
from thawline.processes import main_module_hidden

__all__ = ["cores", "map_files"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 16  # files per message: some 100 ms of decoding, so sending costs are negligible
_FILES_PER_WORKER = 128  # a process takes about a second to start, in which one decodes this many photographs


def map_files(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None,
    crashed: Callable[[Item], Result],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """``[function(item) for item in items]`` in at most ``workers`` processes (by default one per core).

    An item whose process dies (a segmentation fault, the kernel's out-of-memory killer) is retried once on its own; if
    its process dies again, its result is ``crashed(item)``. Exceptions of ``function`` are raised here.

    Processes are spawned, not forked: forking a process that has run torch's threads can deadlock, and
    multiprocessing's single fork server is preloaded with torch for the trials.

    Raises:
        ThawlineError: if no process can be started.
    """
    results: dict[int, Result] = {}

    def report(done: dict[int, Result]) -> None:
        results.update(done)
        if on_progress is not None:
            on_progress(len(results), len(items))

    workers = min(workers or cores(), math.ceil(len(items) / _FILES_PER_WORKER))
    chunks = [range(start, min(start + _CHUNK, len(items))) for start in range(0, len(items), _CHUNK)]
    while chunks:
        # Two chunks per worker keep all busy and narrow down which files were read when a process died.
        suspects = _run(function, items, chunks, workers, 2 * workers, report)
        alone = [range(index, index + 1) for chunk in suspects for index in chunk]
        while alone:
            for guilty in _run(function, items, alone, 1, 1, report):
                report({guilty[0]: crashed(items[guilty[0]])})
            alone = [chunk for chunk in alone if chunk[0] not in results]
        chunks = [chunk for chunk in chunks if chunk[0] not in results]
    return [results[index] for index in range(len(items))]


def _run(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    chunks: Sequence[range],
    workers: int,
    at_once: int,
    report: Callable[[dict[int, Result]], None],
) -> list[range]:
    """Run the chunks, ``at_once`` at a time; if the pool breaks, return the running ones and skip the rest."""
    waiting = iter(chunks)
    under_way: dict[Future[list[Result]], range] = {}
    broken: list[range] = []
    with _pool(workers) as pool:
        with main_module_hidden():  # a pool starts its processes on submission
            started = pool.submit(os.getpid)  # succeeds if any process starts
        while True:
            while not broken and len(under_way) < at_once and (chunk := next(waiting, None)) is not None:
                try:
                    with main_module_hidden():
                        future = pool.submit(_apply, function, [items[index] for index in chunk])
                except BrokenProcessPool:
                    broken.append(chunk)
                else:
                    under_way[future] = chunk
            if not under_way:
                if broken and started.exception() is not None:
                    raise ThawlineError("The processes for decoding images exit at startup: see their output above.")
                return broken
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                chunk = under_way.pop(future)
                try:
                    report(dict(zip(chunk, future.result(), strict=True)))
                except BrokenProcessPool:
                    broken.append(chunk)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_initialise)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _apply(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [function(item) for item in items]


def _initialise() -> None:
    """Leave Ctrl-C to the parent, which shuts down the pool, and exit if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def cores() -> int:
    """Number of cores available to this process, which a container or ``taskset`` may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
