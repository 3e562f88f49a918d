"""May the challenger replace the champion? A pure decision: values in, a verdict out."""

import math
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Outcome", "Verdict", "decide"]


class Outcome(StrEnum):
    """What happens to the challenger."""

    PROMOTE = "promote"
    """It becomes the champion."""
    HOLD = "hold"
    """It stays the challenger."""
    REJECT = "reject"
    """It has no usable value; it never becomes the champion."""


@dataclass(frozen=True)
class Verdict:
    """The decision, with its reason as a sentence for people."""

    outcome: Outcome
    reason: str


def decide(
    *,
    metric: str,
    challenger: float,
    champion: float | None,
    champion_error: str | None = None,
    higher_is_better: bool = True,
) -> Verdict:
    """Promote the challenger if there is no champion, or if it is strictly better on the same test images.

    Args:
        metric: its name, for the reason.
        challenger: its value.
        champion: the champion's value, measured now on the same images; ``None`` if there is no champion or if it could
            not be measured.
        champion_error: why the champion could not be measured. Then the challenger waits: a broken champion is a matter
            for a person.
        higher_is_better: False for a loss.
    """
    if not math.isfinite(challenger):
        return Verdict(Outcome.REJECT, f"the challenger's {metric} is {challenger}, which is no usable value")
    if champion_error is not None:
        return Verdict(
            Outcome.HOLD,
            f"the champion could not be scored ({champion_error}); repair it or remove its alias, then search again",
        )
    if champion is None:
        return Verdict(Outcome.PROMOTE, f"there is no champion yet; the challenger's {metric} is {challenger:.4f}")
    if not math.isfinite(champion):
        return Verdict(Outcome.HOLD, f"the champion's {metric} is {champion}, so that nothing can be compared")
    better = challenger > champion if higher_is_better else challenger < champion
    values = f"{metric} {challenger:.4f} against {champion:.4f} on the same test images"
    if better:
        return Verdict(Outcome.PROMOTE, f"the challenger is better: {values}")
    relation = "no better than" if challenger == champion else "worse than"
    return Verdict(Outcome.HOLD, f"the challenger is {relation} the champion: {values}")
