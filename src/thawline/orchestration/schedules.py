"""Long-running schedules: no concurrent runs, and no backlog of missed runs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import Flow, State
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import FlowRun, StateType
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists
from prefect.logging.loggers import flow_run_logger
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled

from thawline.exceptions import StudyError
from thawline.search.retraining import alone_at_home

__all__ = ["alone", "drop_missed_runs"]

_PAGE = 200
"""Maximum number of runs that Prefect's API returns at a time."""
_LOCKED = 423
"""HTTP status of a request for a slot if none is free."""


def drop_missed_runs(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel the other overdue runs of this deployment's schedule: this run replaces them all.

    A hook for ``on_running``. Prefect keeps every missed run, and a worker that was off for a week would start them one
    after another (prefect#15886).
    """
    if flow_run.deployment_id is None:
        return
    with get_client(sync_client=True) as client:
        missed = _missed(client, flow_run)
        for run in missed:
            client.set_flow_run_state(run.id, Cancelled(message=f"missed: {flow_run.name} replaces it"))
    if missed:
        flow_run_logger(flow_run).info("cancelled %d missed runs of this schedule", len(missed))


def _missed(client: SyncPrefectClient, stands_in: FlowRun) -> list[FlowRun]:
    late = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[stands_in.deployment_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
    )
    found: list[FlowRun] = []
    while page := client.read_flow_runs(flow_run_filter=late, limit=_PAGE, offset=len(found)):
        found += page
    # Only scheduled runs count as missed, not those triggered by a person or an event.
    return [run for run in found if run.auto_scheduled and run.id != stands_in.id]


@contextmanager
def alone(model: str, home: Path) -> Iterator[str | None]:
    """Lock a model's retraining within the block; if it is locked already, yield the reason and lock nothing.

    A lock in Thawline's home excludes other processes, even without a Prefect server, and is released when its process
    dies. With a server, the global concurrency limit ``thawline-<model>`` excludes other machines.
    """
    with ExitStack() as held:
        try:
            held.enter_context(alone_at_home(model, home))
            if PREFECT_API_URL.value():
                held.enter_context(_alone_at_server(model))
        except StudyError as busy:
            reason: str | None = str(busy)
        else:
            reason = None
        yield reason


@contextmanager
def _alone_at_server(model: str) -> Iterator[None]:
    """Take the only slot of the model's global concurrency limit, which is created if it is new.

    Raises:
        StudyError: if it is taken.
    """
    name = f"thawline-{model}"
    taken = StudyError(
        f"{model} is being retrained by another run: Prefect's global concurrency limit {name} is taken. If none is "
        f"running, free it with: prefect gcl update {name} --active-slots 0"
    )
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):  # another run created it at the same moment
            client.upsert_global_concurrency_limit_by_name(name, limit=1)
        if client.read_global_concurrency_limit_by_name(name).active_slots > 0:
            raise taken  # by far the most common case; otherwise Prefect would log an error
    with ExitStack() as slot:
        try:
            # Do not discard a training because the server was unreachable when the slot's lease was due.
            slot.enter_context(concurrency(name, max_retries=0, strict=True, raise_on_lease_renewal_failure=False))
        except ConcurrencySlotAcquisitionError as error:
            if getattr(getattr(error.__cause__, "response", None), "status_code", None) == _LOCKED:
                raise taken from None
            raise
        yield
