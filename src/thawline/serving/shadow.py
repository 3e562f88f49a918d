"""A challenger in shadow mode: it classifies a share of the requests, but clients never receive its answers."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from thawline.engines import EngineName
from thawline.exceptions import ServingError
from thawline.registry import CHALLENGER, MlflowRegistry, ModelName
from thawline.serving.follower import RETRY_SECONDS
from thawline.serving.metrics import Metrics
from thawline.serving.served import ServedModel

__all__ = ["Shadow", "parse_shadow"]

_log = logging.getLogger("thawline.serving")


def parse_shadow(text: str) -> float:
    """Parse ``challenger`` (all requests) or ``challenger:0.1`` to the share of requests.

    Raises:
        ServingError: for anything else.
    """
    alias, _, said = text.partition(":")
    try:
        share = float(said) if said else 1.0
    except ValueError:
        share = 0.0
    if alias != CHALLENGER or text.endswith(":") or not 0 < share <= 1:
        raise ServingError(
            f"--shadow must be {CHALLENGER} or {CHALLENGER}:SHARE with a share above 0 and up to 1, such as "
            f"{CHALLENGER}:0.1, but got {text!r}."
        )
    return share


class Shadow:
    """Follows the alias ``challenger``, and compares it with the champion on the requests of clients.

    One request is compared at a time, in a separate thread; requests that arrive meanwhile are counted as skipped, so
    that a slow challenger occupies no memory and delays no client. It does compete with the champion for CPU cores.

    Args:
        registry: registry of the model.
        name: name of the model.
        share: share of the requests to compare, above 0 and up to 1.
        poll_seconds: interval between queries of the registry.
        device: see :class:`ServedModel`.
        engine: for the challenger, see :func:`thawline.engines.choose`.
        max_batch: maximum number of items per forward pass.
        metrics: count every comparison.
    """

    def __init__(
        self,
        registry: MlflowRegistry,
        name: str,
        *,
        share: float,
        poll_seconds: float,
        device: str,
        engine: EngineName,
        max_batch: int,
        metrics: Metrics,
    ) -> None:
        self._registry, self._name, self._poll_seconds, self._device = registry, name, poll_seconds, device
        self._engine: EngineName = engine
        self._share, self._max_batch, self._metrics = share, max_batch, metrics
        self.model: ServedModel | None = None
        """The challenger; ``None`` if there is none, or if it cannot be loaded."""
        self._refused: tuple[str, float] | None = None
        self._due = 0.0
        self._comparing = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._stop = threading.Event()
        self._following = threading.Thread(target=self._follow, name="follow-challenger", daemon=True)

    def start(self) -> None:
        """Start following the alias."""
        self._following.start()

    def stop(self) -> None:
        """Stop following and comparing."""
        self._stop.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def offer(self, items: Sequence[bytes | str], labels: Sequence[str], *, served: str) -> None:
        """Compare a request, if it is its turn and there is an idle challenger.

        Args:
            items: items of the request.
            labels: the champion's answers.
            served: the champion's version. A promoted challenger, which keeps its alias, is not compared with itself.
        """
        self._due += self._share
        if self._due < 1:
            return
        self._due -= 1
        model = self.model
        if model is None or model.version == served or self._stop.is_set():
            return
        if not self._comparing.acquire(blocking=False):
            self._metrics.shadow_skipped(model.version)
            return
        try:
            self._thread.submit(self._compare, model, items, labels)
        except RuntimeError:  # stopped since
            self._comparing.release()

    def look(self) -> None:
        """Query the registry once, and load the challenger if it has changed."""
        try:
            version = self._registry.challenger(self._name)
        except Exception:  # the champion's follower reports it; the loaded challenger stays
            return
        if version is None:
            self.model = None
        elif (self.model is None or version != self.model.version) and not self._refused_lately(version):
            self._load(version)

    def _follow(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self._poll_seconds)

    def _load(self, version: str) -> None:
        self.model = None
        name = ModelName(self._name, None, version)
        try:
            model = self._registry.load(name, device=self._device, engine=self._engine, lasting=True)
            self.model = ServedModel(model, self._device)
        except Exception as error:  # loading a package may raise anything
            _log.warning("the challenger %s version %s is not compared: %s", self._name, version, error)
            self._refused = (version, time.monotonic())
        else:
            _log.info("comparing the challenger %s version %s with the champion", self._name, version)

    def _refused_lately(self, version: str) -> bool:
        return (
            self._refused is not None
            and self._refused[0] == version
            and time.monotonic() - self._refused[1] < RETRY_SECONDS
        )

    def _compare(self, model: ServedModel, items: Sequence[bytes | str], labels: Sequence[str]) -> None:
        try:
            began = time.perf_counter()
            theirs: list[str] = []
            for start in range(0, len(items), self._max_batch):
                prepared = [model.prepare(item) for item in items[start : start + self._max_batch]]
                theirs += [model.row(each)["class"] for each in model.answers(prepared)]
            seconds = time.perf_counter() - began
            agreeing = sum(ours == other for ours, other in zip(labels, theirs, strict=True))
            self._metrics.shadow_compared(model.version, len(items), agreeing, seconds)
        except Exception as error:  # no client receives the challenger's answers
            _log.warning("the challenger %s version %s failed: %s", self._name, model.version, error)
            self._metrics.shadow_failed(model.version)
        finally:
            self._comparing.release()
