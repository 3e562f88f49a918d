"""Approval by a person before the champion is replaced, using Prefect's pause with input."""

from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL
from pydantic import Field

from thawline.config import PromotionConfig
from thawline.exceptions import ConfigError
from thawline.orchestration.reach import page
from thawline.registry import Outcome, PromotionOutcome, record
from thawline.search import Note, emit
from thawline.tracking import MlflowStore

__all__ = ["Approval", "approved", "check_answerable", "publish_decision"]


class Approval(RunInput):
    """The form in Prefect's UI."""

    approve: bool = Field(description="Replace the champion with the challenger?")
    note: str = Field(default="", description="Reason; stored with the verdict.")


def check_answerable(config: PromotionConfig) -> None:
    """Reject a configuration that requires approval without a server on which to give it.

    Raises:
        ConfigError: if approval is required but no Prefect server outlives this process.
    """
    if config.approve and not PREFECT_API_URL.value():
        raise ConfigError(
            "promotion.approve waits for an answer in Prefect's UI, but the server that Prefect starts for a single "
            "flow has no UI. Use the command line or thawline.run_search, or start a server with `thawline up`."
        )


def approved(store: MlflowStore, judged: PromotionOutcome, config: PromotionConfig) -> PromotionOutcome:
    """Ask a person for approval if required, record the answer, and return the outcome.

    The flow run is paused meanwhile. Without an answer in ``promotion.approve_minutes``, the promotion is declined.
    """
    if not config.approve or judged.verdict.outcome is not Outcome.PROMOTE:
        return judged
    answered = _ask(judged, config)
    record(store, answered, config.metric)
    return answered


def _ask(judged: PromotionOutcome, config: PromotionConfig) -> PromotionOutcome:
    where = f"{PREFECT_UI_URL.value()}/runs/flow-run/{flow_run.id}"
    which = f"{judged.name} version {judged.version}"
    emit(Note(f"{which} waits for approval, at most {config.approve_minutes:g} min: {where}"))
    form = Approval.with_initial_data(description=judged.as_markdown(), approve=False)
    try:
        answer = pause_flow_run(wait_for_input=form, timeout=round(60 * config.approve_minutes), poll_interval=2)
    except FlowPauseTimeout:
        return judged.declined(f"not approved within {config.approve_minutes:g} minutes ({judged.verdict.reason})")
    note = f": {answer.note}" if answer and answer.note else ""
    if answer is None or not answer.approve:
        return judged.declined(f"a person declined{note} ({judged.verdict.reason})")
    get_run_logger().info("approved%s", note)
    return judged.agreed(note)


@page
def publish_decision(judged: PromotionOutcome) -> None:
    """Publish the verdict as a page in Prefect's UI."""
    create_markdown_artifact(key="decision", markdown=judged.as_markdown(), description="Promotion decision")
