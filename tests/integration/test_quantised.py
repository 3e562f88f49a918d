"""A search whose champion is quantised: two versions, each judged, and every command takes either."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("search_texts")]

SEARCH = [
    *("--backbone", "mobilenet_v3_small", "--weights", "starter", "--image-size", "32", "--batch-size", "16"),
    *("--model", "shapes", "--study", "shapes", "--trials", "1", "--epochs", "1", "--json"),
    *("--set", "data.workers=1", "--set", "train.device=cpu", "--set", "tracking.report=false"),
    # A test split of a dozen shows no more.
    *("--set", "promotion.exports=[int8]", "--set", "promotion.max_quantisation_loss=0.5"),
]


@pytest.mark.timeout(1500)  # six commands, two of which are searches
def test_a_search_quantises_its_champion_and_every_command_takes_the_copy(
    tmp_path: Path,
    forked: Callable[..., Any],
    prepared: Callable[[Path], Path],
    prefect: dict[str, str],
    draw_pictures: Callable[..., Path],
) -> None:
    home, data = prepared(tmp_path / "home"), draw_pictures(tmp_path / "shapes")
    searched = forked("search", data, *SEARCH, home=home, **prefect).json
    copy = searched["quantised"]
    assert (searched["version"], searched["decision"]) == ("1", "promote")
    assert (copy["version"], copy["judged_against"]) == ("2", "1")
    # Whether it is faster depends on the machine.
    failed = {each["name"] for each in copy["criteria"] if not each["passed"]}
    assert failed <= {"seconds for one image"}, copy
    champion = "1" if failed else "2"
    assert copy["outcome"] == ("hold" if failed else "promote")
    assert searched["champion_version"] == champion

    image = str(next(data.glob("circle/*.png")))
    (answer,) = forked("predict", "shapes/2", image, "--json", home=home).json
    (before,) = forked("predict", "shapes/1", image, "--json", home=home).json
    assert answer["class"] == before["class"]
    assert answer["probabilities"] == pytest.approx(before["probabilities"], abs=0.2)
    assert answer["probabilities"] != before["probabilities"]
    refused = forked("predict", "shapes/2", image, "--engine", "pytorch", home=home)
    assert refused.code != 0
    assert "shapes/1, which it was quantised from, is in single precision" in " ".join(refused.err.split())
    explained = forked("explain", "shapes/2", image, "--out", tmp_path / "out", "--method", "occlusion", home=home)
    assert explained.code == 0, explained.err
    assert json.loads((tmp_path / "out" / "explanations.json").read_text())[0]["model"] == "shapes/1"
    assert "shapes/2 is in int8, so the version explained is shapes/1" in " ".join(
        (explained.out + explained.err).split()
    )

    again = forked("search", data, *SEARCH, home=home, **prefect).json
    assert (again["version"], again["quantised"]["version"], again["champion_version"]) == ("1", "2", champion)
    assert "already the champion" in again["reason"]
