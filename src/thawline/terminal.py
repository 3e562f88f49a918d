"""The progress of a search: a live table on a terminal, plain lines in a pipe, or JSON."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from thawline import logs
from thawline.durations import clock
from thawline.search.events import EpochEnded, Event, Note, Phase, SearchStarted, TrialEnded, TrialStarted, watching

__all__ = ["SearchView", "watch"]

_PROGRESS_SECONDS = 10.0
"""Time between two lines of a long phase in a pipe."""
_ROWS = 12
"""Number of trials shown: the running ones, and the latest to end."""


@contextmanager
def watch(console: Console | None = None, *, quiet: bool) -> Iterator[None]:
    """Show the events of a search within the block, on ``console`` or else on standard error.

    With ``quiet``, only warnings are shown, because a program reads the output. Structured logs (see
    :mod:`thawline.logs`) contain every event.
    """
    logger = logging.getLogger("thawline")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    try:
        if logs.chosen() is logs.LogFormat.json:
            yield  # the root logger's handler writes them, with those of the libraries
        else:
            with _handler(console or Console(stderr=True), quiet=quiet) as handler:
                logger.propagate = False
                logger.addHandler(handler)
                try:
                    with watching(handler.progress):
                        yield
                finally:
                    logger.removeHandler(handler)
    finally:
        logger.setLevel(level)
        logger.propagate = propagate


def _handler(console: Console, *, quiet: bool) -> "_Handler":
    handler = _LineHandler(console) if quiet or not console.is_terminal else _LiveHandler(console)
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    return handler


class _Handler(logging.Handler):
    """A log handler as a context manager."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def __enter__(self) -> "_Handler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def progress(self, phase: Phase) -> None:
        """Show the progress of a phase."""


