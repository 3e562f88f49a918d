"""The routes of the HTTP application, a router for each noun."""

from thawline.serving.routes import health, inference, invocations, metrics, page, predict, webhook

__all__ = ["health", "inference", "invocations", "metrics", "page", "predict", "webhook"]
