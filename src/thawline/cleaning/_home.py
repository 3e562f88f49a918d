"""Removable files in Thawline's home."""

import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from thawline.cleaning._look import Act, Failure, Item, Look
from thawline.cleaning._tree import children, files_below, folders, is_file, last_used, newest

if TYPE_CHECKING:
    from thawline.search.records import TrialRecord

__all__ = ["cached", "checkpoints", "leftovers", "mirrors", "orphans", "unpacked"]

_LEFTOVER_SECONDS = 3600.0
"""Time without writes after which a temporary file counts as left by a process that died."""
_TEMPORARY = re.compile(r".*\.tmp|\..*\.partial")
_CHECKPOINT = re.compile(r".*\.safetensors|.*\.tmp")


def checkpoints(look: Look) -> Iterator[Item]:
    """Checkpoints of finished trials, except the one that the study's model is made from."""
    for folder in folders(look.home / "studies"):
        used = last_used(folder)
        if folder.name not in look.studies.names or folder.name in look.studies.busy or used >= look.cutoff:
            continue
        records = look.studies.records(folder.name)
        kept = look.unsent | _needed(records)
        finished = {record.number for record in records if record.ended}
        files = [
            file
            for trial in folders(folder)
            if _trial_number(trial.name) in finished
            for file in files_below(trial)
            if _CHECKPOINT.fullmatch(file.name) and look.relative(file) not in kept
        ]
        if files:
            why = f"of finished trials, {look.since(used)}; the best checkpoint of the best trial is kept"
            yield look.item(
                "checkpoints", folder, files, why, _unless_run(look, folder, partial(_discard, look, files))
            )


def _needed(records: "Sequence[TrialRecord]") -> set[str]:
    """The checkpoint chosen by :meth:`~thawline.search.study.Study.best`; records are ranked."""
    for record in records:
        if record.state == "complete" and record.result is not None and record.result.checkpoint is not None:
            return {Path(record.result.checkpoint).as_posix()}
    return set()


def _trial_number(name: str) -> int | None:
    match = re.fullmatch(r"trial-(\d{3,})", name)
    return int(match[1]) if match else None


def _discard(look: Look, files: Sequence[Path]) -> list[Failure]:
    failures = look.remove_files(files)
    for folder in {file.parent for file in files}:
        with suppress(OSError):  # not empty
            folder.rmdir()
    return failures


def orphans(look: Look, kind: Literal["studies", "tensorboard"]) -> Iterator[Item]:
    """Folders of studies that no longer exist."""
    for folder in folders(look.home / kind):
        used = last_used(folder)
        if used >= look.cutoff or not look.is_gone(folder.name):
            continue
        files = list(files_below(folder))
        if not look.unsent.isdisjoint(map(look.relative, files)):
            look.note(f"{look.relative(folder)} is kept: it contains files that MLflow has not received yet.")
            continue
        act = _unless_run(look, folder, partial(look.remove_tree, folder))
        yield look.item(kind, folder, files, f"its study no longer exists, {look.since(used)}", act)


def _unless_run(look: Look, folder: Path, act: Act) -> Act:
    """Act while no search can start on the folder's study."""
    return look.unless_used(look.home / "studies" / folder.name / "study.lock", partial(last_used, folder), act)


def cached(look: Look, kind: Literal["decoded", "tokens", "activations"]) -> Iterator[Item]:
    """Entries ``<digest>.*``. Their locks ``<digest>.lock``, which are empty, stay: a process may wait for them."""
    if look.studies.busy:
        return
    entries: dict[str, list[Path]] = defaultdict(list)
    for path in children(look.home / "cache" / kind):
        digest, _, suffix = path.name.partition(".")
        if digest and suffix != "lock" and is_file(path):
            entries[digest].append(path)
    for digest, files in entries.items():
        # An entry without its description is never opened, so the description goes first.
        files.sort(key=lambda path: (path.suffix != ".json", path.name))
        used = newest(files)
        if used < look.cutoff:
            lock = files[0].with_name(f"{digest}.lock")
            act = look.unless_used(lock, partial(newest, files), partial(look.remove_files, files))
            yield look.item(kind, files[0], files, f"{look.since(used)}; recreated when needed", act)


