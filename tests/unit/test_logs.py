"""With ``--log-format json`` a program can read every line of standard error."""

import json
import logging
import math
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from thawline.logs import JsonFormatter, LogFormat, chosen
from thawline.search.events import EpochEnded, Event, Note, TrialEnded, TrialStarted
from thawline.search.trial_result import TrialResult
from thawline.training import Hyperparameters

DEEP = Hyperparameters("resnet18", 5, 1.2e-3, 0.01, 1.0, "adamw")


def line_of(message: str, level: int = logging.INFO, **more: Any) -> dict[str, Any]:
    record = logging.LogRecord("thawline.search", level, __file__, 1, message, None, more.pop("exc_info", None))
    for name, value in more.items():
        setattr(record, name, value)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line: dict[str, Any] = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return line


def line_of_event(event: Event) -> dict[str, Any]:
    return line_of(str(event), event=event)


def lines_of(program: str, **environment: str) -> list[dict[str, Any]]:
    """What a Python program writes to standard error; every line of it must be an object."""
    ended = run(sys.executable, "-c", program, **environment)
    assert ended.stdout == ""
    return [json.loads(line) for line in ended.stderr.splitlines()]


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


def thawline(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "thawline", *arguments, **environment)


def test_a_line_says_when_how_grave_who_and_what() -> None:
    before = datetime.now(UTC)
    line = line_of("two\nlines", logging.WARNING)
    assert list(line) == ["time", "level", "logger", "message"]
    assert line["time"].endswith("Z")
    assert len(line["time"]) == len("2026-01-31T12:00:00.123Z")
    assert abs((datetime.fromisoformat(line["time"]) - before).total_seconds()) < 60
    assert (line["level"], line["logger"], line["message"]) == ("warning", "thawline.search", "two\nlines")


