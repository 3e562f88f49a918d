"""A registered model behind HTTP, following the registry's alias."""

from thawline.serving.server import ServeOptions, serve

__all__ = ["ServeOptions", "serve"]