def mirrors(look: Look) -> Iterator[Item]:
    """Copies of folders on object storage."""
    if look.studies.busy:
        return
    for folder, state in _mirrors(look):
        index = state / "index.json"  # written whenever the mirror is brought up to date
        used = newest([index])
        if is_file(index) and used < look.cutoff:
            remove = partial(_remove_mirror, look, folder, state.name)
            act = look.unless_used(state / "lock", partial(newest, [index]), remove)
            why = f"{look.since(used)}; downloaded again when needed"
            yield look.item("mirrors", folder, list(files_below(folder)), why, act)


def _mirrors(look: Look) -> Iterator[tuple[Path, Path]]:
    """Every mirror, and the hidden folder that marks it."""
    from thawline.data import MIRROR_STATE

    for digest in folders(look.home / "cache" / "mirrors"):
        for folder in folders(digest):
            yield folder, folder / MIRROR_STATE


def _remove_mirror(look: Look, folder: Path, state: str) -> list[Failure]:
    # Remove its mark last: without it, the rest of an interrupted removal would not be recognised as a mirror.
    failures = look.remove_tree(folder, last=state)
    with suppress(OSError):  # not empty
        folder.parent.rmdir()
    return failures


def unpacked(look: Look) -> Iterator[Item]:
    """Unpacked archives; one without a mark was left by a killed process."""
    if look.studies.busy:
        return
    place = look.home / "cache" / "unpacked"
    entries = {path.with_suffix("") for path in children(place) if path.suffix == ".json" and is_file(path)}
    for folder in sorted(entries | set(folders(place))):
        mark = folder.with_suffix(".json")
        marked = is_file(mark)
        last = partial(newest, [mark]) if marked else partial(_without_mark, folder, mark)
        used = last()
        if used < look.cutoff:
            remove = partial(_remove_unpacked, look, mark, folder)
            act = look.unless_used(folder.with_suffix(".lock"), last, remove)
            why = f"{look.since(used)}; unpacked again when needed"
            if not marked:
                why = f"the process that unpacked it died; {look.since(used)}"
            yield look.item("unpacked", folder, [*([mark] if marked else []), *files_below(folder)], why, act)


def _without_mark(folder: Path, mark: Path) -> float:
    """Time of the last write to a folder, or of its mark if another process has completed it meanwhile."""
    return max(last_used(folder), newest([mark]))


def _remove_unpacked(look: Look, mark: Path, folder: Path) -> list[Failure]:
    # Remove the mark of a complete folder first: half of a folder would be read as the data.
    return look.remove_files([mark]) or look.remove_tree(folder)


def leftovers(look: Look, taken: Collection[str]) -> Iterator[Item]:
    """Leftovers of processes that died while writing.

    Args:
        look: the home.
        taken: files that belong to other items.
    """
    before = time.time() - _LEFTOVER_SECONDS
    places = [
        *(folder for folder in folders(look.home / "studies") if folder.name not in look.studies.busy),
        *(look.home / "cache" / name for name in ("decoded", "tokens", "activations")),
        *(state for _, state in _mirrors(look)),  # not the mirrored files, whatever they are called
    ]
    for file in (file for place in places for file in files_below(place)):
        if _TEMPORARY.fullmatch(file.name) and look.relative(file) not in taken and newest([file]) < before:
            yield look.item("temporary", file, [file], "its process has died", partial(look.remove_files, [file]))
    temporary = Path(tempfile.gettempdir())
    if not temporary.is_relative_to(look.home):
        return  # nothing outside the home is touched
    for folder in folders(temporary):
        # Not those of a server's metrics, which has them open for months.
        if re.fullmatch(r"thawline-[a-z0-9_]{8}", folder.name) and last_used(folder) < before:
            act = partial(look.remove_tree, folder)
            yield look.item("temporary", folder, list(files_below(folder)), "its process has died", act)
