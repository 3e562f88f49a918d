"""Malformed requests against a server of its own: its memory stays, nothing is a 500, and it answers in the end.

python tests/faults/fuzz_serving.py --requests 20000 --seed 1
"""

import argparse
import base64
import ctypes
import gc
import io
import json
import os
import random
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
sys.path[:0] = [str(HELPERS)] * (str(HELPERS) not in sys.path)

import pytest  # noqa: E402
from live import Live, StandIn, live, tiny  # noqa: E402  after the path to it
from PIL import Image  # noqa: E402
from said import Said  # noqa: E402
from servers import memory_of  # noqa: E402

CLIENTS = 12
PATHS = [
    *["/predict", "/invocations", "/v2/models/birds/infer"] * 4,
    "/webhook",
    "/predict?top_k=x",
    "/health",
    "/%ff",
    "/",
]
_GOOD = base64.b64encode(tiny()).decode()
_NASTY: list[Any] = [
    None, True, -1, 1e308, 10**30, "", "\ud800", "A" * 5000, "=" * 9, "data:,", [], {}, [[]], [None], {"image": None},
    {"": ""}, [{}] * 9, "../../etc/passwd", "<script>", "\x00", _GOOD, [_GOOD], {"image": [_GOOD]},
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Of a run: what was answered how often, and memory in bytes before and after."""

    statuses: dict[str, int]
    before: int
    after: int
    failures: int
    """Answers with status 500, and good requests in between that were not answered."""
    healthy: bool
    log: str
    """What the server said."""

    @property
    def kept_memory(self) -> bool:
        """Whether it grew by no more than the noise of one server, which goes up and down by 50 MB between bursts."""
        return self.after < 1.1 * self.before + 20_000_000

    def __str__(self) -> str:
        memory = f"memory {self.before / 1e6:.0f} MB -> {self.after / 1e6:.0f} MB"
        said = f"{dict(sorted(self.statuses.items()))}; {memory}; {self.failures} failures; healthy: {self.healthy}"
        return f"{said}\n{self.log}" if self.failures else said


def fuzz(requests: int, seed: int) -> Outcome:
    """Send so many requests to a server that is started for it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HELPERS), *filter(None, sys.path)])}
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        said = Said(process.stderr)
        try:
            server = Live(int(said.wait_for(r"port (\d+)")[1]), StandIn())
            warm_up = max(100, requests // 10)
            statuses: Counter[str] = Counter()
            with ThreadPoolExecutor(CLIENTS) as pool:
                statuses.update(pool.map(lambda number: _one(server.port, seed, number), range(warm_up)))
                before = _held(process, said, 1)
                statuses.update(pool.map(lambda number: _one(server.port, seed, number), range(warm_up, requests)))
            healthy = _is_answered(server) and not server.metric("thawline_images_inside")
            lines = server.ask("GET", "/metrics").body.decode().splitlines()
            failed = sum(float(line.split()[-1]) for line in lines if 'status="500"' in line and "_total" in line)
            return Outcome(
                statuses, before, memory_of(process.pid), int(failed) + statuses["no good answer"], healthy, said.text
            )
        finally:
            process.kill()


def _held(process: "subprocess.Popen[str]", said: Said, number: int) -> int:
    """Memory of the server without what its allocator keeps for later."""
    assert process.stdin is not None
    process.stdin.write("trim\n")
    process.stdin.flush()
    said.wait_for(f"trimmed {number}")
    return memory_of(process.pid)


def _is_answered(server: Live) -> bool:
    answer = server.post("/predict", {"image": _GOOD})
    return answer.status == 200 and answer.json()["predictions"][0]["label"] == "red"


def _one(port: int, seed: int, number: int) -> str:
    """Send one request; the status that came, or what came instead."""
    chance = random.Random(f"{seed} {number}")
    if number % 50 == 0:
        return "good" if _is_answered(Live(port, StandIn())) else "no good answer"
    sent = _request(chance)
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(sent)
        if chance.random() < 0.1:
            return "left"
        if chance.random() < 0.2:
            connection.shutdown(socket.SHUT_WR)
        connection.settimeout(10)
        with suppress(TimeoutError):
            return connection.recv(65536)[9:12].decode("latin-1") or "closed"
    return "closed"


def _request(chance: random.Random) -> bytes:
    body, content_type = chance.choice([_json, _form, _picture, _table, _tensors])(chance)
    if chance.random() < 0.3:
        body = _damaged(body, chance)
    length = chance.choice([len(body)] * 12 + [0, len(body) // 2, len(body) + 9, -1, 10**18])
    method, path = chance.choice(["POST"] * 9 + ["GET", "PUT", "\x00"]), chance.choice(PATHS)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
    head += f"Content-Type: {content_type}\r\n"
    odd = ["Inference-Header-Content-Length: 20\r\n", "Origin: null\r\n", f"X: {'a' * 9000}\r\n", "X: a"]
    head += chance.choice([""] * 12 + odd)
    if chance.random() < 0.1:
        head = head.replace("Content-Length", chance.choice(["Transfer-Encoding", "Content-Lenght", "\x80"]))
    if chance.random() < 0.1:
        head = _damaged(head.encode("latin-1"), chance).decode("latin-1")
    return head.encode("latin-1", "replace") + b"\r\n" + body


Made = tuple[bytes, str]


def _json(chance: random.Random) -> Made:
    forms: list[Callable[[Any], Any]] = [
        lambda value: {"image": value},
        lambda value: {"images": value},
        lambda value: {"images": [_GOOD, value]},
        lambda value: {"inputs": value},
        lambda value: {"inputs": {"image": value}},
        lambda value: {"instances": value},
        lambda value: {"dataframe_records": value},
        lambda value: {"dataframe_records": [{"image": value}]},
        lambda value: {"dataframe_split": value},
        lambda value: {"dataframe_split": {"columns": ["image"], "data": value}},
        lambda value: {"dataframe_split": {"columns": value, "data": [[_GOOD]]}},
        lambda value: {"inputs": {"image": [_GOOD]}, "params": value},
        lambda value: {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": value}]},
        lambda value: {"inputs": [{"name": "image", "datatype": "BYTES", "shape": value, "data": [_GOOD]}]},
        lambda value: {"inputs": [value], "outputs": value, "id": value, "parameters": value},
        lambda value: value,
    ]
    value = chance.choice(_NASTY)
    if chance.random() < 0.1:
        depth = chance.choice([10, 200, 900, 50_000])
        return b'{"inputs": ' + b"[" * depth + b"]" * depth + b"}", "application/json"
    if chance.random() < 0.1:
        value = [value] * chance.choice([2, 255, 257, 20_000])
    return json.dumps(chance.choice(forms)(value)).encode(), "application/json"


def _form(chance: random.Random) -> Made:
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n%s\r\n' % tiny()
    body = part * chance.choice([0, 1, 2, 300]) + b"--b--\r\n" * chance.choice([0, 1, 1])
    return body, chance.choice(
        ["multipart/form-data; boundary=b"] * 4 + ["multipart/form-data", "multipart/form-data; boundary="]
    )


def _picture(chance: random.Random) -> Made:
    file = io.BytesIO()
    mode, kind = chance.choice(
        [("RGB", "PNG"), ("RGB", "JPEG"), ("P", "GIF"), ("F", "TIFF"), ("I;16", "PNG"), ("RGBA", "WEBP"), ("1", "PNG")]
    )
    size = chance.choice([(1, 1), (64, 48), (3000, 1), (900, 700)])
    Image.new(mode, size).save(file, kind)
    return _damaged(file.getvalue(), chance), f"image/{kind.lower()}"


def _table(chance: random.Random) -> Made:
    rows = chance.choice([1, 2, 300, 20_000])
    cell = chance.choice([_GOOD, '"a""b"', '"', "", ","])
    return ("image\n" + f"{cell}\n" * rows).encode(), "text/csv"


def _tensors(chance: random.Random) -> Made:
    data = b"".join(len(each).to_bytes(4, "little") + each for each in [tiny()] * chance.choice([1, 2, 300]))
    size = chance.choice([len(data), 0, -1, "x", len(data) + 1])
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    header = f"application/octet-stream\r\nInference-Header-Content-Length: {chance.choice([len(head), 3, 10**9])}"
    return head + data, header


def _damaged(data: bytes, chance: random.Random) -> bytes:
    """With some bytes changed, cut out, doubled or cut off."""
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        if not damaged:
            break
        at = chance.randrange(len(damaged))
        what = chance.randrange(4)
        if what == 0:
            damaged[at] = chance.randrange(256)
        elif what == 1:
            del damaged[at : at + chance.randint(1, 20)]
        elif what == 2:
            damaged[at:at] = damaged[at : at + chance.randint(1, 200)]
        elif chance.random() < 0.3:
            del damaged[at:]
    return bytes(damaged)


@pytest.mark.slow
def test_malformed_requests_leave_the_server_healthy_with_the_memory_that_it_had() -> None:
    outcome = fuzz(400, seed=2)
    assert outcome.healthy, outcome
    assert outcome.failures == 0, outcome
    assert outcome.kept_memory, outcome
    assert {"200", "400", "413", "415"} <= outcome.statuses.keys(), outcome


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        with live(client_seconds=2.0, webhook_secret="0123456789abcdef") as server:  # noqa: S106
            sys.stderr.write(f"port {server.port}\n")
            for number, _ in enumerate(sys.stdin, 1):
                gc.collect()
                ctypes.CDLL(None).malloc_trim(0)
                sys.stderr.write(f"trimmed {number}\n")
        return 0
    outcome = fuzz(options.requests, options.seed)
    sys.stdout.write(f"{outcome}\n")
    return 0 if outcome.healthy and outcome.kept_memory and not outcome.failures else 1


if __name__ == "__main__":
    sys.exit(main())
