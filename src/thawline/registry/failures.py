"""Conversion of a registry's exceptions to Thawline's errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from thawline.exceptions import RegistryError
from thawline.tracking import first_line

__all__ = ["failures_named"]


@contextmanager
def failures_named(what: str = "The model registry failed") -> Iterator[None]:
    """Convert any exception in the block to a :class:`RegistryError` of one line."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:
        raise RegistryError(f"{what}: {type(error).__name__}: {first_line(error)}") from error
