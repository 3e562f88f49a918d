"""The Open Inference Protocol, ``/v2``, of KServe and Triton: tensors in JSON, or in binary after the JSON.

The only input is a tensor of ``BYTES``, ``[N]`` or ``[N, 1]``: encoded images, in JSON as base64, or texts. The outputs
are ``label`` (``BYTES [N]``), ``probability`` (``FP32 [N]``) and ``probabilities`` (``FP32 [N, num_classes]``).
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi.responses import JSONResponse, Response

from thawline.data import DataKind, encoded_image
from thawline.registry.names import COLUMNS
from thawline.serving.requests import BadRequest, SentItem, json_of, too_many
from thawline.serving.served import ServedModel

__all__ = ["HEADER_LENGTH", "InferenceRequest", "answer", "model_metadata", "read_inference"]

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header of a body with binary tensors: the length of its JSON part (bytes)."""
_LENGTH = struct.Struct("<I")
"""The length before each element of a binary ``BYTES`` tensor."""
_OUTPUTS = ("label", "probability", "probabilities")


@dataclass(frozen=True)
class InferenceRequest:
    """The items of a request and the requested outputs."""

    id: str | None
    items: list[SentItem]
    outputs: tuple[tuple[str, bool], ...]
    """Names, and whether each is requested in binary."""


def model_metadata(model: ServedModel) -> dict[str, Any]:
    """Metadata for clients; the classes are in the order of ``probabilities``."""
    classes = len(model.classes)
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": "thawline",
        "inputs": [{"name": COLUMNS[model.kind], "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "probability", "datatype": "FP32", "shape": [-1]},
            {
                "name": "probabilities",
                "datatype": "FP32",
                "shape": [-1, classes],
                "parameters": {"labels": list(model.classes)},
            },
        ],
    }


