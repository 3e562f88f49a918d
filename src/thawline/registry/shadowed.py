"""Counts of a challenger that a server ran in shadow mode (``thawline serve --shadow``)."""

import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from thawline.exceptions import RegistryError

__all__ = ["Shadowed", "read_shadow"]

_SECONDS = 10.0
_MOST_BYTES = 1 << 22


@dataclass(frozen=True)
class Shadowed:
    """Real requests that both champion and challenger classified; they have no labels, so they are not a criterion."""

    server: str
    items: int
    """Number of images or texts that both classified, at least 1."""
    agreeing: int
    """Number of these with the same class."""
    seconds: float
    """Mean time per request at the challenger, including decoding."""
    uncompared: int
    """Number of requests skipped because the challenger was busy, or on which it failed."""

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)

    def sentence(self) -> str:
        """``In shadow mode on http://…: the champion's class for 97 of 100 (97.0%), 12 ms per request, …``."""
        share, milliseconds = self.agreeing / self.items, 1000 * self.seconds
        return (
            f"In shadow mode on {self.server}: the champion's class for {self.agreeing:,} of {self.items:,} "
            f"({share:.1%}), {milliseconds:.0f} ms per request, {self.uncompared:,} not compared"
        )


def read_shadow(server: str, version: str, *, token_file: Path | None = None) -> Shadowed:
    """Read a version's counts since the start of a server that runs with ``--shadow``.

    Args:
        server: its address, such as ``http://127.0.0.1:8000``.
        version: version of the challenger.
        token_file: with the token that the server requires.

    Raises:
        RegistryError: if the file cannot be read, or if the server does not respond or has compared nothing with this
            version.
    """
    from prometheus_client.parser import text_string_to_metric_families

    page = _get(f"{server.rstrip('/')}/metrics", _token(token_file))
    sums: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.labels.get("version") == version:
                    name = f"{sample.name} {sample.labels.get('agrees', '')}".strip()
                    sums[name] = sums.get(name, 0.0) + sample.value
    except Exception:  # the parser raises anything
        raise RegistryError(
            f"{server}/metrics is not a page of metrics. Is this the address of `thawline serve`?"
        ) from None
    agreeing, differing = (round(sums.get(f"thawline_shadow_items_total {each}", 0)) for each in ("true", "false"))
    if not agreeing + differing:
        raise RegistryError(
            f"{server} has compared no requests with version {version}: run it with --shadow challenger while that "
            "version has the alias challenger, and send requests."
        )
    return Shadowed(
        server=server,
        items=agreeing + differing,
        agreeing=agreeing,
        seconds=sums.get("thawline_shadow_seconds_sum", 0.0) / max(1.0, sums.get("thawline_shadow_seconds_count", 0.0)),
        uncompared=round(sums.get("thawline_shadow_uncompared_total", 0)),
    )


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryError(f"{file} cannot be read: {error}.") from None


def _get(url: str, token: str | None) -> str:
    if not url.startswith(("http://", "https://")):
        raise RegistryError(f"The address of a server must start with http:// or https://, but got {url!r}.")
    try:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310  the scheme was checked above
            return str(answer.read(_MOST_BYTES), "utf-8", "replace")
    except urllib.error.HTTPError as error:
        what = "it requires a token: --token-file FILE" if error.code == 401 else f"{error.code} {error.reason}"
        raise RegistryError(f"{url} was refused: {what}.") from None
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise RegistryError(f"{url} does not respond: {reason}. Is the server running?") from None
