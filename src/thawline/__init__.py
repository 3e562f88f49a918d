"""Thawline finds how deep to freeze a pretrained backbone, and how fast to train the rest.

``import thawline`` is light: it loads neither torch nor MLflow, Optuna or Prefect.
"""

from importlib.metadata import version

__version__ = version("thawline")
__all__ = ["__version__"]
