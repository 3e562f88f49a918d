"""What a server counted of a challenger that it computed in the champion's shadow (``thawline serve --shadow``)."""

import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thawline.exceptions import RegistryError

__all__ = ["Shadowed", "read_shadow"]

_SECONDS = 10.0
_MOST_BYTES = 1 << 22


@dataclass(frozen=True)
class Shadowed:
    """Real requests that the champion answered and the challenger computed, too. They have no labels: no criterion."""

    server: str
    items: int
    """Images or texts that both computed, at least 1."""
    agreeing: int
    """Of these, to which both gave the same class."""
    seconds: float
    """Of one request at the challenger, decoding included; a mean."""
    uncompared: int
    """Requests whose turn it was while the challenger was busy, or at which it failed."""

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)

    def sentence(self) -> str:
        """``Served by http://…: the same class as the champion's for 97 of 100 (97.0%), 12 ms a request, …``."""
        share, milliseconds = self.agreeing / self.items, 1000 * self.seconds
        return (
            f"Served by {self.server}: the same class as the champion's for {self.agreeing:,} of {self.items:,} "
            f"({share:.1%}), {milliseconds:.0f} ms a request, {self.uncompared:,} not compared"
        )


def read_shadow(server: str, version: str, *, token_file: Path | None = None) -> Shadowed:
    """Ask a server that runs with ``--shadow`` for what it counted of a version since it was started.

    Args:
        server: its address, ``http://127.0.0.1:8000``.
        version: the challenger's.
        token_file: holds what the server asks its clients for.

    Raises:
        RegistryError: if the file cannot be read, or if the server does not answer or has compared nothing with this
            version.
    """
    from prometheus_client.parser import text_string_to_metric_families

    page = _get(f"{server.rstrip('/')}/metrics", _token(token_file))
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.labels.get("version") == version:
                name = f"{sample.name} {sample.labels.get('agrees', '')}".strip()
                sums[name] = sums.get(name, 0.0) + sample.value
    agreeing, differing = (round(sums.get(f"thawline_shadow_items_total {each}", 0)) for each in ("true", "false"))
    if not agreeing + differing:
        raise RegistryError(
            f"{server} has compared nothing with version {version}: it must run with --shadow challenger while that "
            "version has the alias challenger, and get requests."
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
        raise RegistryError(f"The address of a server begins with http:// or https://, but got {url!r}.")
    try:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310  of a scheme that was checked
            return str(answer.read(_MOST_BYTES), "utf-8", "replace")
    except urllib.error.HTTPError as error:
        what = "it asks for a token: --token-file FILE" if error.code == 401 else f"{error.code} {error.reason}"
        raise RegistryError(f"{url} was refused: {what}.") from None
    except (OSError, ValueError) as error:
        raise RegistryError(f"{url} does not answer: {getattr(error, 'reason', error)}. Does the server run?") from None
