"""The common base class of both kinds of sections of a backbone."""

from abc import ABC, abstractmethod

from torch import nn

__all__ = ["Section"]


class Section(nn.Module, ABC):
    """A part of a backbone between two borders of its layer groups; see :func:`thawline.backbones.section`.

    It maps the tensor at the first border to the tensor at the second.
    """

    @abstractmethod
    def probe(self, border: int, probe: nn.Module) -> None:
        """Pass the tensor at a border within the section through ``probe``, which may inspect or change it.

        Args:
            border: number of layer groups before it. The number of groups plus one stands for the logits. The section's
                start and end are not probed, unless it ends with the logits.
            probe: maps a tensor to one of the same shape. A border has at most one probe.
        """
