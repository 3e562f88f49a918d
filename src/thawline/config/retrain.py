"""The section ``retrain``."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from thawline.config.model import Model

__all__ = ["RetrainConfig"]


def _block(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", value):
        raise ValueError(f"must be a Prefect block as TYPE/NAME, such as slack-webhook/team, but got {value!r}")
    return value


class RetrainConfig(Model):
    """Options of ``thawline retrain`` beyond those of the search."""

    narrow: bool = False
    """Search only near the champion: its freeze depth plus or minus one, and a third to three times its learning rate,
    within the search space. Cheaper, but finds nothing far from the champion."""
    notify: tuple[Annotated[str, AfterValidator(_block)], ...] = ()
    """Prefect notification blocks that report the outcome of a retraining, such as ``slack-webhook/team``."""
    notify_on: tuple[Literal["promoted", "held", "rejected", "failed", "skipped"], ...] = (
        "promoted",
        "held",
        "rejected",
        "failed",
    )
    """Outcomes to report."""
