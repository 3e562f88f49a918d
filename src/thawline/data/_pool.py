"""Map a function over files in other processes, so that a decoder that crashes takes down one file, not the run."""

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

__all__ = ["map_files"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 16  # files per message: some 100 ms of decoding, beside which sending costs nothing


def map_files(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None,
    crashed: Callable[[Item], Result],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """``[function(item) for item in items]`` in ``workers`` processes (by default one per core), in that order.

    An item whose process dies (a segmentation fault, the kernel's out-of-memory killer) is tried once more alone; if
    its process dies again, ``crashed(item)`` stands in for its result. Exceptions of ``function`` are raised here.

    The processes are spawned, not forked: forking a process that has run torch's threads can deadlock, and
    multiprocessing's one fork server is left to the trials, which need it preloaded with torch.
    """
    results: dict[int, Result] = {}

    def report(done: dict[int, Result]) -> None:
        results.update(done)
        if on_progress is not None:
            on_progress(len(results), len(items))

    chunks = [range(start, min(start + _CHUNK, len(items))) for start in range(0, len(items), _CHUNK)]
    while chunks:
        unfinished = _run(function, items, chunks, min(workers or _cores(), len(chunks)), report)
        for chunk in unfinished:  # no more than two per worker: one of their files broke the pool
            for index in chunk:
                alone = _run(function, items, [range(index, index + 1)], 1, report)
                if alone:
                    report({index: crashed(items[index])})
        chunks = [chunk for chunk in chunks if chunk[0] not in results]
    return [results[index] for index in range(len(items))]


def _run(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    chunks: Sequence[range],
    workers: int,
    report: Callable[[dict[int, Result]], None],
) -> list[range]:
    """Run the chunks; if the pool breaks, return those that were under way and leave the rest undone."""
    waiting = iter(chunks)
    under_way: dict[Future[list[Result]], range] = {}
    broken: list[range] = []
    with _pool(workers) as pool:
        while True:
            # Two chunks per worker keep all busy and say closely which files were being read when a process died.
            while not broken and len(under_way) < 2 * workers and (chunk := next(waiting, None)) is not None:
                try:
                    future = pool.submit(_apply, function, [items[index] for index in chunk])
                except BrokenProcessPool:
                    broken.append(chunk)
                else:
                    under_way[future] = chunk
            if not under_way:
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
    """Leave Ctrl-C to the parent, which stops the pool in order, and end when the parent has been killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _cores() -> int:
    """Cores that this process may use, which in a container or under ``taskset`` are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
