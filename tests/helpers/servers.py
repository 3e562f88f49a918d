"""`thawline serve` as a process of its own."""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["free_port", "server"]


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(model: str, environment: dict[str, str]) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """`thawline serve` on a free port, up and answering."""
    command = [sys.executable, "-m", "thawline", "serve", model, "--port", "0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        log = []
        try:
            for line in process.stderr:
                log.append(line)
                if found := re.search(r"http://127\.0\.0\.1:(\d+) answers", line):
                    break
            else:
                pytest.fail("the server ended by itself:\n" + "".join(log))
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield int(found[1]), process
        finally:
            process.kill()