def test_an_event_has_its_name_and_its_fields_beside_the_sentence() -> None:
    line = line_of_event(TrialStarted(3, DEEP))
    assert line["message"] == "trial-03 depth=5 lr=1.2e-3"
    assert line["event"] == "trial_started"
    assert (line["number"], line["epochs"]) == (3, 0)
    assert (line["backbone"], line["freeze_depth"], line["learning_rate"]) == ("resnet18", 5, 1.2e-3)

    ended = line_of_event(TrialEnded(TrialResult(3, "pruned", 0.9, 2, 2, 12.3, "pruned after epoch 2", "run", None)))
    assert (ended["event"], ended["state"], ended["reason"]) == ("trial_ended", "pruned", "pruned after epoch 2")
    assert ended["checkpoint"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_in_json_is_null(value: float) -> None:
    line = line_of_event(EpochEnded(0, 1, 2, "accuracy", value, 0.5))
    assert line["value"] is None
    assert line["loss"] == 0.5


def test_a_field_of_an_event_does_not_hide_what_every_line_has() -> None:
    line = line_of_event(Note("a step", "warning"))
    assert (line["level"], line["event"]) == ("info", "note")  # the record's level is what its sender gave it


def test_an_unexpected_error_has_its_class_and_its_traceback() -> None:
    try:
        raise ValueError("3 is too many")
    except ValueError:
        line = line_of("it failed", logging.ERROR, exc_info=sys.exc_info())
    assert line["error"] == "ValueError"
    assert "3 is too many" in line["traceback"]


def test_values_that_json_does_not_have_become_texts() -> None:
    assert line_of("x", error=Path("a/b"))["error"] == "a/b"


@pytest.mark.parametrize(("value", "expected"), [("json", LogFormat.json), ("text", LogFormat.text), ("yaml", "text")])
def test_the_environment_says_the_format(value: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THAWLINE_LOG_FORMAT", value)
    assert chosen() == expected


SPEAKERS = """
import logging, sys, threading, warnings
from thawline import logs
logs.start()
logs.start()
from rich.console import Console
from rich.progress import track
logging.getLogger("thawline").setLevel(logging.INFO)
logging.getLogger("thawline.search").info("of ours")
logging.getLogger("thawline.search").debug("too small")
logging.getLogger("other").warning("of another")
logging.getLogger("other").info("too small")
logging.getLogger("prefect").info("as its own switch says")
warnings.warn("careful")
print("printed", file=sys.stderr)
print("in pieces, ", end="", file=sys.stderr)
print("one line", file=sys.stderr)
list(track([1, 2], console=Console(stderr=True), transient=True))
print("10 %\\r100 %", file=sys.stderr)
logging.StreamHandler().handle(logging.makeLogRecord({"msg": "by its own handler"}))
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
sys.stderr.write("not ended")
"""


def test_everything_on_standard_error_is_json() -> None:
    lines = lines_of(SPEAKERS, THAWLINE_LOG_FORMAT="json", PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="CRITICAL")
    said = [(line["logger"], line["level"], line["message"]) for line in lines]
    assert said[:2] == [("thawline.search", "info", "of ours"), ("other", "warning", "of another")]
    assert said[2][0] == "py.warnings"
    assert "UserWarning: careful" in said[2][2]
    texts = [message for logger, _, message in said[3:] if logger == "stderr"]
    assert len(texts) == len(said) - 3
    assert texts[:4] == ["printed", "in pieces, one line", "100 %", "by its own handler"]
    assert texts[-2:] == ["ZeroDivisionError: division by zero", "not ended"]


def test_control_without_it_the_same_program_writes_text() -> None:
    ended = run(sys.executable, "-c", SPEAKERS)
    assert "of another\n" in ended.stderr
    assert "{" not in ended.stderr.splitlines()[0]


def test_prefect_leaves_the_format_as_it_is() -> None:
    program = """
from thawline import environment, logs
logs.start()
environment.prepare_flows(); environment.quiet_prefect()
import logging, prefect
logging.getLogger("other").warning("after Prefect has set up its logs")
logging.getLogger("prefect").warning("quiet")
"""
    (line,) = lines_of(program, THAWLINE_LOG_FORMAT="json")
    assert line["message"] == "after Prefect has set up its logs"


def test_a_search_that_is_watched_tells_all_its_events() -> None:
    program = """
from thawline import logs
logs.start()
from rich.console import Console
from thawline.search.events import Note, SearchStarted, emit
from thawline.terminal import watch
with watch(Console(stderr=True, force_terminal=True), quiet=True):
    emit(SearchStarted("pets", 4, 0, 2, "loss"))
    emit(Note("a bad file", "warning"))
emit(Note("when nobody watches any more"))
"""
    started, note = lines_of(program, THAWLINE_LOG_FORMAT="json")
    assert (started["event"], started["study"], started["trials"]) == ("search_started", "pets", 4)
    assert (note["event"], note["level"], note["message"]) == ("note", "warning", "a bad file")


@pytest.mark.parametrize(
    ("arguments", "environment", "error", "message"),
    [
        (("--log-format", "json", "recipes", "copy", "balancd"), {}, "ConfigError", "Did you mean 'balanced'?"),
        (("--log-format", "json", "serch"), {}, "UsageError", "No such command 'serch'"),
        (("recipes", "--fast"), {"THAWLINE_LOG_FORMAT": "json"}, "UsageError", "No such option: --fast"),
        (("--fast",), {"THAWLINE_LOG_FORMAT": "json"}, "UsageError", "No such option: --fast"),
    ],
)
def test_a_mistake_is_one_object_with_the_kind_of_error(
    arguments: tuple[str, ...], environment: dict[str, str], error: str, message: str
) -> None:
    ended = thawline(*arguments, **environment)
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = (json.loads(text) for text in ended.stderr.splitlines())
    assert (line["level"], line["error"]) == ("error", error)
    assert message in line["message"]


def test_the_option_counts_more_than_the_environment() -> None:
    ended = thawline("--log-format", "text", "recipes", "copy", "balancd", THAWLINE_LOG_FORMAT="json")
    assert ended.returncode == 2
    assert ended.stderr.startswith("Error: ")


def test_a_command_typed_wrongly_is_told_so_with_its_usage() -> None:
    ended = thawline("serch")
    assert ended.returncode == 2
    assert "Usage: " in ended.stderr
    assert "No such command 'serch'. Did you mean 'search'" in ended.stderr


def test_what_a_command_prints_stays_what_it_was() -> None:
    ended = thawline("--log-format", "json", "recipes", "--json")
    assert ended.returncode == 0
    assert json.loads(ended.stdout)
    assert ended.stderr == ""
