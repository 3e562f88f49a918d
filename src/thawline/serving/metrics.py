"""Counts and times for Prometheus."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["Metrics"]

_PATHS = {
    "/predict",
    "/invocations",
    "/health",
    "/ping",
    "/ready",
    "/version",
    "/metrics",
    "/",
    "/docs",
    "/openapi.json",
}
"""Paths with a label of their own; labels for every path that a scanner tries would grow without bound."""


class Metrics:
    """Metrics of one process; with several processes, ``/metrics`` of each shows the sum over all.

    Several processes share the folder ``PROMETHEUS_MULTIPROC_DIR``, set before ``prometheus_client`` is imported.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        seconds = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
        self._requests = Counter("thawline_requests", "Requests answered.", ["path", "status"], registry=self._registry)
        self._seconds = Histogram(
            "thawline_request_seconds", "Time from request to response.", ["path"], buckets=seconds,
            registry=self._registry,
        )  # fmt: skip
        self._batch_items = Histogram(
            "thawline_batch_images", "Images or texts that shared a forward pass.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=self._registry,
        )  # fmt: skip
        self._forward = Histogram(
            "thawline_forward_seconds", "Time of one forward pass.", buckets=seconds, registry=self._registry
        )
        self._refused = Counter(
            "thawline_refused", "Requests refused because the queue was full.", registry=self._registry
        )
        self._left = Counter(
            "thawline_cancelled", "Requests whose client left before the response.", registry=self._registry
        )
        self._inside = Gauge(
            "thawline_images_inside", "Images or texts now being decoded, queued or computed.", registry=self._registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self._shadow_items = Counter(
            "thawline_shadow_items", "Images or texts that the challenger classified too, by agreement with the "
            "champion.", ["version", "agrees"], registry=self._registry,
        )  # fmt: skip
        self._shadow_seconds = Histogram(
            "thawline_shadow_seconds", "Time of one request at the challenger: decoding and forward passes in "
            "sequence.", ["version"], buckets=seconds, registry=self._registry,
        )  # fmt: skip
        self._shadow_others = Counter(
            "thawline_shadow_uncompared", "Requests chosen for the challenger that it did not compute.",
            ["version", "reason"], registry=self._registry,
        )  # fmt: skip
        self._version = Gauge(
            "thawline_model_version", "Version of the model that is served.", registry=self._registry,
            multiprocess_mode="livemostrecent",
        )  # fmt: skip

    @contextmanager
    def request(self, path: str) -> Iterator[Callable[[int], None]]:
        """Time a request; call the yielded function with its status."""
        began, path = time.perf_counter(), _label(path)
        status = 499  # the client left before the response

        def finished(value: int) -> None:
            nonlocal status
            status = value

        try:
            yield finished
        finally:
            self._requests.labels(path, str(status)).inc()
            self._seconds.labels(path).observe(time.perf_counter() - began)

    def batch(self, items: int, seconds: float) -> None:
        """Count a forward pass."""
        self._batch_items.observe(items)
        self._forward.observe(seconds)

    @contextmanager
    def inside(self, items: int) -> Iterator[None]:
        """Count images or texts while they are in the server."""
        self._inside.inc(items)
        try:
            yield
        finally:
            self._inside.dec(items)

    def refuse(self) -> None:
        """Count a request rejected because the queue was full."""
        self._refused.inc()

    def leave(self) -> None:
        """Count a request whose client has left."""
        self._left.inc()

    def shadow_compared(self, version: str, items: int, agreeing: int, seconds: float) -> None:
        """Count a request that the challenger classified too."""
        self._shadow_items.labels(version, "true").inc(agreeing)
        self._shadow_items.labels(version, "false").inc(items - agreeing)
        self._shadow_seconds.labels(version).observe(seconds)

    def shadow_skipped(self, version: str) -> None:
        """Count a request that was not compared because the challenger was busy."""
        self._shadow_others.labels(version, "busy").inc()

    def shadow_failed(self, version: str) -> None:
        """Count a request on which the challenger failed."""
        self._shadow_others.labels(version, "failed").inc()

    def exposition(self, version: str) -> tuple[bytes, int, dict[str, str]]:
        """Body, status and headers of the response to Prometheus."""
        self._version.set(int(version))
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), 200, {"Content-Type": CONTENT_TYPE_LATEST}


def _label(path: str) -> str:
    if path.startswith("/v2/models/") and path.endswith("/infer"):
        return "/v2/models/infer"
    return path if path in _PATHS else "other"
