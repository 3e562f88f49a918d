"""A stand-in for the compiler of ``torch.compile``."""

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Compiler"]


class Compiler:
    """A backend of ``torch.compile`` that needs no other compiler, and counts."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, graph: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs += 1

        def run(*given: Any) -> Any:
            self.runs += 1
            return graph(*given)

        return run
