"""A challenger beside the champion: it computes a share of the requests, and nobody is answered with what it says."""

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
    """The share of requests in ``challenger`` (all of them) or ``challenger:0.1``.

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
            f"--shadow is {CHALLENGER} or {CHALLENGER}:SHARE with a share above 0 and up to 1, such as "
            f"{CHALLENGER}:0.1, but got {text!r}."
        )
    return share


class Shadow:
    """Follows the alias ``challenger``, and compares it with the champion on what clients send.

    One request is compared at a time, in a thread of its own; those that come meanwhile are counted as skipped, so that
    a slow challenger holds neither memory nor clients. It does take cores from the champion.

    Args:
        registry: where to look.
        name: of the model.
        share: of the requests that are compared, above 0 and up to 1.
        poll_seconds: how often the registry is asked.
        device: see :class:`ServedModel`.
        engine: that computes the challenger, see :func:`thawline.engines.choose`.
        max_batch: items per forward pass, at most.
        metrics: told of every comparison.
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
        """The challenger; ``None`` where there is none, or where it cannot be loaded."""
        self._refused: tuple[str, float] | None = None
        self._due = 0.0
        self._comparing = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._stop = threading.Event()
        self._following = threading.Thread(target=self._follow, name="follow-challenger", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._following.start()

    def stop(self) -> None:
        """Follow and compare no more."""
        self._stop.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def offer(self, items: Sequence[bytes | str], labels: Sequence[str]) -> None:
        """Have a request compared, if it is its turn and there is a challenger that is not at work.

        Args:
            items: of the request.
            labels: what the champion answered for each.
        """
        self._due += self._share
        if self._due < 1:
            return
        self._due -= 1
        model = self.model
        if model is None or self._stop.is_set():
            return
        if not self._comparing.acquire(blocking=False):
            self._metrics.shadow_skipped(model.version)
            return
        try:
            self._thread.submit(self._compare, model, items, labels)
        except RuntimeError:  # stopped since
            self._comparing.release()

    def look(self) -> None:
        """Ask the registry once, and load the challenger if it is another one."""
        try:
            version = self._registry.challenger(self._name)
        except Exception:  # the follower of the champion says so; what is loaded stays
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
        except Exception as error:  # whatever a package does when it is loaded
            _log.warning("the challenger, %s version %s, is not compared: %s", self._name, version, error)
            self._refused = (version, time.monotonic())
        else:
            _log.info("%s version %s is compared with the champion", self._name, version)

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
        except Exception as error:  # it is a challenger: nobody is answered with it
            _log.warning("the challenger, %s version %s, failed: %s", self._name, model.version, error)
            self._metrics.shadow_failed(model.version)
        finally:
            self._comparing.release()
