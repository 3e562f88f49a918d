"""The routes of the HTTP application, one router per noun."""

from thawline.serving.routes import health, inference, invocations, metrics, page, predict, webhook

__all__ = ["health", "inference", "invocations", "metrics", "page", "predict", "webhook"]
