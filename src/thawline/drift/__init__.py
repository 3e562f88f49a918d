"""Are new images still like those that a model was made for? No labels are needed.

``check_drift`` reads the images and reports; ``compare`` is the statistics alone; ``drift_table`` is for the terminal.
See ``docs/adr/0012-drift.md``.
"""

from thawline.drift.check import check_drift
from thawline.drift.comparison import Answers, Comparison, ShiftTest, compare
from thawline.drift.report import ClassShare, DriftReport, Unusual, drift_table

__all__ = [
    "Answers",
    "ClassShare",
    "Comparison",
    "DriftReport",
    "ShiftTest",
    "Unusual",
    "check_drift",
    "compare",
    "drift_table",
]
