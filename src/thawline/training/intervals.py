"""In which range an accuracy lies, given on how many examples it was measured."""

from dataclasses import dataclass

__all__ = ["CONFIDENCE", "Interval", "proportion_interval"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A metric and the range in which it lies with 95 % confidence."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def proportion_interval(right: int, examples: int) -> Interval:
    """A share of at least one example, by Wilson's score interval: it is informative at 0 and 1 too."""
    from scipy.stats import binomtest

    found = binomtest(right, examples).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(right / examples, float(found.low), float(found.high))
