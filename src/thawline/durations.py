"""Format durations."""

__all__ = ["clock", "roughly"]


def roughly(seconds: float) -> str:
    """A rounded duration for estimates and limits: ``45 s``, ``12 min`` or ``1.5 h``; at least a second."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def clock(seconds: float) -> str:
    """An elapsed time for display: ``45 s``, ``12 min 3 s`` or ``1 h 30 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
