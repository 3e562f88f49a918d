"""Prefect's own retry of the flow resumes the same study."""

from collections.abc import Callable
from typing import Any

import pytest
from commands import Forks
from faults import TRIALS, Search, epochs_of, facts

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kills"), pytest.mark.timeout(600)]

FAIL_ONCE = """
from thawline import environment
environment.quiet_prefect()
from thawline import cli
from thawline.flows import search as module

run_step, failures = module.run_step, [1]

def judged_second_time(step, *arguments, **options):
    if failures and step is module.judge_best:
        failures.pop()
        raise OSError("the network went away")
    return run_step(step, *arguments, **options)

module.run_step = judged_second_time
module.search = module.search.with_options(retries=1)
cli.main()
"""


def test_a_flow_that_prefect_tries_again_resumes_in_the_same_study_and_runs(
    make_search: Callable[..., Search], reference: dict[str, Any], first_process: Forks
) -> None:
    search = make_search("retried", *TRIALS)
    program = ["-c", FAIL_ONCE, "search", str(search.data), *search.options]
    code, _, said = first_process.run(program, search.environment, search.home.parent)
    assert code == 0, said
    assert facts(search.outcome()) == facts(reference)
    recorded = search.epochs()
    assert recorded.keys() == epochs_of(4, 4)
    assert {key for key, times in recorded.items() if len(times) > 1} == set()
    assert len(search.store.client.search_model_versions("name = 'shapes'")) == 1
