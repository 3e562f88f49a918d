"""Follow a registry alias: load the new version while serving the old one, test it, and swap."""

import logging
import threading
import time

from thawline.engines import EngineName
from thawline.exceptions import ThawlineError
from thawline.registry import MlflowRegistry, ModelName
from thawline.serving.served import ServedModel

__all__ = ["RETRY_SECONDS", "Follower"]

_log = logging.getLogger("thawline.serving")

RETRY_SECONDS = 60.0
"""Time before a refused version is tried again: the artifact store may have been unreachable."""


class Follower:
    """Keeps ``model`` at the version that the alias points to.

    Args:
        registry: registry of the model.
        name: with an alias, which is followed, or with a version, which stays.
        poll_seconds: interval between queries of the registry.
        device: see :class:`ServedModel`.
        engine: for every version, see :func:`thawline.engines.choose`.

    Raises:
        RegistryError: from :meth:`load_first`, if there is nothing to serve.
    """

    def __init__(
        self,
        registry: MlflowRegistry,
        name: ModelName,
        *,
        poll_seconds: float,
        device: str = "auto",
        engine: EngineName = "auto",
    ) -> None:
        self._registry, self._name, self._poll_seconds = registry, name, poll_seconds
        self._device, self._engine = device, engine
        self._model: ServedModel | None = None
        self.refused: dict[str, str] | None = None
        """Version and reason, if the alias points to a version that cannot be served."""
        self.registry_error: str | None = None
        """Error of the last query of the registry, if it failed."""
        self._refused_at = 0.0
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)

    @property
    def model(self) -> ServedModel:
        """The version that is served now."""
        assert self._model is not None  # noqa: S101  load_first() comes first
        return self._model

    def load_first(self) -> None:
        """Load the version that the name points to now."""
        self._model = self._load(self._registry.resolve(self._name))

    def start(self) -> None:
        """Start following the alias; does nothing for a model named by its version."""
        if self._name.alias is not None:
            self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def look(self) -> None:
        """Query the registry now instead of at the next poll."""
        self._wake.set()

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self._poll_seconds)
            self._wake.clear()
            if not self._stop.is_set():
                self._look()

    def _look(self) -> None:
        try:
            version = self._registry.resolve(self._name)
        except Exception as error:
            if self.registry_error is None:
                _log.warning("still serving %s: the registry does not respond: %s", self._served(), error)
            self.registry_error = str(error)
            return
        if self.registry_error is not None:
            _log.info("the registry responds again")
            self.registry_error = None
        if version == self.model.version:
            self.refused = None
        elif not self._refused_lately(version):
            self._try(version)

    def _try(self, version: str) -> None:
        try:
            model = self._load(version)
        except Exception as error:  # loading a package may raise anything; the old one stays
            reason = str(error) if isinstance(error, ThawlineError) else f"{type(error).__name__}: {error}"
            _log.warning("still serving %s: version %s was refused: %s", self._served(), version, reason)
            self.refused, self._refused_at = {"version": version, "reason": reason}, time.monotonic()
            return
        self.refused = None
        before = self._served()
        self._model = model  # atomic: each request sees either the old or the new one
        _log.info("serving %s instead of %s, by %s", self._served(), before, model.engine)

    def _load(self, version: str) -> ServedModel:
        name = ModelName(self._name.name, None, version)
        model = self._registry.load(name, device=self._device, engine=self._engine, lasting=True)
        return ServedModel(model, self._device)

    def _refused_lately(self, version: str) -> bool:
        refused = self.refused
        return (
            refused is not None
            and refused["version"] == version
            and time.monotonic() - self._refused_at < RETRY_SECONDS
        )

    def _served(self) -> str:
        return f"{self.model.name} version {self.model.version}"
