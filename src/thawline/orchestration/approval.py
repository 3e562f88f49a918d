"""Approval by a person before the champion is replaced, using Prefect's pause with input."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run, resume_flow_run
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

_GRACE_SECONDS = 60
"""Prefect fails a run whose pause ends by itself; the answer after the deadline is ours and comes before that."""


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
    seconds, answer = 60 * config.approve_minutes, None
    with _declined_after(seconds) as unanswered, suppress(FlowPauseTimeout):
        answer = pause_flow_run(wait_for_input=form, timeout=round(seconds) + _GRACE_SECONDS, poll_interval=2)
    if answer is None or unanswered.is_set():
        return judged.declined(f"not approved within {config.approve_minutes:g} minutes ({judged.verdict.reason})")
    note = f": {answer.note}" if answer.note else ""
    if not answer.approve:
        return judged.declined(f"a person declined{note} ({judged.verdict.reason})")
    get_run_logger().info("approved%s", note)
    return judged.agreed(note)


@contextmanager
def _declined_after(seconds: float) -> Iterator[threading.Event]:
    """Decline the paused run of this flow after so long; the event is then set, unless a person was faster."""
    run_id, unanswered = UUID(flow_run.id), threading.Event()

    def decline() -> None:
        with suppress(Exception):  # a person was faster, or the server is gone: Prefect then ends the pause
            resume_flow_run(run_id, run_input={"approve": False})
            unanswered.set()

    timer = threading.Timer(seconds, copy_context().run, [decline])
    timer.daemon = True
    timer.start()
    try:
        yield unanswered
    finally:
        timer.cancel()
        timer.join()  # an answer in flight


@page
def publish_decision(judged: PromotionOutcome) -> None:
    """Publish the verdict as a page in Prefect's UI."""
    create_markdown_artifact(key="decision", markdown=judged.as_markdown(), description="Promotion decision")
