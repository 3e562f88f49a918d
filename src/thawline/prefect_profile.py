"""Find the user's Prefect server without importing Prefect."""

import os
from pathlib import Path
from typing import Any

__all__ = ["named_server"]

_KEY = "PREFECT_API_URL"


def named_server() -> str | None:
    """The URL of Prefect's API that Prefect itself would use; ``None`` if none is configured.

    Searches in Prefect's order: the environment, ``.env``, ``prefect.toml`` and ``pyproject.toml`` in the working
    directory, and the active profile.
    """
    found = (
        os.environ.get(_KEY)
        or _dotenv(Path(".env"))
        or _at(_toml(Path("prefect.toml")), "api", "url")
        or _at(_toml(Path("pyproject.toml")), "tool", "prefect", "api", "url")
        or _of_profile()
    )
    return found or None


def _of_profile() -> str | None:
    folder = os.environ.get("PREFECT_HOME") or "~/.prefect"
    file = os.path.expanduser(os.environ.get("PREFECT_PROFILES_PATH") or f"{folder}/profiles.toml")  # noqa: PTH111
    profiles = _toml(Path(file))  # expanduser also works for a user without a home
    active = os.environ.get("PREFECT_PROFILE") or _at(profiles, "active")
    return _at(profiles, "profiles", active, _KEY) if active else None


def _dotenv(file: Path) -> str | None:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        name, _, value = line.strip().removeprefix("export ").partition("=")
        if name.strip() == _KEY:
            return value.strip().strip("'\"")
    return None


def _toml(file: Path) -> dict[str, Any]:
    """Read a TOML file; empty if it is missing or invalid, which Prefect reports itself."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    import tomllib  # imported on demand, because every command runs this function

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def _at(table: Any, *keys: str) -> str | None:
    for key in keys:
        if not isinstance(table, dict):
            return None
        table = table.get(key)
    return table if isinstance(table, str) else None
