"""Ctrl-C in a terminal, and a signal to the whole process group, at each phase of a search: two sentences, no more."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from faults import Search
from interruptions import RESUMES, STOPPED, stop
from terminals import terminal

from thawline.prefect_server import Files, shut_down

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("signals"), pytest.mark.timeout(600)]

EARLY = "2 classes; images"
OPTIONS = ["--trials", "3", "--epochs", "200", "--set", "space.freeze_depth=[3, 5]", "--set", "study.enqueue=[]"]


def starting_its_server(search: Search) -> Search:
    """The same, which starts Prefect's server itself."""
    for variable in [name for name in search.environment if name.startswith("PREFECT_")]:
        del search.environment[variable]
    return search


@pytest.fixture(scope="module")
def make_stopped(
    search_in: Callable[..., Search], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Search]]:
    """Makes searches in one home, to be stopped and started again: they share a server, and what is stored."""
    search = starting_its_server(search_in(tmp_path_factory.mktemp("signals") / "home"))
    yield lambda *options: replace(search, options=[*search.options, *options])
    shut_down(search.home)


def stopped_at(phase: str, way: str, search: Search) -> str:
    """What a search has shown that was stopped in this way once it had shown this."""
    with terminal(
        "search", search.data, *search.options, env=search.environment, cwd=search.home.parent, forks=search.forks
    ) as command:
        assert command.says(phase), command.text
        shown = stop(command, search.home, way)
    assert shown.count(STOPPED) == shown.count(RESUMES) == 1
    return shown


@pytest.mark.parametrize(
    ("phase", "way"),
    [
        (EARLY, "ctrl-c"),
        ("linear probe", "SIGINT to the group"),
        ("/200", "ctrl-c twice"),
        ("/200", "SIGTERM to the group"),
        ("/200", "SIGTERM to the group, and no server"),
    ],
)
def test_a_search_that_is_stopped_says_two_sentences_and_leaves_nothing_behind(
    phase: str, way: str, make_stopped: Callable[..., Search]
) -> None:
    search = make_stopped(*OPTIONS)
    if phase == EARLY:  # its fork server and its server are still loading their libraries then, which a fork has
        search = replace(search, forks=None)
    stopped_at(phase, way, search)


def test_a_search_is_stopped_as_well_while_its_best_trial_is_packaged_judged_and_reported(
    make_stopped: Callable[..., Search],
) -> None:
    search = make_stopped("--study", "ending", "--model", "ending", "--trials", "1", "--set", "tracking.report=true")
    stopped_at("packaging trial", "ctrl-c", replace(search, forks=None))
    stopped_at("scoring on", "SIGTERM to the group", search)
    shown = stopped_at("writing the report", "SIGINT to the group", search)
    assert "resuming study ending: 1 of 1 trial done" in shown
    versions = search.store.client.search_model_versions("name='ending'")
    assert len(versions) == 1, "it was packaged once"


def test_a_search_whose_server_is_killed_in_the_middle_goes_to_its_end(make_search: Callable[..., Search]) -> None:
    search = starting_its_server(make_search("whole", "--trials", "3", "--epochs", "2"))
    life = search.start()
    assert life.says("linear probes by freeze depth")
    address = Files(search.home).read()
    assert address is not None
    os.killpg(address.pid, signal.SIGKILL)
    code, _ = life.end()
    assert code == 0, "\n".join(life.lines)
    assert not any("Traceback" in line for line in life.lines)
    assert any("restarting it" in line for line in life.lines)
    assert len(search.outcome()["trials"]) == 3
