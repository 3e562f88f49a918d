"""Export of a registered model for other libraries: files verified against the model, and a model card.

``export_model`` is ``thawline export``; a module for each format writes the files and reads them back.
"""

from thawline.exporting._exporting import ExportSummary, export_model
from thawline.exporting._formats import Format

__all__ = ["ExportSummary", "Format", "export_model"]
