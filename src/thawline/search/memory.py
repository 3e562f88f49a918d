"""Handle out-of-memory errors in a trial: retry with smaller parts of a batch while that is possible."""

from collections.abc import Callable
from dataclasses import replace

from thawline import backbones
from thawline.search.events import Note, emit
from thawline.search.spec import TrialSpec
from thawline.tracking import Tracker
from thawline.training import FitResult, is_out_of_memory
from thawline.training.ranks import Ranks
from thawline.training.runtime import release_memory

__all__ = ["in_smaller_parts", "reason_of", "with_less_memory"]


def with_less_memory(
    attempt: Callable[..., tuple[backbones.Backbone, FitResult]],
    tracker: Tracker,
    spec: TrialSpec,
    ranks: Ranks,
) -> tuple[backbones.Backbone, FitResult]:
    """Train; whenever memory runs out, retry with twice as many parts per batch, accumulating gradients.

    The smallest part is two images, which a trained batch norm requires. With several processes, the driver retries all
    of them.
    """
    parts = spec.accumulation
    if parts > 1:
        _say_parts(tracker, parts)
    while True:
        try:
            return attempt(accumulation=parts)
        except Exception as error:
            if not is_out_of_memory(error) or ranks.count > 1 or 4 * parts > spec.config.train.batch_size:
                raise
        release_memory()
        parts *= 2
        _say_parts(tracker, parts)


def _say_parts(tracker: Tracker, parts: int) -> None:
    said = f"retried with 1/{parts} of a batch at a time, accumulating gradients over {parts} parts"
    tracker.log_tags({"thawline.out_of_memory": said})


def in_smaller_parts(spec: TrialSpec) -> TrialSpec | None:
    """The spec of a trial on several devices with parts of half the size; ``None`` if they already have two images."""
    train, parts = spec.config.train, 2 * spec.accumulation
    if 2 * parts * train.devices_per_trial > train.batch_size:
        return None
    said = f"trial-{spec.number:02d}: out of memory; retrying with batches in {parts} parts on each device"
    emit(Note(said, "warning"))
    return replace(spec, accumulation=parts)


def reason_of(error: Exception) -> str:
    """The reason why a trial failed."""
    if is_out_of_memory(error):
        return (
            "out of memory, even with two images at a time. Lower --image-size, use a smaller backbone, "
            "or raise the lower end of space.freeze_depth."
        )
    return f"{type(error).__name__}: {error}"
