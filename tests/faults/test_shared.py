"""Study, tracking and registry on a real PostgreSQL, by URLs alone, shared by two searches of which one is killed."""

from collections.abc import Callable

import pytest
from faults import Search, epochs_of, facts

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("postgres"), pytest.mark.timeout(900)]

OPTIONS = [
    *("--trials", "8", "--epochs", "8", "--exact", "--set", "study.pruner=NopPruner", "--set", "study.batch=1"),
    # Points do not depend on results, so that it does not matter which search got which trial, and when.
    *("--set", "study.sampler=QMCSampler"),
]


def test_two_searches_share_a_study_on_postgresql_and_one_finishes_what_the_other_had_when_it_was_killed(
    make_search: Callable[..., Search], new_postgres: Callable[[], str]
) -> None:
    expected = make_search("alone", *OPTIONS).finish()
    urls = {"THAWLINE_STORAGE": new_postgres(), "MLFLOW_TRACKING_URI": new_postgres()}
    search = make_search("shared", *OPTIONS, **urls)
    first, second = search.start(), search.start()
    assert second.says("epoch 1/8"), "\n".join(second.lines)
    second.kill_everything()
    third = search.start()
    for life in (first, third):
        code, _ = life.end()
        assert code == 0, "\n".join(life.lines)
    assert any("epoch" in line for line in third.lines), "it had its share"

    outcome = search.outcome()
    assert sorted(facts(outcome)) == sorted(facts(expected))
    recorded = search.epochs()
    assert recorded.keys() == epochs_of(8, 8)
    assert {key for key, times in recorded.items() if len(times) > 1} == set(), "an epoch is recorded twice"
    assert search.parent().info.status == "FINISHED"
    client = search.store.client
    assert len(client.search_model_versions("name = 'shapes'")) == 1
    assert str(client.get_model_version_by_alias("shapes", "champion").version) == "1"
