"""A loaded version for the server, with decoding or tokenizing separate from the forward pass."""

from typing import Any

from thawline.data import DataKind
from thawline.registry import Answer, PackagedModel

__all__ = ["ServedModel"]


class ServedModel:
    """A version that has passed the check on its input example.

    Args:
        packaged: from the registry.
        device: ``auto`` for a GPU if there is one, or any PyTorch device.

    Raises:
        RegistryError: if it fails the check.
    """

    def __init__(self, packaged: PackagedModel, device: str = "auto") -> None:
        self._packaged = packaged
        self._servable = packaged.servable
        if device != "auto":
            self._servable.to(device)
        packaged.check()
        self.name = packaged.name.name
        self.version = str(packaged.name.version)
        self.kind: DataKind = packaged.kind
        self.classes: tuple[str, ...] = tuple(self._servable.classes)
        self.device = str(self._servable.device)
        self.engine = packaged.engine
        """The engine that computes the network."""
        self.engines = packaged.engines
        """All engines that were tried."""
        self.tested = packaged.tested
        """Its accuracy, and the data it was measured on; ``None`` if it was not measured."""

    def prepare(self, item: bytes | str) -> Any:
        """The network's input for one encoded image, uint8 ``[S, S, 3]``, or one text, int32 tokens ``[T]``.

        Raises:
            ValueError: if it cannot be read, with a readable reason.
        """
        return self._servable.prepare(item)

    def answers(self, prepared: list[Any]) -> list[Answer]:
        """Answers for ``[N]`` results of :meth:`prepare`, in one forward pass."""
        return self._servable.answers(prepared)

    def probabilities(self, prepared: list[Any]) -> list[list[float]]:
        """Only the probabilities, ``[N][num_classes]``."""
        return self._servable.probabilities(prepared)

    def items_in(self, body: bytes, content_type: str) -> list[bytes | str]:
        """The images or texts of a request in MLflow's scoring protocol; ``ValueError`` describes any problem."""
        return self._packaged.items_in(body, content_type)

    def row(self, answer: Answer) -> dict[str, Any]:
        """One item's answer in the package's own format: ``class``, ``probability``, ``probabilities``, and
        ``prediction_set`` and ``unknown`` if the package supports them."""
        return self._servable.row(answer)

    def prediction_set(self, probabilities: list[float]) -> list[str] | None:
        """The classes that the item may belong to; ``None`` if the version has no prediction sets."""
        return self._servable.prediction_set(probabilities)

    def unknown(self, answer: Answer) -> bool | None:
        """Whether the item seems to belong to none of the classes; ``None`` if the version cannot tell."""
        return self._servable.unknown(answer)
