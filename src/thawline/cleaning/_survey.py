"""The survey of all kinds of items, and their removal."""

import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from thawline import environment
from thawline.cleaning._home import cached, checkpoints, leftovers, mirrors, orphans, unpacked
from thawline.cleaning._look import Failure, Item, Kind, Look, Used
from thawline.cleaning._mlflow import failed_runs, unused_models
from thawline.exceptions import ConfigError

__all__ = ["Survey", "parse_age", "parse_kinds", "remove", "survey"]

_KINDS: tuple[Kind, ...] = get_args(Kind)
_UNITS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


@dataclass(frozen=True)
class Survey:
    """Removable items, and notes for the user."""

    items: tuple[Item, ...]
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Total size of all items of known size."""
        return sum(item.bytes or 0 for item in self.items)

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return {"items": [item.as_dict() for item in self.items], "bytes": self.bytes, "notes": list(self.notes)}


def parse_age(text: str) -> float:
    """Parse an age such as ``30d``, ``12h`` or ``2w`` to seconds; ``0`` needs no unit.

    Raises:
        ConfigError: for anything else.
    """
    if text == "0":
        return 0.0
    match = re.fullmatch(r"(\d{1,5})([hdw])", text)
    if match is None:
        raise ConfigError(
            f"--older-than takes an age such as 30d, 12h or 2w (days, hours or weeks), or 0, but got {text!r}."
        )
    return int(match[1]) * _UNITS[match[2]]


def parse_kinds(names: Sequence[str]) -> tuple[Kind, ...]:
    """Parse names of kinds; all kinds if there are none.

    Raises:
        ConfigError: if one is unknown.
    """
    unknown = [name for name in names if name not in _KINDS]
    if unknown:
        raise ConfigError(f"--only takes {', '.join(_KINDS)}, but got {unknown[0]!r}.")
    return tuple(kind for kind in _KINDS if kind in names) or _KINDS


def survey(
    home: Path,
    *,
    older_than: float,
    kinds: Collection[Kind] = _KINDS,
    storage: str | None = None,
    tracking_uri: str | None = None,
) -> Survey:
    """Find removable items; nothing is changed.

    - ``checkpoints`` of finished trials. The best checkpoint of the best trial is kept, and so are those of unfinished
      trials and those that MLflow has not received yet.
    - ``studies`` and ``tensorboard``: folders of studies that no longer exist in their storage.
    - ``decoded`` images, ``tokens``, ``activations``, ``mirrors`` and ``unpacked`` archives that no search has used;
      all can be recreated.
    - ``temporary`` files of processes that died.
    - ``runs``: failed trials in MLflow; ``models``: packages without a version of a registered model.

    Args:
        home: Thawline's home.
        older_than: seconds since the last use.
        kinds: to find.
        storage: database of the studies, as for a search.
        tracking_uri: MLflow tracking URI, as for a search.

    Raises:
        ThawlineError: if the studies or MLflow cannot be read now, so that nothing can be decided.
    """
    home = home.absolute()
    look = Look(home, time.time() - older_than, storage, tracking_uri)
    if not home.is_dir():
        look.note(environment.no_home(home))
    searches: dict[Kind, Callable[[], Iterable[Item]]] = {
        "checkpoints": partial(checkpoints, look),
        "studies": partial(orphans, look, "studies"),
        "tensorboard": partial(orphans, look, "tensorboard"),
        "decoded": partial(cached, look, "decoded"),
        "tokens": partial(cached, look, "tokens"),
        "activations": partial(cached, look, "activations"),
        "mirrors": partial(mirrors, look),
        "unpacked": partial(unpacked, look),
        "runs": partial(failed_runs, look),
        "models": partial(unused_models, look),
    }
    items = [item for kind, search in searches.items() if kind in kinds for item in search()]
    if "temporary" in kinds:
        items += leftovers(look, taken={part for item in items for part in item.parts})
    return Survey(tuple(items), tuple(look.notes))


def remove(found: Survey) -> list[Failure]:
    """Remove the items of a survey; returns failures, which do not stop the removal."""
    failures: list[Failure] = []
    for item in found.items:
        try:
            failures += item.remove()
        except Used as used:
            failures.append(Failure(item.name, str(used)))
    return failures
