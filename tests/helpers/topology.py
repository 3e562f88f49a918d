"""The services of `docker/compose.yaml` as processes on loopback."""

import os
import random
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

__all__ = [
    "COMPOSE",
    "Processes",
    "Service",
    "compose",
    "free_ports",
    "load",
    "on_loopback",
    "processes",
    "read_env",
    "rewire",
    "substitute",
]

COMPOSE = Path(__file__).parents[2] / "docker" / "compose.yaml"

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<rule>[?-])(?P<text>[^}]*))?\}")


@dataclass(frozen=True)
class Service:
    """The process of a service's container."""

    command: list[str]
    """Empty for the image's default, as with PostgreSQL."""
    environment: dict[str, str]
    health: str | None = None
    """URL of the health check, from within the service; ``None`` if it is not a URL."""


def compose(file: Path = COMPOSE) -> dict[str, Any]:
    """The compose file with resolved anchors."""
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


def load(environment: Mapping[str, str], file: Path = COMPOSE) -> dict[str, Service]:
    """Every service by name, for all profiles.

    Args:
        environment: value of each variable, such as from :func:`read_env`.
        file: the compose file.

    Raises:
        KeyError: if a required variable has no value, with the file's message.
    """
    services = {}
    for name, service in compose(file)["services"].items():
        health = service.get("healthcheck", {"test": [""]})["test"][-1]
        services[name] = Service(
            command=[substitute(part, environment) for part in service.get("command", [])],
            environment={key: substitute(value, environment) for key, value in service["environment"].items()},
            health=health if health.startswith("http") else None,
        )
    return services


def substitute(text: str, environment: Mapping[str, str]) -> str:
    """Replace ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}`` like Compose: an empty value counts as unset.

    Raises:
        KeyError: with the message, if a required variable has no value.
    """

    def value(match: re.Match[str]) -> str:
        found = environment.get(match["name"], "")
        if found or match["rule"] is None:
            return found
        if match["rule"] == "?":
            raise KeyError(f"{match['name']}: {match['text']}")
        return match["text"]

    return _VARIABLE.sub(value, text)


def read_env(file: Path) -> dict[str, str]:
    """The variables of an environment file: ``NAME=value`` lines, and comments with ``#``."""
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def on_loopback(
    services: Mapping[str, Service], ports: Mapping[str, int], paths: Mapping[str, str]
) -> dict[str, Service]:
    """The same services as processes on this machine.

    Args:
        services: services from :func:`load`.
        ports: local port for each address in the container network, such as ``{"mlflow:5000": 40123}``, for its clients
            and for the service that listens there.
        paths: local path for each path in a container, such as ``/var/lib/thawline``.
    """
    local = {}
    for name, service in services.items():
        own = {inside: port for (host, inside), port in _split(ports).items() if host == name}

        def move(text: str, own: Mapping[str, int] = own) -> str:
            if text in own:  # the value of --port
                return str(own[text])
            for inside, port in own.items():
                text = text.replace(f"127.0.0.1:{inside}", f"127.0.0.1:{port}")
            return rewire(text, ports, paths).replace("0.0.0.0", "127.0.0.1")  # noqa: S104  the opposite of binding it

        local[name] = Service(
            command=[move(part) for part in service.command],
            environment={key: move(value) for key, value in service.environment.items()},
            health=None if service.health is None else move(service.health),
        )
    return local


def rewire(text: str, ports: Mapping[str, int], paths: Mapping[str, str]) -> str:
    """Replace addresses and paths in a value or a configuration file, as in :func:`on_loopback`."""
    for address, port in ports.items():
        text = re.sub(rf"(?<![\w.-]){re.escape(address)}(?!\d)", f"127.0.0.1:{port}", text)
    if paths:  # all at once: a replacement may start with another path, such as /tmp
        known = "|".join(map(re.escape, sorted(paths, key=len, reverse=True)))
        text = re.sub(rf"(?<![\w./-])(?:{known})(?![\w.-])", lambda found: paths[found[0]], text)
    return text


def _split(ports: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """``{"mlflow:5000": 1}`` to ``{("mlflow", "5000"): 1}``."""
    return {(address.rpartition(":")[0], address.rpartition(":")[2]): port for address, port in ports.items()}


def free_ports(count: int) -> list[int]:
    """Distinct free ports that the system does not assign to outgoing connections."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1_000):  # below the ephemeral ports of Linux and others
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"No {count} free ports from 20000 to 31999.")


class Processes:
    """Services running as processes on this machine, each in its own session and with its own log.

    Args:
        folder: their working directory, with a NAME.log for each.
        environment: variables from the image, such as ``PATH``; nothing else is inherited.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, dict(environment)
        self._running: dict[str, tuple[Service, subprocess.Popen[bytes]]] = {}

    def start(self, name: str, service: Service) -> None:
        """Start it like its container; :meth:`wait_until_healthy` waits until it is ready."""
        # A shell's background jobs ignore Ctrl-C, as would their children.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with (self._folder / f"{name}.log").open("ab") as log:
                process = subprocess.Popen(
                    service.command,
                    env=self._environment | service.environment,
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        finally:
            signal.signal(signal.SIGINT, before)
        self._running[name] = (service, process)

    def wait_until_healthy(self, name: str, seconds: float = 300) -> None:
        """Wait until its health check succeeds."""
        (service, process), deadline = self._running[name], time.monotonic() + seconds
        assert service.health is not None
        while True:
            assert process.poll() is None, f"{name} ended by itself, with exit code {process.returncode}"
            with suppress(OSError), urllib.request.urlopen(service.health, timeout=8):
                return
            assert time.monotonic() < deadline, f"{name} is not healthy after {seconds:g} seconds"
            time.sleep(0.2)  # nothing signals when it is ready

    def logs(self, lines: int = 40) -> str:
        """The last lines of every log."""
        tails = [
            "\n".join([f"----- {log.stem}", *log.read_text(errors="replace").splitlines()[-lines:]])
            for log in sorted(self._folder.glob("*.log"))
        ]
        return "\n".join(tails)

    def stop(self, name: str, seconds: float = 60) -> None:
        """Send SIGTERM, and after this time SIGKILL, to it and its children."""
        _, process = self._running.pop(name)
        below: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for child in below:
            with suppress(psutil.NoSuchProcess):  # psutil distinguishes a child from another process with the same id
                child.kill()
        process.wait()

    def stop_all(self) -> None:
        """Stop all in reverse order."""
        for name in reversed(list(self._running)):
            self.stop(name)


@contextmanager
def processes(folder: Path, environment: Mapping[str, str]) -> Iterator[Processes]:
    """:class:`Processes` that are stopped after the block; failures include the end of their logs."""
    running = Processes(folder, environment)
    try:
        yield running
    except BaseException as error:
        error.add_note(running.logs())  # pytest shows it below the failure
        raise
    finally:
        running.stop_all()
