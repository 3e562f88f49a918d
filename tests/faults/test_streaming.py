"""A search that keeps no decoded images ends like one that does, also if it is killed."""

from collections.abc import Callable
from typing import Any

import pytest
from faults import TRIALS, Search, facts

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("streaming")]


def test_a_search_that_keeps_nothing_decoded_is_killed_resumes_and_ends_like_one_that_decodes_once(
    make_search: Callable[..., Search], reference: dict[str, Any]
) -> None:
    search = make_search("streaming", *TRIALS, "--set", "data.cache=off")
    life = search.start()
    assert life.says(" trial-02 epoch 2/4"), life.lines
    life.kill_everything()
    said = "\n".join(life.lines)
    assert "images are decoded on every read instead of once: data.cache=off" in said
    assert "plan: images are decoded while their activations are stored, and in" in said

    resumed = search.finish()

    assert facts(resumed) == facts(reference)
    assert resumed["test"] == reference["test"]
    kept = [file for file in (search.home / "cache" / "decoded").iterdir() if file.suffix != ".lock"]
    (listed,) = kept
    assert listed.stat().st_size < 10_000, "the names of 88 files: their pixels would take 270 kB"
    assert not list(search.home.rglob("*.npy"))
