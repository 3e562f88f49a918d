"""For those who extend Thawline: a tracker that keeps everything in memory, and what every tracker must hold."""

from thawline.testing.trackers import MemoryTracker, TrackerContract

__all__ = ["MemoryTracker", "TrackerContract"]
