"""The thaw-line report of a study: its contents, and the media that trackers show."""

from thawline.study_report.making import MadeReport, make_report, write_report

__all__ = ["MadeReport", "make_report", "write_report"]