class _LineHandler(_Handler):
    """One line per event, with the time of day, and one every ten seconds in a long phase."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._last = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        self._print(record.created, f"{mark}{record.getMessage()}")

    def progress(self, phase: Phase) -> None:
        if self.level <= logging.INFO and time.monotonic() - self._last >= _PROGRESS_SECONDS:
            self._print(time.time(), str(phase))

    def _print(self, when: float, text: str) -> None:
        self._last = time.monotonic()
        clock = time.strftime("%H:%M:%S", time.localtime(when))
        self.console.print(f"{clock} {text}", highlight=False, markup=False, soft_wrap=True)


class _LiveHandler(_Handler):
    """A live table of the trials; notes scroll above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._view = SearchView()
        self._live = Live(self._view, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "_Handler":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self.close()

    def emit(self, record: logging.LogRecord) -> None:
        event: Event | None = getattr(record, "event", None)
        if event is None or isinstance(event, Note):
            style = "yellow" if record.levelno >= logging.WARNING else "dim"
            self._live.console.print(Text(record.getMessage(), style=style))
            return
        if isinstance(event, SearchStarted) and event.resumes:
            self._live.console.print(Text(str(event), style="bold"))
        self._view.update(event)
        if isinstance(event, Phase):
            self._live.refresh()  # the phase may end before the next automatic refresh

    def progress(self, phase: Phase) -> None:
        self._view.update(phase)


class SearchView:
    """The state of a search as a rich renderable, updated by events."""

    def __init__(self) -> None:
        self._search: SearchStarted | None = None
        self._created = self._began = time.monotonic()
        self._phase: Phase | None = None
        self._running: dict[int, tuple[TrialStarted, EpochEnded | None]] = {}
        self._ended: list[tuple[TrialStarted, TrialEnded]] = []
        self._best: float | None = None
        self._ends: float | None = None
        """Estimated end of all trials, in seconds of :func:`time.monotonic`."""
        self._deadline: float | None = None
        """End of the time limit, in the same unit."""

    def update(self, event: Event) -> None:
        """Process one event."""
        self._phase = event if isinstance(event, Phase) else None
        if isinstance(event, SearchStarted):
            self._search, self._began = event, time.monotonic()
            self._deadline = None if event.seconds is None else self._began + event.seconds
        elif isinstance(event, TrialStarted):
            self._running[event.number] = (event, None)
            self._ended = [(s, e) for s, e in self._ended if e.result.number != event.number]  # it was paused
        elif isinstance(event, EpochEnded):
            self._running[event.number] = (self._running[event.number][0], event)
            self._improve(event.value)
            self._estimate()
        elif isinstance(event, TrialEnded):
            started, _ = self._running.pop(event.result.number)
            self._ended.append((started, event))
            self._estimate()

    def __rich__(self) -> RenderableType:
        elapsed = clock(time.monotonic() - self._created)
        phase = Text(f"{self._phase or 'preparing'} …  {elapsed}", style="cyan")
        if self._search is None:
            return phase
        shown: list[RenderableType] = [self._headline(self._search), self._table(self._search)]
        return Group(*shown, phase) if self._phase is not None else Group(*shown)

    def _improve(self, value: float) -> None:
        if self._search is None:
            return
        better = min if self._search.metric == "loss" else max
        self._best = value if self._best is None else better(self._best, value)

    def _best_complete(self) -> float | None:
        values = [
            ended.result.value
            for _, ended in self._ended
            if ended.result.state == "complete" and ended.result.value is not None
        ]
        smallest = self._search is not None and self._search.metric == "loss"
        return (min if smallest else max)(values, default=None)

    def _headline(self, search: SearchStarted) -> Text:
        done = search.finished + sum(ended.result.state != "paused" for _, ended in self._ended)
        best = "-" if self._best is None else f"{self._best:.4f}"
        of = "" if search.trials is None else f" of {search.trials}"
        parts = [f"study {search.study}", f"trial {done}{of}", f"best val/{search.metric} {best}"]
        parts.append(f"{clock(time.monotonic() - self._created)} elapsed")
        if self._deadline is not None and (self._ends is None or self._deadline < self._ends):
            parts.append(f"{_left(self._deadline)} left")
        elif self._ends is not None:
            parts.append(f"about {_left(self._ends)} left")
        return Text("  ·  ".join(parts), style="bold")

    def _estimate(self) -> None:
        """Estimate the end from the mean duration of this run's trials; running ones count by their share of epochs.

        The estimate is updated when a trial ends, and counted down in between, because one that grew while nothing
        happened would be useless.
        """
        search = self._search
        share = sum(epoch.epoch / epoch.epochs for _, epoch in self._running.values() if epoch)
        progress = len(self._ended) + share
        if search is None or search.trials is None or progress == 0:
            return
        remaining = max(0.0, search.trials - search.finished - progress)
        now = time.monotonic()
        self._ends = now + remaining * (now - self._began) / progress

    def _table(self, search: SearchStarted) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, justify in (("trial", "right"), ("depth", "right"), ("learning rate", "right"), ("epoch", "right")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        table.add_column(f"val/{search.metric}", justify="right")
        table.add_column("state")
        rows = max(0, _ROWS - len(self._running))
        for started, ended in self._ended[-rows:] if rows else []:
            result = ended.result
            best = result.state == "complete" and result.value is not None and result.value == self._best_complete()
            style = (
                "bold green"
                if best
                else {"complete": "", "pruned": "dim", "paused": "dim", "failed": "red"}[result.state]
            )
            ending = f"{result.ending}, best so far" if best else result.ending
            table.add_row(*_first_cells(started), str(result.epochs), _value(result.value), ending, style=style)
        for started, epoch in self._running.values():
            epochs = 1 if started.hyperparameters.is_probe else search.epochs
            count = f"{epoch.epoch if epoch else started.epochs}/{epochs}"
            table.add_row(
                *_first_cells(started), count, _value(epoch.value if epoch else None), "running", style="cyan"
            )
        return table


def _first_cells(started: TrialStarted) -> tuple[str, str, str]:
    hyperparameters = started.hyperparameters
    rate = "probe" if hyperparameters.is_probe else f"{hyperparameters.learning_rate:.2e}"
    return str(started.number), str(hyperparameters.freeze_depth), rate


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _left(until: float) -> str:
    return clock(max(0.0, until - time.monotonic()))
