"""CPU, memory, disk, network and GPU usage, from MLflow's own monitors and with MLflow's metric names.

MLflow's ``SystemMetricsMonitor`` sends values itself, stops with a warning on the terminal at the first failure, and
requests the run from the server at every sample. Here its monitors only measure; the tracker's queue sends.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["SystemSampler"]

_log = logging.getLogger(__name__)


class SystemSampler:
    """Measures in its own thread and passes on ``(metrics, step)``; the step is the seconds since ``started_at``.

    The interval grows from two seconds, so that a trial of half a minute has a curve, to 30 seconds, so that a trial of
    a day has three thousand points instead of forty thousand.
    """

    def __init__(self, record: Callable[[Mapping[str, float], int], None], *, started_at: float) -> None:
        self._record = record
        self._started_at = started_at
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="thawline-system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop measuring; nothing is recorded after this returns. Does not wait for a hanging driver."""
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        try:
            monitors = _monitors()
        except Exception:  # measuring is optional
            _log.debug("system metrics are not available", exc_info=True)
            return
        begun = time.monotonic()
        while not self._stop.wait(min(30.0, max(2.0, (time.monotonic() - begun) / 60))):
            metrics: dict[str, float] = {}
            for monitor in monitors:
                try:
                    monitor.collect_metrics()
                    metrics |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
                    monitor.clear_metrics()
                except Exception:  # a driver with intermittent failures
                    _log.debug("a system monitor failed", exc_info=True)
            if metrics and not self._stop.is_set():
                self._record(metrics, int(time.time() - self._started_at))


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    kinds: tuple[Any, ...] = (CPUMonitor, DiskMonitor, NetworkMonitor)
    monitors = [kind() for kind in kinds]
    try:
        gpu: Any = GPUMonitor
        monitors.append(gpu())  # raises without an NVIDIA GPU or the package nvidia-ml-py
    except Exception:
        _log.debug("no GPU metrics", exc_info=True)
    return monitors