def read_inference(
    body: bytes | bytearray, header_length: str | None, kind: DataKind, *, max_items: int
) -> InferenceRequest:
    """Parse a request of the protocol.

    Args:
        body: body of the request.
        header_length: value of the header :data:`HEADER_LENGTH`, if present.
        kind: kind of the served model.
        max_items: maximum number of items.

    Raises:
        BadRequest: 400 or 413, with the expected form.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and len(header_length) <= 12) or (
            int(header_length) > length
        ):
            raise BadRequest(
                400, f"{HEADER_LENGTH} must be at most the length of the body, but it is {header_length[:40]!r}."
            )
        length = int(header_length)
    asked = _json(body[:length], max_items)
    tensor = _tensor(asked, kind)
    size = _parameters(tensor).get("binary_data_size")
    name, column = COLUMNS[kind].capitalize(), COLUMNS[kind]
    if size is None:
        values = _values(tensor, len(body) - length)
    else:
        values = _elements(memoryview(body)[length:], size, max_items, kind)
    if len(values) > max_items:
        raise too_many(len(values), kind, max_items)
    if tensor.get("shape") not in ([len(values)], [len(values), 1]):
        shape = _short(tensor.get("shape"))
        raise BadRequest(400, f"The shape of {column!r} must be [{len(values)}], its number of values, but is {shape}.")
    if not values:
        raise BadRequest(400, f"There is no {column} in the request.")
    items = []
    for index, value in enumerate(values):
        try:
            items.append(SentItem(f"{name} {index}", _content(value, kind)))
        except ValueError as error:
            raise BadRequest(400, f"{name} {index}: {error}.") from None
    request_id = asked.get("id")
    if request_id is not None and not (isinstance(request_id, str) and request_id.isprintable()):
        raise BadRequest(400, "The request's id must be a string of printable characters.")
    return InferenceRequest(request_id, items, _wanted(asked))


def answer(request: InferenceRequest, model: ServedModel, probabilities: Sequence[Sequence[float]]) -> Response:
    """Build a response of the protocol.

    Args:
        request: to answer.
        model: that computed the probabilities.
        probabilities: ``[N][num_classes]``.
    """
    table = np.asarray(probabilities, dtype=np.float64)
    labels = [model.classes[best] for best in table.argmax(1)]
    contents: dict[str, Any] = {"label": labels, "probability": table.max(1), "probabilities": table}
    outputs, binary = [], b""
    for name, in_binary in request.outputs:
        shape = [len(labels), len(model.classes)] if name == "probabilities" else [len(labels)]
        output: dict[str, Any] = {"name": name, "datatype": "BYTES" if name == "label" else "FP32", "shape": shape}
        if in_binary:
            data = _packed(labels) if name == "label" else contents[name].astype("<f4").tobytes()
            output["parameters"] = {"binary_data_size": len(data)}
            binary += data
        else:
            output["data"] = labels if name == "label" else contents[name].ravel().tolist()
        outputs.append(output)
    said: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if request.id is not None:
        said["id"] = request.id
    if not binary:
        return JSONResponse(said)
    head = json.dumps(said).encode()
    return Response(head + binary, media_type="application/octet-stream", headers={HEADER_LENGTH: str(len(head))})


def _json(head: bytes | bytearray, max_items: int) -> dict[str, Any]:
    asked = json_of(head, max_items=max_items)
    if not isinstance(asked, dict):
        raise BadRequest(400, "The body must be a JSON object with inputs.")
    return asked


def _tensor(asked: dict[str, Any], kind: DataKind) -> dict[str, Any]:
    inputs, column = asked.get("inputs"), COLUMNS[kind]
    if not (isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict)):
        raise BadRequest(400, f"The request must have one input, {column!r}.")
    tensor: dict[str, Any] = inputs[0]
    if tensor.get("name") != column or tensor.get("datatype") != "BYTES":
        raise BadRequest(
            400,
            f"The only input is {column!r} of datatype BYTES, but got {_short(tensor.get('name'))} of "
            f"{_short(tensor.get('datatype'))}.",
        )
    return tensor


def _values(tensor: dict[str, Any], behind: int) -> list[Any]:
    """Values of a JSON tensor, which may be flat or have one list per row."""
    data = tensor.get("data")
    if behind or not isinstance(data, list):
        raise BadRequest(400, "An input needs a list of data, or a binary_data_size and its bytes after the JSON.")
    return [each[0] if isinstance(each, list) and len(each) == 1 else each for each in data]


def _elements(binary: memoryview, size: Any, max_items: int, kind: DataKind) -> list[bytes]:
    """Elements of a binary ``BYTES`` tensor, each of which follows its length."""
    if not isinstance(size, int) or size != len(binary):
        raise BadRequest(400, f"binary_data_size is {_short(size)}, but {len(binary)} bytes follow the JSON.")
    elements, start = [], 0
    while start < len(binary):
        begin = start + _LENGTH.size
        end = begin + _LENGTH.unpack_from(binary, start)[0] if begin <= len(binary) else begin
        if end > len(binary):
            raise BadRequest(400, "The binary data is truncated: an element is longer than the remaining bytes.")
        elements.append(bytes(binary[begin:end]))
        if len(elements) > max_items:
            raise BadRequest(413, f"The request contains more than {max_items:,} {kind}, the limit of this server.")
        start = end
    return elements


def _content(value: Any, kind: DataKind) -> bytes | str:
    if kind == "images":
        return encoded_image(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"the text is not UTF-8: byte {error.start} cannot be read") from None
    if not isinstance(value, str):
        raise ValueError(f"a text must be a string, but got {type(value).__name__}")
    return value


def _wanted(asked: dict[str, Any]) -> tuple[tuple[str, bool], ...]:
    in_binary = bool(_parameters(asked).get("binary_data_output", False))
    outputs = asked.get("outputs") or [{"name": name} for name in _OUTPUTS]
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise BadRequest(400, "The outputs must be a list of objects with names.")
    wanted: dict[str, bool] = {}
    for each in outputs:
        if each.get("name") not in _OUTPUTS:
            raise BadRequest(400, f"The outputs are {', '.join(_OUTPUTS)}, but got {_short(each.get('name'))}.")
        wanted[each["name"]] = bool(_parameters(each).get("binary_data", in_binary))
    return tuple(wanted.items())


def _parameters(of: dict[str, Any]) -> dict[str, Any]:
    parameters = of.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise BadRequest(400, "Parameters must be a JSON object.")
    return parameters


def _packed(texts: Sequence[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(_LENGTH.pack(len(each)) + each for each in encoded)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
