"""``thawline clean``: files and records that no search needs any more; listed first, removed on request.

One age decides, for Thawline's home, the studies' storage and MLflow: items last used longer ago can be removed.
Nothing outside the home is touched, links are not followed, and files of a running search are left alone: its lock is
taken before a removal, and the findings are checked again under the lock.
"""

from thawline.cleaning._look import Failure, Item, Kind
from thawline.cleaning._survey import Survey, parse_age, parse_kinds, remove, survey

__all__ = ["Failure", "Item", "Kind", "Survey", "parse_age", "parse_kinds", "remove", "survey"]
