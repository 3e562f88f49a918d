"""``python -m thawline`` is the same as the command ``thawline``."""

from thawline.cli import main

main()
