"""The promotion gate: compare a version of a registered model with its champion, both scored now.

The command ``thawline promote`` runs this flow. The test data come from the study that trained the version.
"""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from thawline import environment
from thawline.orchestration.approval import approved, check_answerable, publish_decision
from thawline.orchestration.server import leaving_at_once
from thawline.registry import PromotionOutcome, settle
from thawline.search.challenger import Challenger, judge_challenger, open_challenger

__all__ = ["promote"]


@flow(name="promote", validate_parameters=True)
@leaving_at_once
def promote(
    model: str,
    version: str | None = None,
    data: Path | None = None,
    approve: bool | None = None,
    tracking_uri: str | None = None,
    shadow: str | None = None,
    token_file: Path | None = None,
) -> PromotionOutcome:
    """Compare a version with the champion, and make it champion if it is better.

    Args:
        model: name of the registered model.
        version: the challenger; by default the version with the alias ``challenger``, or else the newest.
        data: folder of labelled images, ``DATA/<class>/…``, or table of labelled texts; by default the test split of
            the study that trained it.
        approve: whether a person must approve first; by default as in that study, whose thresholds also apply.
        tracking_uri: URI of the registry; by default as for a search.
        shadow: address of a server that runs with ``--shadow``, whose counts are shown with the verdict.
        token_file: with the token that this server requires.

    Raises:
        ThawlineError: if the version, its study or its data cannot be found, or another promotion was faster.
    """
    challenger = open_task(model, version, data, approve, tracking_uri, shadow, token_file)
    check_answerable(challenger.rules)
    judged = judge_task(challenger)
    publish_decision(judged)
    decided = approved(challenger.store, judged, challenger.rules)
    return settle_task(challenger, decided)


@task(name="find challenger", cache_policy=NO_CACHE)
def open_task(
    model: str,
    version: str | None,
    data: Path | None,
    approve: bool | None,
    tracking_uri: str | None,
    shadow: str | None,
    token_file: Path | None,
) -> Challenger:
    """Find the version, its test data and the thresholds."""
    return open_challenger(
        model,
        version=version,
        data=data,
        approve=approve,
        tracking_uri=tracking_uri,
        home=environment.home(),
        shadow=shadow,
        token_file=token_file,
    )


@task(name="judge", cache_policy=NO_CACHE)
def judge_task(challenger: Challenger) -> PromotionOutcome:
    """Score both on the same data, and decide."""
    return judge_challenger(challenger)


@task(name="promote", cache_policy=NO_CACHE)
def settle_task(challenger: Challenger, decided: PromotionOutcome) -> PromotionOutcome:
    """Move the alias if the verdict is to promote."""
    return settle(challenger.store, decided)
