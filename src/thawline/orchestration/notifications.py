"""Notifications about the outcome of a retraining, by Prefect's notification blocks."""

import inspect
from typing import Any

import prefect.blocks.notifications  # noqa: F401  Block.load needs the types of blocks to be imported
from prefect import Flow, State
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.client.schemas import FlowRun
from prefect.context import FlowRunContext
from prefect.logging.loggers import flow_run_logger
from prefect.settings import PREFECT_UI_URL
from prefect.utilities.asyncutils import run_coro_as_sync
from pydantic import ValidationError

from thawline.config import RetrainConfig, SearchConfig
from thawline.exceptions import ConfigError
from thawline.search.retraining import RetrainOutcome

__all__ = ["check_blocks", "tell", "tell_failure"]


def check_blocks(config: RetrainConfig) -> None:
    """Reject blocks that do not exist or are not for notifications, before training.

    Raises:
        ConfigError: naming the block, with advice.
    """
    for name in config.notify:
        _load(name)


def tell(outcome: RetrainOutcome, config: RetrainConfig) -> None:
    """Notify of a retraining's outcome, if the recipe requests it; failures to send are only logged."""
    context = FlowRunContext.get()
    if outcome.end in config.notify_on and context is not None and context.flow_run is not None:
        _send(config, context.flow_run, outcome.title, "\n".join(outcome.lines()))


def tell_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook for ``on_failure`` and ``on_crashed``; the worker runs the latter, even if the flow's process died."""
    try:
        config = SearchConfig.model_validate(flow_run.parameters["config"])
    except (KeyError, ValidationError):  # without readable parameters, no block is known
        return
    if "failed" in config.retrain.notify_on:
        model = config.promotion.model or config.data.path.name
        _send(config.retrain, flow_run, f"{model}: failed", state.message or state.name or "")


def _send(config: RetrainConfig, flow_run: FlowRun, subject: str, body: str) -> None:
    if PREFECT_UI_URL.value():
        body = f"{body}\n{PREFECT_UI_URL.value()}/runs/flow-run/{flow_run.id}"
    for name in config.notify:
        try:
            block = _load(name)
            with block.raise_on_failure():
                sending: object = block.notify(body, subject=subject)  # type: ignore[func-returns-value, unused-ignore]
                if inspect.iscoroutine(sending):  # a user's own block, or a hook run by a worker
                    run_coro_as_sync(sending)
        except Exception as error:  # any error of the service or of the network
            flow_run_logger(flow_run).warning("could not notify %s of %r: %s", name, subject, error)


def _load(name: str) -> NotificationBlock:
    try:
        block = Block.load(name)
    except ValueError as error:
        raise ConfigError(
            f"retrain.notify: Prefect has no block {name!r} ({error}). `prefect block ls` lists existing blocks; "
            "create new ones in Prefect's UI."
        ) from None
    if not isinstance(block, NotificationBlock):
        raise ConfigError(f"retrain.notify: {name!r} is a {type(block).__name__}, which is not a notification block.")
    return block
