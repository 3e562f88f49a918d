"""``thawline clean``: what no search needs any more; listed first, removed on request.

Everything is decided by one age from what lies in Thawline's home, the studies' storage and MLflow: what was last used
longer ago may go. Nothing outside the home is touched, links are not followed, and what a running search has is left
alone: its lock is taken before anything is removed, and what was found is checked again then.
"""

from thawline.cleaning._look import Failure, Item, Kind
from thawline.cleaning._survey import Survey, parse_age, parse_kinds, remove, survey

__all__ = ["Failure", "Item", "Kind", "Survey", "parse_age", "parse_kinds", "remove", "survey"]
