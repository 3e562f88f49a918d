"""Ctrl-C in a terminal, and a signal to the whole process group, at each phase of a command: two sentences, no more."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from faults import Search
from terminals import Terminal, terminal

from thawline.prefect_server import Files

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("signals"), pytest.mark.timeout(600)]

GRACE = 20
"""``study.grace_seconds`` by default; the end may come so much later, and three seconds."""
OPTIONS = ["--trials", "3", "--epochs", "200", "--set", "space.freeze_depth=[3, 5]", "--set", "study.enqueue=[]"]
STOPPED, RESUMES = "Stopped.", "The same command resumes where it stopped."


@pytest.fixture
def make_search(make_search: Callable[..., Search]) -> Callable[..., Search]:
    """Searches that start Prefect's server themselves."""

    def make(name: str, *options: str) -> Search:
        search = make_search(name, *options)
        for variable in [name for name in search.environment if name.startswith("PREFECT_")]:
            del search.environment[variable]
        return search

    return make


def press_twice(command: Terminal, home: Path) -> None:
    """By somebody impatient."""
    command.press_ctrl_c()
    command.press_ctrl_c()


def end_everything(command: Terminal, home: Path) -> None:
    """As a machine that goes down, or systemd: Prefect's server is gone before the search can tell it anything."""
    address = Files(home).read()
    assert address is not None
    os.killpg(address.pid, signal.SIGKILL)
    command.signal_group(signal.SIGTERM)


WAYS: dict[str, tuple[Callable[[Terminal, Path], None], int]] = {
    "ctrl-c": (lambda command, _: command.press_ctrl_c(), 130),
    "ctrl-c twice": (press_twice, 130),
    "SIGINT to the group": (lambda command, _: command.signal_group(signal.SIGINT), 130),
    "SIGTERM to the group": (lambda command, _: command.signal_group(signal.SIGTERM), 143),
    "SIGTERM to the group, and no server": (end_everything, 143),
}


def stop(command: Terminal, home: Path, way: str) -> str:
    """Stop it in this way, and look at how it ends; what it had shown."""
    send, expected = WAYS[way]
    family = command.family()
    assert family, "it had ended before"
    send(command, home)
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
        ("linear probe", "SIGINT to the group"),
        ("/200", "ctrl-c twice"),
        ("/200", "SIGTERM to the group"),
        ("/200", "SIGTERM to the group, and no server"),
    ],
)
def test_a_search_that_is_stopped_says_two_sentences_and_leaves_nothing_behind(
    phase: str, way: str, make_search: Callable[..., Search]
) -> None:
    search = make_search("stopped", *OPTIONS)
    with terminal("search", search.data, *search.options, env=search.environment, cwd=search.home.parent) as command:
        assert command.says(phase), command.text
        shown = stop(command, search.home, way)
    assert shown.count(STOPPED) == shown.count(RESUMES) == 1


def test_a_search_whose_server_is_killed_in_the_middle_goes_to_its_end(make_search: Callable[..., Search]) -> None:
    search = make_search("whole", "--trials", "3", "--epochs", "2")
    life = search.start()
    assert life.says("linear probes by freeze depth")
    address = Files(search.home).read()
    assert address is not None
    os.killpg(address.pid, signal.SIGKILL)
    code, _ = life.end()
    assert code == 0, "\n".join(life.lines)
    assert not any("Traceback" in line for line in life.lines)
    assert any("it is started again" in line for line in life.lines)
    assert len(search.outcome()["trials"]) == 3
