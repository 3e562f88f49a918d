"""What both kinds of parts of a backbone have in common."""

from abc import ABC, abstractmethod

from torch import nn

__all__ = ["Section"]


class Section(nn.Module, ABC):
    """A part of a backbone between two borders of its layer groups; see :func:`thawline.backbones.section`.

    It is called with what the first border passes on, and gives what the second does.
    """

    @abstractmethod
    def probe(self, border: int, probe: nn.Module) -> None:
        """Pass what crosses a border within the section through ``probe``, which may inspect or change it.

        Args:
            border: number of layer groups before it. One more than there are groups stands for the logits. Where the
                section begins or ends, nothing is probed, unless it ends with the logits.
            probe: takes and gives a tensor of the shape that crosses there. A border has one at most.
        """
