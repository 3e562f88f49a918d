"""For extensions of Thawline: the contracts of trackers and backbones, and a tracker in memory."""

from typing import TYPE_CHECKING

from thawline.testing.trackers import MemoryTracker, TrackerContract

if TYPE_CHECKING:
    from thawline.testing.backbones import BackboneContract as BackboneContract

__all__ = ["BackboneContract", "MemoryTracker", "TrackerContract"]


def __getattr__(name: str) -> object:
    """Load ``BackboneContract`` lazily: its module imports torch, which a tracker in memory does not need."""
    if name == "BackboneContract":
        from thawline.testing.backbones import BackboneContract

        return BackboneContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
