"""Build a manifest: without conflicts or leaks between splits, and with stable splits."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from thawline.data._labels import look_alikes, several_in_one
from thawline.data.contract import (
    HELD_OUT,
    NAMED,
    NOUNS,
    SPLITS,
    DataKind,
    Found,
    Item,
    Manifest,
    Problem,
    ProblemKind,
    Row,
    counted,
    listed,
    manifest_digest,
)
from thawline.data.corrections import corrected
from thawline.data.splits import Split, assign, keys, place
from thawline.exceptions import DataError

if TYPE_CHECKING:  # decoding processes import this package and do not need pydantic
    from thawline.config import DataConfig

__all__ = ["manifest_of"]

_FEW = 10
_SHARE = 0.05
"""Maximum number of near-duplicates to keep together, or their share of all images, whichever is more."""


def manifest_of(found: Found, config: "DataConfig") -> Manifest:
    """Apply corrections, remove conflicts and leaks, assign splits, and refuse unsuitable data.

    Raises:
        DataError: if a split or a class would be empty.
    """
    found = corrected(found, config)
    near, too_many = _kept_together(found)
    joined = keys([item.digest for item in found.items], [item.group for item in found.items], near)
    items = [replace(item, key=key) for item, key in zip(found.items, joined, strict=True)]
    items, conflicts = _without_conflicts(items, NOUNS[found.kind])
    items, leaks = _without_leaks(items, NOUNS[found.kind])
    sides, kept_back = _sides(items, found.missing, config.validation_fraction, config.test_fraction)
    rows = _rows(items, found, sides)
    problems = [*found.problems, *conflicts, *leaks, *_duplicates(rows, NOUNS[found.kind])]
    problems += [*_near(rows, found, too_many), *_too_many(rows, too_many, NOUNS[found.kind])]
    problems += _check_counts(rows, items, found, problems, config)
    problems += _kept_back(kept_back, NOUNS[found.kind])
    problems += [*_look_alikes(found.classes), *_several_in_one(found.classes)]
    kinds = get_args(ProblemKind)
    return Manifest(
        root=found.root,
        classes=found.classes,
        rows=rows,
        problems=tuple(sorted(problems, key=lambda p: (kinds.index(p.kind), _place(p.path, found.kind)))),
        digest=manifest_digest(found.classes, rows),
        layout=found.layout,
        kind=found.kind,
        table=found.table,
        shapes=found.shapes,
    )


# ------------------------------------------------------------------------------------------------ conflicts and leaks


def _without_conflicts(items: list[Item], noun: str) -> tuple[list[Item], list[Problem]]:
    """Remove every copy of an item with two classes, one of which must be wrong."""
    firsts: dict[str, dict[str, Item]] = defaultdict(dict)
    for item in items:
        firsts[item.digest].setdefault(item.class_name, item)
    kept, problems = [], []
    for item in items:
        other = next((copy for name, copy in firsts[item.digest].items() if name != item.class_name), None)
        if other is None:
            kept.append(item)
        else:
            problems.append(Problem(item.path, f"the same {noun} as {other.path}, under another class", "conflict"))
    return kept, problems


def _without_leaks(items: list[Item], noun: str) -> tuple[list[Item], list[Problem]]:
    """Remove items whose content or group is also in a given split with higher priority.

    Removing them from the training side keeps the test split unchanged, so that results stay comparable.
    """
    held_out_most: dict[str, Split] = {}
    for item in items:
        if HELD_OUT[item.given] >= HELD_OUT[held_out_most.get(item.key, "train")]:
            held_out_most[item.key] = item.given
    # Only the first of each, so that thousands of copies of a text are visited once.
    first: dict[str, Item] = {}
    first_of_content: dict[tuple[str, str], Item] = {}
    first_of_group: dict[tuple[str, str | None], Item] = {}
    for item in items:
        if item.given == held_out_most[item.key]:
            first.setdefault(item.key, item)
            first_of_content.setdefault((item.key, item.digest), item)
            first_of_group.setdefault((item.key, item.group), item)
    kept, problems = [], []
    for item in items:
        side = held_out_most[item.key]
        if side == item.given:
            kept.append(item)
            continue
        same_content = first_of_content.get((item.key, item.digest))
        same_group = first_of_group.get((item.key, item.group)) if item.group is not None else None
        if same_content is not None:
            reason = f"the same {noun} as {same_content.path} in the {side} split"
        elif same_group is not None:
            reason = f"its group {item.group!r} is also in the {side} split ({same_group.path})"
        elif item.group is None:
            reason = f"nearly the same {noun} as {first[item.key].path} in the {side} split"
        else:
            reason = f"copies connect its group to {first[item.key].path} in the {side} split"
        problems.append(Problem(item.path, reason, "leak"))
    return kept, problems


# ---------------------------------------------------------------------------------------------------- near-duplicates


def _kept_together(found: Found) -> tuple[list[tuple[str, str]], list[set[str]]]:
    """The pairs of near-duplicates to keep in one split, and sets of digests that are too large for that.

    Groups, if given, have precedence: a false match must not join two patients. Frames of a video, or parts in front of
    one camera, may all be similar, and no split could keep them together.
    """
    if not found.near or any(item.group is not None for item in found.items):
        return [], []
    digests = sorted({item.digest for item in found.items})
    sets: dict[str, set[str]] = defaultdict(set)
    for digest, key in zip(digests, keys(digests, [None] * len(digests), found.near), strict=True):
        sets[key].add(digest)
    most = max(_FEW, len(digests) * _SHARE)
    too_many = [alike for alike in sets.values() if len(alike) > most]
    apart = {digest for alike in too_many for digest in alike}
    return [pair for pair in found.near if pair[0] not in apart], too_many


def _near(rows: Sequence[Row], found: Found, too_many: Sequence[set[str]]) -> Iterator[Problem]:
    """A problem for each image that is a near-duplicate of an earlier one."""
    noun, apart = NOUNS[found.kind], {digest for alike in too_many for digest in alike}
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.digest, row)
    order = {digest: place for place, digest in enumerate(first)}
    earlier: dict[str, str] = {}
    for pair in found.near:
        if all(digest in order and digest not in apart for digest in pair):
            one, other = sorted(pair, key=order.__getitem__)
            earlier[other] = min(earlier.get(other, one), one, key=order.__getitem__)
    for digest in sorted(earlier, key=order.__getitem__):
        row, copied = first[digest], first[earlier[digest]]
        also = [f"under another class ({found.classes[copied.label]})"] if row.label != copied.label else []
        also += [f"in the {copied.split} split"] if row.split != copied.split else []
        yield Problem(row.path, ", ".join([f"nearly the same {noun} as {copied.path}", *also]), "near")


def _too_many(rows: Sequence[Row], too_many: Sequence[set[str]], noun: str) -> Iterator[Problem]:
    for alike in too_many:
        paths = [row.path for row in rows if row.digest in alike]
        if paths:
            reason = (
                f"one of {counted(len(paths), noun)} that are nearly the same, too many to keep in one split: if they "
                "are of one video or object, group them with data.group_pattern"
            )
            yield Problem(paths[0], reason, "near")


# --------------------------------------------------------------------------------------------- rows and their digest


def _sides(
    items: Sequence[Item], missing: frozenset[Split], validation_fraction: float, test_fraction: float
) -> tuple[dict[str, Split], list[str]]:
    """The split of each key, and the classes with a key that is used for training although its hash would hold it out.

    A class with few images may fall completely into held-out splits. Of such a class, the key closest to the middle of
    the training range is moved to training, independent of other classes: adding images to those moves nothing.
    """
    validation = validation_fraction if "validation" in missing else 0.0
    test = test_fraction if "test" in missing else 0.0
    sides: dict[str, Split] = {}
    of_class: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.given != "train":
            sides[item.key] = item.given
            continue
        if item.key not in sides:
            sides[item.key] = assign(item.key, validation_fraction=validation, test_fraction=test)
        of_class[item.class_name].add(item.key)
    middle = (test + 1 - validation) / 2
    kept_back = sorted(name for name, own in of_class.items() if all(sides[key] != "train" for key in own))
    for name in kept_back:
        sides[min(of_class[name], key=lambda key: (abs(place(key) - middle), key))] = "train"
    return sides, kept_back


def _kept_back(classes: Sequence[str], noun: str) -> Iterator[Problem]:
    if classes:
        reason = f"too few {noun}s to split by content: one of each is used for training instead of being held out"
        yield Problem(_some(classes), reason, "class")


def _some(names: Sequence[str]) -> str:
    """``cat``, or ``12 classes (ant, bee, cat, …)``."""
    if len(names) == 1:
        return names[0]
    return f"{len(names):,} classes ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def _rows(items: Sequence[Item], found: Found, sides: dict[str, Split]) -> tuple[Row, ...]:
    label = {name: index for index, name in enumerate(found.classes)}
    rows = [Row(item.path, label[item.class_name], sides[item.key], item.digest, item.group) for item in items]
    return tuple(
        sorted(rows, key=lambda row: (row.split, found.classes[row.label], row.digest, _place(row.path, found.kind)))
    )


def _place(path: str, kind: DataKind) -> tuple[str, int]:
    """Natural sort key of rows: line 9 before line 10."""
    file, _, line = path.rpartition(":")
    return (file, int(line)) if kind == "texts" and line.isdecimal() else (path, 0)


def _duplicates(rows: tuple[Row, ...], noun: str) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for row in rows:  # copies are adjacent, sorted by place
        if first.setdefault(row.digest, row.path) != row.path:
            yield Problem(row.path, f"the same {noun} as {first[row.digest]}", "duplicate")


def _check_counts(
    rows: tuple[Row, ...], items: Sequence[Item], found: Found, problems: Sequence[Problem], config: "DataConfig"
) -> list[Problem]:
    """Refuse an empty split or a class without training rows; warn about a class missing from a held-out split."""
    noun = NOUNS[found.kind]
    by_class = Counter((found.classes[row.label], row.split) for row in rows)
    fractions: dict[Split, float] = {"validation": config.validation_fraction, "test": config.test_fraction}
    for split, fraction in fractions.items():
        if any(row.split == split for row in rows):
            continue
        if split in found.given:
            place = found.given[split]
            raise DataError(
                f"{place} contains no usable {noun} of a trained class. Add {noun}s to it, or remove it to "
                f"split the {split} data off the training {noun}s." + _left_out(problems, found.kind, place)
            )
        units = len({row.group or row.digest for row in rows})
        raise DataError(
            f"No {noun} fell into the {split} split at data.{split}_fraction={fraction:g}: there are only "
            f"{counted(len(rows), noun)}, in {counted(units, 'group')} that must stay together. Add {noun}s, "
            f"or {_larger_shares(items, found, config)}"
        )
    untrained = [name for name in found.classes if not by_class[name, "train"]]
    if untrained:
        held_out = [sum(by_class[name, split] for split in SPLITS) for name in untrained]
        names = ", ".join(
            f"{name} ({counted(count, noun)} held out)" for name, count in zip(untrained, held_out, strict=True)
        )
        remedy = "Add images to their folders, or remove the folders."
        if found.kind == "texts":
            remedy = "Add texts of these classes, or remove the existing ones."
        raise DataError(
            f"These classes have no usable {noun} to train on: {names}. {remedy}"
            + _left_out(problems, found.kind, *untrained)
        )
    warnings: list[Problem] = []
    for split in fractions:
        lacking = [name for name in found.classes if not by_class[name, split]]
        if len(lacking) <= NAMED:
            reason = f"no {noun} of this class in the {split} split, so it is not evaluated there"
            warnings += [Problem(name, reason, "class") for name in lacking]
        else:
            reason = f"no {noun} of these in the {split} split, so they are not evaluated there"
            warnings.append(Problem(_some(lacking), reason, "class"))
    return warnings


def _larger_shares(items: Sequence[Item], found: Found, config: "DataConfig") -> str:
    """Settings with which no split is empty, verified by trying them."""
    shares: dict[Split, float] = {"validation": config.validation_fraction, "test": config.test_fraction}
    while max(shares.values()) < 0.5 and sum(shares.values()) < 0.8:
        sides, _ = _sides(items, found.missing, shares["validation"], shares["test"])
        empty = [split for split in shares if split in found.missing and split not in sides.values()]
        if not empty:
            before = {"validation": config.validation_fraction, "test": config.test_fraction}
            wanted = [f"--set data.{s}_fraction={share:g}" for s, share in shares.items() if share != before[s]]
            return f"raise the share: {' '.join(wanted)}"
        for split in empty:
            shares[split] = round(shares[split] + 0.01, 2)
    apart = " and ".join(f"a {split} split" for split in shares if split in found.missing)
    return f"provide {apart} yourself: no share of so few is enough"


def _look_alikes(classes: Sequence[str]) -> Iterator[Problem]:
    for names in look_alikes(classes):
        reason = "these classes differ only in case, width, spaces or invisible characters: are they the same?"
        yield Problem(" | ".join(names), reason, "class")


def _several_in_one(classes: Sequence[str]) -> Iterator[Problem]:
    if together := several_in_one(classes):
        reason = "combine other classes: each example needs one label, and each of these counts as a class"
        yield Problem(_some(together), reason, "class")


def _left_out(problems: Sequence[Problem], kind: DataKind, *places: str) -> str:
    """The skipped items in these folders, for an error about missing data."""
    folders = {place.rstrip("/") for place in places}
    found = [
        problem
        for problem in problems
        if problem.kind in {"bad", "conflict", "leak", "class"}
        and (kind == "texts" or folders & set(problem.path.split("/")))
    ]
    return f" Skipped:\n{listed([f'{p.path}: {p.reason}' for p in found])}" if found else ""
