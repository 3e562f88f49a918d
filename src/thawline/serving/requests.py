"""What a client sends, as encoded images: multipart files, a raw image, or JSON with base64; read within a limit."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from thawline.data import encoded_image

__all__ = ["BadRequest", "SentImage", "images_of", "read_body"]

_FORMS = "a multipart form with image files, a body of type image/*, or JSON with base64"
_MAX_FIELDS = 100


class BadRequest(Exception):
    """The client's mistake: an HTTP status from 400 to 499 and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class SentImage:
    """An encoded image and what the client calls it."""

    name: str
    data: bytes


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


async def images_of(headers: Headers, body: bytes, *, max_images: int) -> list[SentImage]:
    """The encoded images of a request's body, at least one.

    JSON is ``{"image": BASE64}`` or ``{"images": [BASE64, …]}``. What is no image is found out when it is decoded.

    Raises:
        BadRequest: 400 or 415, with what was expected.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images = await _files(headers, body)
    elif kind == "application/json":
        images = _base64_images(body)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        images = [SentImage("The image", body)]
    else:
        said = f"not {kind!r}" if kind else "and Content-Type says which"
        raise BadRequest(415, f"Send {_FORMS}, {said}.")
    if not images:
        raise BadRequest(400, f"There is no image in the request: send {_FORMS}.")
    if len(images) > max_images:
        raise BadRequest(413, f"The request holds {len(images)} images; this server takes {max_images} at once.")
    return images


async def _files(headers: Headers, body: bytes) -> list[SentImage]:
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
            files.append(SentImage(value.filename or key, await value.read()))
        return files
    finally:
        await form.close()


def _base64_images(body: bytes) -> list[SentImage]:
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest(400, "The body is not JSON.") from None
    if isinstance(value, dict) and value.keys() == {"image"}:
        texts, names = [value["image"]], ["The image"]
    elif isinstance(value, dict) and value.keys() == {"images"} and isinstance(value["images"], list):
        texts = value["images"]
        names = [f"Image {index}" for index in range(len(texts))]
    else:
        raise BadRequest(400, 'The JSON must be {"image": BASE64} or {"images": [BASE64, …]}, with no other field.')
    images = []
    for name, text in zip(names, texts, strict=True):
        if not isinstance(text, str):
            raise BadRequest(400, f"{name} must be base64 text.")
        try:
            images.append(SentImage(name, encoded_image(text)))
        except ValueError as error:
            raise BadRequest(400, f"{name}: {error}.") from None
    return images
