"""Are new images still like those that a model was made for? No labels are needed.

``check_drift`` reads the images and reports; ``compare`` is the statistics alone. See ``docs/adr/0012-drift.md``.
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
