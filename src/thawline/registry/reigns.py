"""The periods of champions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

__all__ = ["Reign", "reigns_of"]


@dataclass(frozen=True)
class Reign:
    """A version's time as champion."""

    version: str
    since: datetime | None
    """``None`` if the alias was moved by other means than Thawline."""
    until: datetime | None
    """``None`` for the current champion."""
    by: str
    reason: str

    def as_dict(self) -> dict[str, str | None]:
        """Plain values by name; times are ISO 8601 in UTC."""
        return {
            "version": self.version,
            "since": self.since.isoformat(timespec="seconds") if self.since else None,
            "until": self.until.isoformat(timespec="seconds") if self.until else None,
            "by": self.by,
            "reason": self.reason,
        }


def reigns_of(entries: Sequence[tuple[int, Mapping[str, Any]]], champion: str | None) -> tuple[Reign, ...]:
    """Derive the periods from the entries written before each move of the alias, and from the alias now.

    A process may have died between writing and moving. Then the next entry, or the alias, still names the previous
    champion, and the entry is ignored.
    """
    moved = []
    for index, (milliseconds, entry) in enumerate(entries):
        followed_by = entries[index + 1][1]["previous"] if index + 1 < len(entries) else champion
        if followed_by != entry["previous"]:
            moved.append((milliseconds, entry))
    reigns = []
    for index, (milliseconds, entry) in enumerate(moved):
        until = _moment(moved[index + 1][0]) if index + 1 < len(moved) else None
        reigns.append(Reign(entry["version"], _moment(milliseconds), until, entry["by"], entry["reason"]))
    if champion is not None and (not reigns or reigns[-1].version != champion):
        reigns.append(Reign(champion, None, None, "unknown", "the alias was moved by other means than Thawline"))
    return tuple(reigns)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)
