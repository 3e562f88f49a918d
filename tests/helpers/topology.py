"""What `docker/compose.yaml` starts, so that the same can be started as processes on loopback."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["COMPOSE", "Service", "compose", "load", "on_loopback", "read_env", "rewire", "substitute"]

COMPOSE = Path(__file__).parents[2] / "docker" / "compose.yaml"

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<rule>[?-])(?P<text>[^}]*))?\}")


@dataclass(frozen=True)
class Service:
    """What a container of the service runs."""

    command: list[str]
    """Empty if the image decides, as PostgreSQL's does."""
    environment: dict[str, str]
    health: str | None = None
    """Address that answers when the service is healthy, as seen by the service itself; ``None`` if it is no URL."""


def compose(file: Path = COMPOSE) -> dict[str, Any]:
    """The compose file as it is written, its anchors resolved."""
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


def load(environment: Mapping[str, str], file: Path = COMPOSE) -> dict[str, Service]:
    """Every service by name, whatever its profile.

    Args:
        environment: value of each variable, such as :func:`read_env` gives.
        file: the compose file.

    Raises:
        KeyError: if a required variable has no value; the message is the file's own.
    """
    services = {}
    for name, service in compose(file)["services"].items():
        health = service["healthcheck"]["test"][-1]
        services[name] = Service(
            command=[substitute(part, environment) for part in service.get("command", [])],
            environment={key: substitute(value, environment) for key, value in service["environment"].items()},
            health=health if health.startswith("http") else None,
        )
    return services


def substitute(text: str, environment: Mapping[str, str]) -> str:
    """Replace ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}`` as Compose does: an empty value is none.

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
    """The variables of an environment file: a ``NAME=value`` a line, and lines that begin with ``#``."""
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def on_loopback(
    services: Mapping[str, Service], ports: Mapping[str, int], paths: Mapping[str, str]
) -> dict[str, Service]:
    """The same services as processes of this machine.

    Args:
        services: what :func:`load` gives.
        ports: by the address in the network of containers, such as ``{"mlflow:5000": 40123}``, the port of this machine
            that stands for it, in every service that asks for it and in the one that listens there.
        paths: by the path in a container, such as ``/var/lib/thawline``, the path that stands for it.
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
    """A value, or a whole configuration file, with addresses and paths as in :func:`on_loopback`."""
    for address, port in ports.items():
        text = re.sub(rf"(?<![\w.-]){re.escape(address)}(?!\d)", f"127.0.0.1:{port}", text)
    for inside in sorted(paths, key=len, reverse=True):
        text = re.sub(rf"(?<![\w./-]){re.escape(inside)}(?![\w.-])", paths[inside], text)
    return text


def _split(ports: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """``{"mlflow:5000": 1}`` to ``{("mlflow", "5000"): 1}``."""
    return {(address.rpartition(":")[0], address.rpartition(":")[2]): port for address, port in ports.items()}
