"""Parsing of requests, within limits.

Images come as multipart files, as a raw body, or as base64 in JSON; texts as JSON or as a plain body. Slow parts run in
a thread, so that they do not block other requests.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import Message
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from thawline.data import DataKind, encoded_image, printable
from thawline.registry.names import COLUMNS

__all__ = ["BadRequest", "SentItem", "check_values", "items_of", "json_of", "too_many"]

_FORMS: dict[DataKind, str] = {
    "images": "a multipart form with image files, a body of type image/*, or JSON with base64",
    "texts": 'JSON {"text": TEXT} or {"texts": [TEXT, …]}, or a body of type text/plain in UTF-8',
}
_UTF_8 = {"utf-8", "utf8", "us-ascii"}
"""Charsets whose bytes are UTF-8."""
_MAX_FIELDS = 100
_CHUNK = 64 * 1024
"""Bytes of a form to parse before other requests get a turn."""
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_QUOTED = re.compile(rb'(?:(?<=[,\n\r])|^)"(?:[^"]|"")*+"')
"""In CSV: a quote within quotes is doubled, and one that does not begin a field is text."""


_LONGEST_SENTENCE = 1000


class BadRequest(Exception):
    """A client error: an HTTP status from 400 to 499 and one sentence.

    Quotes from the request are shortened, and characters that are not printable are escaped.
    """

    def __init__(self, status: int, sentence: str) -> None:
        sentence = printable(sentence)
        super().__init__(sentence if len(sentence) <= _LONGEST_SENTENCE else f"{sentence[:_LONGEST_SENTENCE]}…")
        self.status = status


@dataclass(frozen=True)
class SentItem:
    """An encoded image or a text, with a name for messages."""

    name: str
    content: bytes | str


def too_many(count: int, kind: DataKind, max_items: int) -> BadRequest:
    """The error for a request with too many images or texts."""
    return BadRequest(413, f"The request contains {count:,} {kind}; this server accepts at most {max_items:,}.")


def check_values(body: bytes | bytearray, content_type: str, *, max_items: int) -> None:
    """Reject JSON or CSV with far more values than ``max_items`` rows have, before parsing it.

    A parser turns two bytes into an object of sixty, and a table with a million columns takes minutes. This function
    counts brackets and commas outside strings in JSON, and commas and line breaks outside quotes in CSV, at memory
    speed.

    Args:
        body: body of the request.
        content_type: without its parameters.
        max_items: maximum number of rows; each may have four values and brackets.

    Raises:
        BadRequest: 413.
    """
    most = 4 * max_items + 64
    strings, marks = (_QUOTED, b",\n\r") if content_type == "text/csv" else (_STRING, b",[{")
    if _count(body, marks) > most and _count(strings.sub(b"", body), marks) > most:
        raise BadRequest(413, f"The request contains too many values; this server accepts at most {max_items:,} rows.")


def _count(body: bytes | bytearray, marks: bytes) -> int:
    return sum(body.count(mark) for mark in marks)


async def items_of(headers: Headers, body: bytes | bytearray, kind: DataKind, *, max_items: int) -> list[SentItem]:
    """The encoded images or the texts in a request's body, at least one.

    JSON is ``{"image": BASE64}``, ``{"images": [BASE64, …]}``, ``{"text": TEXT}`` or ``{"texts": [TEXT, …]}``. Invalid
    images and empty texts are detected later, when they are prepared for the network.

    Args:
        headers: headers of the request.
        body: body of the request.
        kind: kind of the served model.
        max_items: maximum number of items.

    Raises:
        BadRequest: 400, 413 or 415, with the expected form; also for bodies that a model of the other kind accepts.
    """
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/json":
        items = await asyncio.to_thread(_json_items, body, kind, max_items)
    elif kind == "texts" and content_type == "text/plain":
        items = [SentItem("The text", _text(headers, body))]
    elif kind == "images" and content_type == "multipart/form-data":
        items = await _files(headers, body, max_items)
    elif kind == "images" and (content_type.startswith("image/") or content_type == "application/octet-stream"):
        items = [SentItem("The image", bytes(body))]
    else:
        said = f"not {content_type!r}" if content_type else "with the matching Content-Type"
        raise BadRequest(415, f"This model classifies {kind}: send {_FORMS[kind]}, {said}.")
    if not items:
        raise BadRequest(400, f"There is no {COLUMNS[kind]} in the request: send {_FORMS[kind]}.")
    if len(items) > max_items:
        raise too_many(len(items), kind, max_items)
    return items


def _text(headers: Headers, body: bytes | bytearray) -> str:
    options = Message()  # EmailMessage fails on malformed parameters
    options["Content-Type"] = headers["content-type"]
    charset = options.get_content_charset() or "utf-8"
    if charset not in _UTF_8:
        raise BadRequest(415, f"The text must be in UTF-8, but its charset is {charset!r}.")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(400, f"The text is not UTF-8: byte {error.start} cannot be read.") from None


class _WholeForm(MultiPartParser):
    """Records whether the form's last boundary was found: without it, the form may be truncated."""

    whole = False

    def on_end(self) -> None:
        self.whole = True


async def _files(headers: Headers, body: bytes | bytearray, max_items: int) -> list[SentItem]:
    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(body), _CHUNK):
            yield bytes(body[start : start + _CHUNK])
            await asyncio.sleep(0)
        if not parser.whole:  # raised here, where the parser closes the files it has opened
            raise MultiPartException("it is truncated, its last boundary is missing")

    try:
        # The body is already in memory and limited in size, so files may be too.
        parser = _WholeForm(headers, stream(), max_files=max_items, max_fields=_MAX_FIELDS)  # type: ignore[arg-type]
        parser.spool_max_size = len(body) + 1
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = error.message if isinstance(error, MultiPartException) else str(error)
        status = 413 if reason.startswith("Too many") else 400
        raise BadRequest(status, f"The multipart form cannot be read: {reason.rstrip('.')}.") from None
    try:
        files = []
        for key, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise BadRequest(400, f"The form's field {key!r} is not a file. Send image files only.")
            files.append(SentItem(value.filename or key, await value.read()))
        return files
    finally:
        await form.close()


def json_of(body: bytes | bytearray, *, max_items: int) -> Any:
    """Parse a JSON body, see :func:`check_values`.

    Raises:
        BadRequest: 413, or 400 if it is not JSON.
    """
    check_values(body, "application/json", max_items=max_items)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest(400, "The body is not JSON.") from None


def _json_items(body: bytes | bytearray, kind: DataKind, max_items: int) -> list[SentItem]:
    value = json_of(body, max_items=max_items)
    one, form = COLUMNS[kind], "TEXT" if kind == "texts" else "BASE64"
    if isinstance(value, dict) and value.keys() == {one}:
        sent, names = [value[one]], [f"The {one}"]
    elif isinstance(value, dict) and value.keys() == {kind} and isinstance(value[kind], list):
        sent = value[kind]
        names = [f"{one.capitalize()} {index}" for index in range(len(sent))]
    else:
        raise BadRequest(
            400,
            f'This model classifies {kind}: the JSON must be {{"{one}": {form}}} or {{"{kind}": [{form}, …]}}, without '
            "other fields.",
        )
    items = []
    for name, content in zip(names, sent, strict=True):
        if not isinstance(content, str):
            raise BadRequest(400, f"{name} must be {'a string' if kind == 'texts' else 'base64 text'}.")
        try:
            items.append(SentItem(name, content if kind == "texts" else encoded_image(content)))
        except ValueError as error:
            raise BadRequest(400, f"{name}: {error}.") from None
    return items
