"""A registered model behind HTTP, following the registry's alias."""

from thawline.serving.server import GRACE_SECONDS, ServeOptions, serve

__all__ = ["GRACE_SECONDS", "ServeOptions", "serve"]
