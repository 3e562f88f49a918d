"""What a search shows: plain lines in a pipe, a table on a terminal."""

import dataclasses
import io
import logging
from typing import Any

import pytest
from rich.console import Console

from thawline.search.events import EpochEnded, Note, Phase, SearchStarted, TrialEnded, TrialStarted, counting, emit
from thawline.search.trial_result import TrialResult
from thawline.terminal import SearchView, watch
from thawline.training import Hyperparameters

DEEP = Hyperparameters("resnet18", 5, 1.2e-3, 0.01, 1.0, "adamw")
ENDED = TrialResult(0, "complete", 0.9, 2, 2, 12.3, "", "run", "file")


def events() -> list[SearchStarted | TrialStarted | EpochEnded | TrialEnded]:
    return [
        SearchStarted("pets", trials=4, finished=0, epochs=2, metric="accuracy"),
        TrialStarted(0, DEEP),
        EpochEnded(0, 1, 2, "accuracy", 0.5, 1.0),
        EpochEnded(0, 2, 2, "accuracy", 0.9, 0.5),
        TrialEnded(ENDED),
        TrialStarted(1, DEEP),
        EpochEnded(1, 1, 2, "accuracy", 0.7, 0.7),
    ]


def shown(view: SearchView) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_in_a_pipe_every_event_is_a_line() -> None:
    out = io.StringIO()
    with watch(Console(file=out, force_terminal=False), quiet=False):
        for event in events():
            emit(event)
        emit(TrialStarted(2, DEEP, epochs=3))
        emit(Note("cat/broken.jpg: truncated", "warning"))
    lines = [line[9:] for line in out.getvalue().splitlines()]
    assert lines == [
        "study pets: 4 trials of up to 2 epochs",
        "trial-00 depth=5 lr=1.2e-3",
        "trial-00 epoch 1/2: train/loss 1.0000, val/accuracy 0.5000",
        "trial-00 epoch 2/2: train/loss 0.5000, val/accuracy 0.9000",
        "trial-00 ended after 12.3 s, best value 0.9000: complete",
        "trial-01 depth=5 lr=1.2e-3",
        "trial-01 epoch 1/2: train/loss 0.7000, val/accuracy 0.7000",
        "trial-02 depth=5 lr=1.2e-3 resumes after epoch 3",
        "warning: cat/broken.jpg: truncated",
    ]


def test_a_phase_is_a_line_where_it_begins_and_its_progress_one_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    out = io.StringIO()
    with watch(Console(file=out, force_terminal=False), quiet=False):
        count = counting("reading images")
        for second in range(25):
            clock[0] += 1.0
            count(100 * (second + 1), 2_500)
    lines = [line[9:] for line in out.getvalue().splitlines()]
    assert lines == ["reading images", "reading images 1,000 / 2,500", "reading images 2,000 / 2,500"]


def test_the_view_shows_the_phase_how_far_it_is_and_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    view = SearchView()
    view.update(Phase("reading images", 1_200, 2_062))
    clock[0] = 75.0
    assert "reading images 1,200 / 2,062" in shown(view)
    assert "1 min 15 s" in shown(view)
    for event in events():
        view.update(event)
    assert "reading" not in shown(view), "the next thing has begun"
    view.update(Phase("packaging trial 0 as model pets"))
    assert "packaging trial 0" in shown(view)
    assert "trial 1 of 4" in shown(view), "the table stays"


def test_the_time_left_never_grows_while_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    view = SearchView()
    for event in events()[:5]:
        clock[0] += 2.0
        view.update(event)
    assert "about 24 s left" in shown(view), "three of four trials, 8 s each"
    clock[0] += 20.0
    assert "about 4 s left" in shown(view)
    clock[0] += 20.0
    assert "about 0 s left" in shown(view)


def test_the_best_trial_is_marked() -> None:
    view = SearchView()
    for event in events()[:5]:
        view.update(event)
    (line,) = [line for line in shown(view).splitlines() if "0.9000" in line and "complete" in line]
    assert line.rstrip().endswith("complete, best so far")


def test_a_search_that_resumes_says_what_is_done_and_where_trials_resume() -> None:
    started = SearchStarted("pets", 6, 2, 8, "accuracy", unfinished=((3, 4),))
    assert str(started) == "resuming study pets: 2 of 6 trials done, trial 3 from epoch 4"
    assert str(SearchStarted("pets", 6, 0, 8, "accuracy")) == "study pets: 6 trials of up to 8 epochs"
    assert str(SearchStarted("pets", 1, 0, 1, "accuracy")) == "study pets: 1 trial of up to 1 epoch"


