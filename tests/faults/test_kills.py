"""Killed at thirty random points, a search ends like one that was never hurt."""

import random
import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest
from faults import Life, Search, facts

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kills"), pytest.mark.timeout(1500)]

KILLS = 30
OPTIONS = ["--trials", "15", "--epochs", "4", "--set", "study.retries=100", "--set", "space.freeze_depth=[3, 6]"]
MEDIAN = ["--set", "study.pruner_options={n_startup_trials: 2, n_warmup_steps: 1}"]
FREEZE_THAW = [
    *("--set", "study.pruner=freeze_thaw"),
    *("--set", "study.pruner_options={n_startup_trials: 1, least_chance: 0.05}"),
]


def hurt(life: Life, chance: random.Random, kills: int) -> tuple[int, bool]:
    """Kill something at random points of one life; returns how often, and whether the life went to its end."""
    done = 0
    while done < kills:
        seen, wanted = len(life.lines), chance.randint(1, 3)
        if not life.wait_until(lambda lines, more=seen + wanted: len(lines) >= more):
            return done, True
        time.sleep(chance.uniform(0, 0.4))  # anywhere between two lines
        what = chance.choices(["worker", "driver", "everything", "terminate"], [28, 1, 2, 1])[0]
        if what == "worker":
            done += life.kill_worker()
            continue
        if life.process.poll() is not None:
            return done, True
        if what == "driver":
            life.kill_driver()
        elif what == "everything":
            life.kill_everything()
        else:
            life.process.terminate()
            life.process.wait(120)
        life.kill_everything()
        return done + 1, False
    return done, False


@pytest.mark.parametrize("pruner", [MEDIAN, FREEZE_THAW], ids=["median", "freeze_thaw"])
def test_thirty_random_kills_lose_no_epoch_double_nothing_and_end_in_the_same_champion(
    make_search: Callable[..., Search], pruner: list[str]
) -> None:
    whole = make_search("whole", *OPTIONS, *pruner)
    expected = whole.finish()
    assert {row["state"] for row in expected["trials"]} == {"complete", "pruned"}, "a control: some are stopped"
    search = make_search("killed", *OPTIONS, *pruner)
    # What is stored and in which precision is measured: another measurement, other bits.
    for plan in (whole.home / "studies" / "shapes").glob("plan-*.json"):
        (search.home / "studies" / "shapes").mkdir(parents=True)
        shutil.copy(plan, search.home / "studies" / "shapes")

    chance, kills, lives, recorded = random.Random(5), 0, 0, dict[tuple[int, int], int]()
    while kills < KILLS:
        life, lives = search.start(), lives + 1
        more, ended = hurt(life, chance, KILLS - kills)
        kills += more
        if ended or kills == KILLS:
            code, _ = life.end()
            assert ended or code in (0, -9, 143), "\n".join(life.lines)
        for key, finished_at in search.checkpointed().items():
            assert recorded.setdefault(key, finished_at) == finished_at, f"epoch {key} was trained twice"
        if ended:
            break
    outcome: dict[str, Any] = search.finish()

    assert kills == KILLS, f"the search ended after {kills} kills in {lives} lives: give it more to do"
    assert facts(outcome) == facts(expected)
    assert outcome["test"] == expected["test"]
    for fact in ("version", "best_trial", "decision"):
        assert outcome[fact] == expected[fact]
    epochs = search.epochs()
    assert epochs.keys() == whole.epochs().keys()
    assert {key for key, times in epochs.items() if len(times) > 1} == set(), "an epoch is recorded twice"
    assert {key: epochs[key][0] for key in recorded} == recorded, "an epoch that a checkpoint had recorded is another's"
    client = search.store.client
    assert [version.version for version in client.search_model_versions("name = 'shapes'")] in ([1], ["1"])
    assert str(client.get_model_version_by_alias("shapes", "challenger").version) == expected["version"]
