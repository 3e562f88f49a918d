"""Ctrl-C in a terminal, and a signal to the whole process group, at each phase of a command: two sentences, no more."""

import signal
from collections.abc import Callable

import psutil
import pytest
from faults import Search
from terminals import Terminal, terminal

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("signals"), pytest.mark.timeout(600)]

GRACE = 20
"""``study.grace_seconds`` by default; the end may come so much later, and three seconds."""
OPTIONS = ["--trials", "3", "--epochs", "200", "--set", "space.freeze_depth=[3, 5]", "--set", "study.enqueue=[]"]
STOPPED, GOES_ON = "Stopped.", "The same command goes on where it stopped."

WAYS: dict[str, tuple[Callable[[Terminal], None], int]] = {
    "ctrl-c": (Terminal.press_ctrl_c, 130),
    "group-int": (lambda command: command.signal_group(signal.SIGINT), 130),
    "group-term": (lambda command: command.signal_group(signal.SIGTERM), 143),
    "process-term": (lambda command: command.process.terminate(), 143),
}


def stop(command: Terminal, way: str) -> str:
    """Stop it in this way, and look at how it ends; what it had shown."""
    send, expected = WAYS[way]
    family = command.family()
    assert family, "it had ended before"
    send(command)
    code = command.end(GRACE + 3)
    assert code == expected, command.text
    for noise in ("Traceback", "Exception ignored", "leaked", "Error"):
        assert noise not in command.text
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, [process.cmdline() for process in alive]
    return command.text


@pytest.mark.parametrize(
    ("phase", "way"),
    [
        ("2 classes; images", "ctrl-c"),
        ("linear probe", "group-int"),
        (" 3/200", "ctrl-c"),
        (" 4/200", "group-term"),
        (" 5/200", "process-term"),
    ],
)
def test_a_search_that_is_stopped_says_two_sentences_and_leaves_nothing_behind(
    phase: str, way: str, make_search: Callable[..., Search]
) -> None:
    search = make_search("stopped", *OPTIONS)
    with terminal("search", search.data, *search.options, env=search.environment, cwd=search.home.parent) as command:
        assert command.says(phase), command.text
        shown = stop(command, way)
    assert shown.count(STOPPED) == shown.count(GOES_ON) == 1
