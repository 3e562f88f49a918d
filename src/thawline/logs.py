"""Structured logs: with ``--log-format json``, standard error consists of one JSON object per line.

The choice is an environment variable, which the processes of a search or a server inherit.
"""

import atexit
import dataclasses
import io
import json
import logging
import math
import os
import re
import sys
import threading
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO

__all__ = ["VARIABLE", "JsonFormatter", "JsonHandler", "LogFormat", "choose", "chosen", "start"]

VARIABLE = "THAWLINE_LOG_FORMAT"


class LogFormat(StrEnum):
    """The format of standard error."""

    text = "text"
    """Readable lines, with a live table on a terminal."""
    json = "json"
    """JSON objects, one per line, for programs."""


def chosen() -> LogFormat:
    """The value of ``THAWLINE_LOG_FORMAT``; text if it is unset or unknown."""
    return LogFormat.json if os.environ.get(VARIABLE) == LogFormat.json else LogFormat.text


def choose(log_format: LogFormat) -> None:
    """Set the format for this process and for those that it starts from now on."""
    os.environ[VARIABLE] = log_format.value
    start()


def start() -> None:
    """With the format JSON, turn all output on standard error into JSON; call it in every process.

    This covers Thawline's log records from INFO on, others' records and Python's warnings from WARNING on, and lines
    written directly, as records of the logger ``stderr``. Output of C++ code is unchanged.
    """
    if chosen() is LogFormat.text or isinstance(sys.stderr, _StderrAsRecords):
        return
    # Otherwise MLflow formats its own records. It reads this on import.
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    logging.getLogger().addHandler(JsonHandler(sys.stderr))
    logging.captureWarnings(True)
    sys.stderr = lines = _StderrAsRecords(sys.stderr)
    atexit.register(lines.end_line)


class JsonFormatter(logging.Formatter):
    """Formats a log record as one line: ``time``, ``level``, ``logger``, ``message``, and further fields.

    The time is UTC in RFC 3339 format with milliseconds. An event of a search adds ``event``, its name such as
    ``trial_ended``, and its fields; an error adds ``error``, the name of its class, and an unexpected one its
    ``traceback``. Numbers that JSON does not have (NaN, infinity) are null.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a line break."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().rstrip(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line |= {"error": record.exc_info[0].__name__, "traceback": self.formatException(record.exc_info)}
        if error := getattr(record, "error", None):
            line["error"] = error
        event = getattr(record, "event", None)
        if dataclasses.is_dataclass(event) and not isinstance(event, type):
            line["event"] = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(event).__name__).lower()
            line = line | _flat(dataclasses.asdict(event)) | line
        return json.dumps(_finite(line), default=str)


class JsonHandler(logging.StreamHandler[TextIO]):
    """Writes records with :class:`JsonFormatter`; from other libraries only those that Thawline's log would show."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.setFormatter(JsonFormatter())  # prevents Prefect from removing the handler from the root logger
        self.addFilter(_is_shown)


def _is_shown(record: logging.LogRecord) -> bool:
    library = record.name.partition(".")[0]
    if library == "prefect":  # it has its own switch, used by `quiet_prefect`
        shown = os.environ.get("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "")
        return record.levelno >= logging.getLevelNamesMapping().get(shown, logging.INFO)
    return record.levelno >= (logging.INFO if library == "thawline" else logging.WARNING)


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """Merge the fields of a nested value into those of the event."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _StderrAsRecords(io.TextIOBase):
    """Replaces standard error: every written line becomes a record. It is not a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._handler = stream, JsonHandler(stream)
        self._begun, self._lock = "", threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._tell(line)
        return len(text)

    def end_line(self) -> None:
        """Write an unfinished line."""
        self.write("\n")

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def flush(self) -> None:
        self._stream.flush()

    def _tell(self, line: str) -> None:
        message = line.rstrip().rpartition("\r")[2]  # a progress bar overwrites itself
        if message:
            self._handler.handle(logging.LogRecord("stderr", logging.WARNING, "", 0, message, None, None))
