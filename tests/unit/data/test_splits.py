"""The side of a file depends on what it is and on nothing else."""

from collections import Counter

import pytest

from thawline.data.splits import Split, assign, keys

KEYS = [f"={number:032x}" for number in range(4000)]


def sides(names: list[str], validation: float = 0.15, test: float = 0.15) -> dict[str, Split]:
    return {name: assign(name, validation_fraction=validation, test_fraction=test) for name in names}


def test_the_shares_are_those_asked_for() -> None:
    shares = Counter(sides(KEYS, validation=0.2, test=0.1).values())

    assert shares["validation"] / len(KEYS) == pytest.approx(0.2, abs=0.02)
    assert shares["test"] / len(KEYS) == pytest.approx(0.1, abs=0.02)


def test_no_key_changes_side_when_others_are_added() -> None:
    before = sides(KEYS[::2])
    after = sides(KEYS)

    assert all(after[name] == side for name, side in before.items())
    assert len(set(before.values())) == 3


def test_a_split_by_place_in_the_list_would_change_sides() -> None:
    """The control: what drawing by position does to the same keys."""

    def by_place(names: list[str]) -> dict[str, str]:
        return {name: "test" if index < 0.15 * len(names) else "train" for index, name in enumerate(names)}

    before, after = by_place(KEYS[:100]), by_place(KEYS)

    assert any(after[name] != side for name, side in before.items())


def test_changing_a_fraction_moves_keys_only_between_training_and_that_split() -> None:
    before, after = sides(KEYS, validation=0.15, test=0.1), sides(KEYS, validation=0.15, test=0.2)

    moves = {(before[name], after[name]) for name in KEYS if before[name] != after[name]}

    assert moves == {("train", "test")}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_fraction_of_zero_takes_nothing(split: str) -> None:
    fractions = {"validation": 0.0, "test": 0.0}
    assert split not in sides(KEYS, **fractions).values()


def test_the_sides_are_those_of_the_first_release() -> None:
    """Changing the hash would mix yesterday's test images into today's training, in every data set there is."""
    names = ["=a", "=b", "=c", "=d", "+p", "+q", "+video 7", "+caf\u00e9", "=" + "0" * 32]
    found = {name: assign(name, validation_fraction=0.3, test_fraction=0.3) for name in names}
    assert list(found.values()) == [
        "validation",
        "validation",
        "train",
        "train",
        "train",
        "train",
        "validation",
        "test",
        "train",
    ]


def test_copies_and_groups_share_a_key() -> None:
    result = keys(["a", "a", "b", "c", "d"], [None, None, "p", "p", None])

    assert result[0] == result[1]
    assert result[2] == result[3]
    assert len(set(result)) == 3


def test_a_copy_in_two_groups_joins_them_along_a_chain_whatever_the_order() -> None:
    digests, groups = ["a", "b", "b", "c", "c", "d", "e"], ["z", "z", "m", "m", "k", "k", "other"]

    result = keys(digests, groups)

    assert set(result[:6]) == {"+k"}
    assert result[6] == "+other"
    backwards = keys(digests[::-1], groups[::-1])
    assert backwards[::-1] == result


def test_a_groups_key_is_its_name_alone_so_that_it_stays_when_files_are_added() -> None:
    assert keys(["a"], ["p"]) == keys(["a", "b", "0"], ["p", "p", "p"])[:1] == ["+p"]


def test_a_group_named_like_a_digest_is_not_taken_for_one() -> None:
    assert len(set(keys(["a", "b"], ["b", None]))) == 2


def test_near_duplicates_have_one_key_and_others_keep_theirs() -> None:
    digests = ["d4", "b2", "c3", "a1", "e5"]
    alone: list[str | None] = [None] * 5
    assert keys(digests, alone, [("c3", "d4"), ("b2", "c3")]) == ["=b2", "=b2", "=b2", "=a1", "=e5"]
    assert keys(digests, alone, []) == keys(digests, alone) == ["=d4", "=b2", "=c3", "=a1", "=e5"]
