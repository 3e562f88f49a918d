"""What a client sends, read within a limit.

Images come as multipart files, as a raw body, or as base64 in JSON; texts as JSON or as a plain body.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from thawline.data import DataKind, encoded_image
from thawline.registry.names import COLUMNS

__all__ = ["BadRequest", "SentItem", "items_of", "read_body"]

_FORMS: dict[DataKind, str] = {
    "images": "a multipart form with image files, a body of type image/*, or JSON with base64",
    "texts": 'JSON {"text": TEXT} or {"texts": [TEXT, …]}, or a body of type text/plain in UTF-8',
}
_UTF_8 = {"utf-8", "utf8", "us-ascii"}
"""Charsets whose bytes are UTF-8."""
_MAX_FIELDS = 100


class BadRequest(Exception):
    """The client's mistake: an HTTP status from 400 to 499 and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class SentItem:
    """An encoded image or a text, and what the client calls it."""

    name: str
    content: bytes | str


async def read_body(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is too large, whatever its headers say.

    Raises:
        BadRequest: 413.
    """
    too_large = BadRequest(413, f"The body is larger than the {limit:,} bytes that this server takes.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


async def items_of(headers: Headers, body: bytes, kind: DataKind, *, max_items: int) -> list[SentItem]:
    """The encoded images, or the texts, of a request's body, at least one.

    JSON is ``{"image": BASE64}``, ``{"images": [BASE64, …]}``, ``{"text": TEXT}`` or ``{"texts": [TEXT, …]}``. What is
    no image, and what is an empty text, is found out when it is prepared for the network.

    Args:
        headers: of the request.
        body: of the request.
        kind: what the served model classifies.
        max_items: more are refused.

    Raises:
        BadRequest: 400, 413 or 415, with what was expected; also for what a model of the other kind would take.
    """
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/json":
        items = _json_items(body, kind)
    elif kind == "texts" and content_type == "text/plain":
        items = [SentItem("The text", _text(headers, body))]
    elif kind == "images" and content_type == "multipart/form-data":
        items = await _files(headers, body)
    elif kind == "images" and (content_type.startswith("image/") or content_type == "application/octet-stream"):
        items = [SentItem("The image", body)]
    else:
        said = f"not {content_type!r}" if content_type else "and Content-Type says which"
        raise BadRequest(415, f"This model classifies {kind}: send {_FORMS[kind]}, {said}.")
    if not items:
        raise BadRequest(400, f"There is no {COLUMNS[kind]} in the request: send {_FORMS[kind]}.")
    if len(items) > max_items:
        raise BadRequest(413, f"The request holds {len(items)} {kind}; this server takes {max_items} at once.")
    return items


def _text(headers: Headers, body: bytes) -> str:
    options = EmailMessage()
    options["Content-Type"] = headers["content-type"]
    charset = options.get_content_charset("utf-8")
    if charset not in _UTF_8:
        raise BadRequest(415, f"The text must be in UTF-8, but its charset is {charset!r}.")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(400, f"The text is not UTF-8: byte {error.start} cannot be read.") from None


async def _files(headers: Headers, body: bytes) -> list[SentItem]:
    async def stream() -> AsyncIterator[bytes]:
        yield body

    try:
        # The body is in memory and bounded already; files are kept there too.
        parser = MultiPartParser(headers, stream(), max_files=_MAX_FIELDS * 100, max_fields=_MAX_FIELDS)  # type: ignore[arg-type]
        parser.spool_max_size = len(body) + 1
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = error.message if isinstance(error, MultiPartException) else str(error)
        raise BadRequest(400, f"The multipart form cannot be read: {reason.rstrip('.')}.") from None
    try:
        files = []
        for key, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise BadRequest(400, f"The form's field {key!r} is no file. Send image files only.")
            files.append(SentItem(value.filename or key, await value.read()))
        return files
    finally:
        await form.close()


def _json_items(body: bytes, kind: DataKind) -> list[SentItem]:
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest(400, "The body is not JSON.") from None
    one, form = COLUMNS[kind], "TEXT" if kind == "texts" else "BASE64"
    if isinstance(value, dict) and value.keys() == {one}:
        sent, names = [value[one]], [f"The {one}"]
    elif isinstance(value, dict) and value.keys() == {kind} and isinstance(value[kind], list):
        sent = value[kind]
        names = [f"{one.capitalize()} {index}" for index in range(len(sent))]
    else:
        raise BadRequest(
            400,
            f'This model classifies {kind}: the JSON must be {{"{one}": {form}}} or {{"{kind}": [{form}, …]}}, with no '
            "other field.",
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
