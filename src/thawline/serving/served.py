"""A loaded version as the server uses it: decoding or tokenizing apart from the forward pass."""

from typing import Any

from thawline.data import DataKind
from thawline.registry import Answer, PackagedModel

__all__ = ["ServedModel"]


class ServedModel:
    """A version that has answered its own input example.

    Args:
        packaged: from the registry.
        device: ``auto`` for a GPU if there is one, or any of PyTorch's.

    Raises:
        RegistryError: if it does not answer.
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
        """What computes the network."""
        self.engines = packaged.engines
        """All that were tried."""
        self.tested = packaged.tested
        """Its accuracy, and on what; ``None`` if it has not been judged."""

    def prepare(self, item: bytes | str) -> Any:
        """What the network is shown of one encoded image, uint8 ``[S, S, 3]``, or of one text, int32 tokens ``[T]``.

        Raises:
            ValueError: if it cannot be read, with the reason for people.
        """
        return self._servable.prepare(item)

    def answers(self, prepared: list[Any]) -> list[Answer]:
        """One forward pass of what :meth:`prepare` gave, ``[N]``."""
        return self._servable.answers(prepared)

    def probabilities(self, prepared: list[Any]) -> list[list[float]]:
        """The probabilities alone, ``[N][num_classes]``."""
        return self._servable.probabilities(prepared)

    def items_in(self, body: bytes, content_type: str) -> list[bytes | str]:
        """The images or texts of a request in MLflow's scoring protocol; ``ValueError`` says what is wrong with it."""
        return self._packaged.items_in(body, content_type)

    def row(self, answer: Answer) -> dict[str, Any]:
        """One item's answer as the package itself gives it: ``class``, ``probability``, ``probabilities``, and
        ``prediction_set`` and ``unknown`` if it has what they need."""
        return self._servable.row(answer)

    def prediction_set(self, probabilities: list[float]) -> list[str] | None:
        """The classes that it may be of; ``None`` where the version has no prediction sets."""
        return self._servable.prediction_set(probabilities)

    def unknown(self, answer: Answer) -> bool | None:
        """Whether it seems to be of none of the classes; ``None`` where the version cannot tell."""
        return self._servable.unknown(answer)