def test_a_search_that_only_time_limits_says_how_much_is_left() -> None:
    timed = SearchStarted("pets", None, 0, 8, "accuracy", seconds=1800.0)
    assert str(timed) == "study pets: trials of up to 8 epochs, 30 min left"
    resumed = SearchStarted("pets", None, 2, 8, "accuracy", unfinished=((3, 4),), seconds=59.6)
    assert str(resumed) == "resuming study pets: 2 trials done, 60 s left, trial 3 from epoch 4"
    both = SearchStarted("pets", 6, 0, 8, "accuracy", seconds=1800.0)
    assert str(both) == "study pets: 6 trials of up to 8 epochs, 30 min left"


def test_the_view_counts_down_to_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    view = SearchView()
    view.update(SearchStarted("pets", None, finished=0, epochs=2, metric="accuracy", seconds=100.0))
    clock[0] = 16.0
    for event in events()[1:]:
        view.update(event)
    assert "trial 1  " in shown(view)
    assert "  1 min 24 s left" in shown(view)
    many, few = (SearchStarted("pets", trials, 0, 2, "accuracy", seconds=100.0) for trials in (20, 2))
    for started, left in ((many, "  1 min 40 s left"), (few, "about 5 s left")):
        view = SearchView()
        clock[0] = 0.0
        view.update(started)
        clock[0] = 16.0
        for event in events()[1:]:
            view.update(event)
        clock[0] = 0.0 if started is many else 16.0
        assert left in shown(view), "whichever comes first"


def test_a_search_that_resumes_says_so_on_a_terminal_too() -> None:
    out = io.StringIO()
    with watch(Console(file=out, force_terminal=True, width=120), quiet=False):
        emit(SearchStarted("pets", 6, 2, 8, "accuracy", unfinished=((3, 4),)))
        emit(Phase("packaging"))
    assert "resuming study pets: 2 of 6 trials done, trial 3 from epoch 4" in out.getvalue()
    assert "packaging" in out.getvalue(), "a phase is shown however short it is"


def test_when_a_program_reads_the_output_only_warnings_are_shown() -> None:
    out = io.StringIO()
    with watch(Console(file=out, force_terminal=False), quiet=True):
        emit(Note("a step"))
        emit(Note("a bad file", "warning"))
    assert [line[9:] for line in out.getvalue().splitlines()] == ["warning: a bad file"]


def test_the_view_shows_trials_best_value_and_time_left() -> None:
    view = SearchView()
    assert "preparing" in shown(view)
    for event in events():
        view.update(event)
    text = shown(view)
    assert "study pets" in text
    assert "trial 1 of 4" in text
    assert "best val/accuracy 0.9000" in text
    assert "left" in text
    assert "complete" in text
    assert "running" in text
    assert "1/2" in text


def test_the_best_of_a_loss_is_the_smallest() -> None:
    view = SearchView()
    view.update(SearchStarted("pets", trials=2, finished=0, epochs=2, metric="loss"))
    view.update(TrialStarted(0, DEEP))
    for value in (0.5, 0.3, 0.4):
        view.update(EpochEnded(0, 1, 2, "loss", value, value))
    assert "best val/loss 0.3000" in shown(view)


@pytest.mark.parametrize("rate", [1e-3, 0.5, 9.96e-5])
def test_a_learning_rate_is_short_and_readable(rate: float) -> None:
    from thawline.search.trial_result import trial_name

    text = trial_name(7, Hyperparameters("resnet18", 3, rate, 0.01, 1.0, "sgd"))
    assert text.startswith("trial-07 depth=3 lr=")
    assert float(text.rpartition("=")[2]) == pytest.approx(rate, rel=0.06)


def test_logging_is_left_as_it_was() -> None:
    logger = logging.getLogger("thawline")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with watch(Console(file=io.StringIO()), quiet=False):
        pass
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("complete", "", "complete"),
        ("complete", "no improvement for 3 epochs", "complete: no improvement for 3 epochs"),
        ("pruned", "pruned after epoch 2", "pruned after epoch 2"),
        ("failed", "out of memory", "failed: out of memory"),
    ],
)
def test_how_a_trial_ended_is_reported_once(state: Any, reason: str, words: str) -> None:
    ended = TrialEnded(dataclasses.replace(ENDED, state=state, reason=reason))
    assert str(ended).endswith(f"0.9000: {words}")
    view = SearchView()
    for event in [*events()[:2], ended]:
        view.update(event)
    assert f" {words}" in shown(view)
    assert shown(view).count(state) == 1
