"""Confidence intervals of accuracies, given the number of examples."""

from dataclasses import dataclass

__all__ = ["CONFIDENCE", "Interval", "proportion_interval"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def proportion_interval(right: int, examples: int) -> Interval:
    """Wilson's score interval of a proportion of at least one example, which is informative at 0 and 1 too."""
    from scipy.stats import binomtest

    found = binomtest(right, examples).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(right / examples, float(found.low), float(found.high))
