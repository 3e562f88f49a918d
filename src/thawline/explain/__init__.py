"""Explanations of predictions: which parts of an image are evidence for a class, by captum.

``explain_files`` is ``thawline explain``; ``explained_pictures`` does the same for a network in memory; ``Explainer``
computes the heat maps, and ``overlay`` colours them. See ``docs/explanations.md``.
"""

from thawline.explain._attribution import Explainer, Method
from thawline.explain._drawing import explained_pictures, overlay
from thawline.explain._files import explain_files

__all__ = ["Explainer", "Method", "explain_files", "explained_pictures", "overlay"]
