"""Drift detection: do new images still resemble those that a model was trained for? No labels are needed.

``check_drift`` reads the images and reports; ``compare`` computes only the statistics. See ``docs/adr/0012-drift.md``.
"""

from thawline.drift.check import check_drift
from thawline.drift.comparison import Answers, Comparison, ShiftTest, compare
from thawline.drift.report import ClassShare, DriftReport, Unusual

__all__ = [
    "Answers",
    "ClassShare",
    "Comparison",
    "DriftReport",
    "ShiftTest",
    "Unusual",
    "check_drift",
    "compare",
]
