"""The thaw-line report of a study: what goes into it, and what trackers show beside its page."""

from thawline.study_report.making import MadeReport, make_report, write_report

__all__ = ["MadeReport", "make_report", "write_report"]
