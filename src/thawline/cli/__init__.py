"""The command line: verbs only. Each parses, calls and prints; heavy libraries are imported lazily."""

# isort: off  in this order `--help` lists them
from thawline.cli import backbones, data, home, models, studies
from thawline.cli._app import app, main

# isort: on

__all__ = ["app", "backbones", "data", "home", "main", "models", "studies"]
