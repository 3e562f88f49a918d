"""Retraining: a new search if data or recipe have changed, starting from the champion; designed for schedules.

The command ``thawline retrain`` runs this flow; ``thawline deploy`` schedules it.
"""

from pathlib import Path
from typing import cast

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed

from thawline import environment
from thawline.config import SearchConfig
from thawline.data import Manifest
from thawline.flows.search import search
from thawline.orchestration.notifications import check_blocks, tell, tell_failure
from thawline.orchestration.reach import keep, page
from thawline.orchestration.schedules import alone, drop_missed_runs
from thawline.orchestration.server import leaving_at_once
from thawline.orchestration.tasks import task
from thawline.search import SearchOutcome, already_checked, check_config
from thawline.search.retraining import (
    Retraining,
    RetrainOutcome,
    conclude_retraining,
    model_of,
    plan_retraining,
    read_changes,
)

__all__ = ["retrain"]


@flow(
    name="retrain",
    validate_parameters=True,
    on_running=[drop_missed_runs],
    on_failure=[tell_failure],
    on_crashed=[tell_failure],
)
@leaving_at_once
def retrain(config: SearchConfig) -> RetrainOutcome:
    """Search again if data or recipe have changed since the last verdict, and promote the best if it is better.

    The run's state is ``Completed``, or ``Skipped`` with the reason.

    Args:
        config: as for a search; ``config.retrain`` sets the starting points and the notifications.

    Returns:
        The result.

    Raises:
        ThawlineError: for bad input, before anything expensive starts.
    """
    home = environment.home()
    check_config(config, home)
    check_blocks(config.retrain)
    manifest = data_task(config, home)
    with alone(model_of(config), home) as busy:
        plan = plan_task(config, manifest, home, busy)
        with already_checked(plan.config):  # the plan's configuration is derived from the checked recipe
            outcome = conclude_task(plan, None if plan.reason else search(plan.config))
    publish(outcome)
    tell(outcome, config.retrain)
    keep(outcome)
    name = "Skipped" if outcome.end == "skipped" else None
    # Prefect returns the data of a returned state to the caller.
    return cast(RetrainOutcome, Completed(name=name, message=outcome.reason, data=outcome))


@task("look for changes")
def data_task(config: SearchConfig, home: Path) -> Manifest:
    """List the folder, or check the table, and read it if it has changed."""
    return read_changes(config, home)


@task("plan")
def plan_task(config: SearchConfig, manifest: Manifest, home: Path, busy: str | None) -> Retraining:
    """Decide whether to search, and from which points."""
    return plan_retraining(config, manifest, home, busy=busy)


@task("conclude")
def conclude_task(plan: Retraining, outcome: SearchOutcome | None) -> RetrainOutcome:
    """Record the training."""
    return conclude_retraining(plan, outcome)


@page
def publish(outcome: RetrainOutcome) -> None:
    """Publish the result as a page in Prefect's UI."""
    create_markdown_artifact(key="retrain", markdown=outcome.as_markdown(), description="Retraining")
