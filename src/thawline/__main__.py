"""The command ``thawline``, and ``python -m thawline``."""

from thawline import stopping

__all__ = ["main"]


def main() -> None:
    """Hear of Ctrl-C before anything else is loaded, which takes a moment."""
    stopping.listen(_leave_at_once)
    try:
        from thawline.cli import main as run
    except KeyboardInterrupt:
        from thawline.farewell import say_stopped

        say_stopped()
        stopping.leave()
    try:
        run()
    except SystemExit as ended:
        stopping.leave(ended.code if isinstance(ended.code, int) else int(ended.code is not None))


def _leave_at_once() -> None:
    from thawline.farewell import leave_at_once

    leave_at_once()


if __name__ == "__main__":
    main()
