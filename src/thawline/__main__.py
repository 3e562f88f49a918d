"""The command ``thawline``, and ``python -m thawline``."""

from thawline import stopping
from thawline.farewell import leave_at_once, say_stopped

__all__ = ["main"]


def main() -> None:
    """Handle Ctrl-C before the command line is loaded, which takes a moment."""
    stopping.listen(leave_at_once)
    try:
        from thawline.cli import main as run
    except KeyboardInterrupt:
        say_stopped()
        stopping.leave()
    try:
        run()
    except SystemExit as ended:
        stopping.leave(ended.code if isinstance(ended.code, int) else int(ended.code is not None))


if __name__ == "__main__":
    main()
