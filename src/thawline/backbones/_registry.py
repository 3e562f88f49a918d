"""Find a backbone's library by its name, in one table; each library is a module with the same functions."""

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast

from thawline.exceptions import BackboneError

if TYPE_CHECKING:
    from thawline.backbones._base import Backbone, BackboneInfo, Preprocessing, TextPreprocessing

__all__ = ["GROUP", "LIBRARIES", "Library", "Networks", "libraries", "library_of", "refuse_length"]

GROUP = "thawline.backbones"
"""Group of entry points for libraries of other packages: the prefix of their backbones, and a
:class:`thawline.backbones.BackboneLibrary`."""


class Networks(Protocol):
    """The interface of a library's module; names are full names, such as ``timm/resnet18``."""

    def list_names(self) -> list[str]:
        """Names of all its networks, in order."""

    def inspect(self, name: str) -> "BackboneInfo":
        """See :func:`thawline.backbones.describe`; inspects the network itself, without pretrained weights."""

    def preprocessing_of(
        self, name: str, *, weights: str, image_size: int | None, max_length: int | None
    ) -> "Preprocessing | TextPreprocessing":
        """See :func:`thawline.backbones.preprocessing_of`."""

    def check_weights(self, name: str, weights: str) -> None:
        """See :func:`thawline.backbones.check_weights`."""

    def create(
        self,
        name: str,
        *,
        num_classes: int,
        weights: str,
        image_size: int | None,
        max_length: int | None,
        seed: int,
    ) -> "Backbone":
        """See :func:`thawline.backbones.create`."""


@dataclass(frozen=True)
class Library:
    """A library of pretrained networks."""

    package: str
    """Its name for installation and import."""
    prefix: str
    """Prefix of the names of its backbones."""
    module: str
    """The module of Thawline that provides its :class:`Networks`."""
    extra: str | None
    """The extra of Thawline that installs it; ``None`` if it is always installed."""
    is_listed: bool = True
    """Whether its networks can be listed, unlike those of a hub or in folders."""

    def is_installed(self) -> bool:
        """Whether it is installed; does not import it."""
        return importlib.util.find_spec(self.package) is not None

    def version(self) -> str:
        """The installed version without a build's local part (+cpu, +cu132), which does not affect networks."""
        return importlib.metadata.version(self.package).partition("+")[0]

    def check_installed(self) -> None:
        """Check that it is installed, without importing it.

        Raises:
            BackboneError: if it is not installed.
        """
        if not self.is_installed():
            raise BackboneError(
                f"A backbone {self.prefix}… needs the package {self.package}: pip install 'thawline[{self.extra}]'."
            )

    def networks(self) -> Networks:
        """Its networks; importing the library may take seconds.

        Raises:
            BackboneError: if it is not installed.
        """
        self.check_installed()
        return cast(Networks, importlib.import_module(self.module))


LIBRARIES = (
    Library("torchvision", "", "thawline.backbones._torchvision", extra=None),
    Library("timm", "timm/", "thawline.backbones._timm", extra="timm"),
    Library("transformers", "hf:", "thawline.backbones._huggingface", extra="huggingface", is_listed=False),
)


@dataclass(frozen=True)
class _Plugin(Library):
    """The library of another package, from an entry point; it is always installed."""

    def is_installed(self) -> bool:
        return True

    def networks(self) -> Networks:
        from thawline.backbones._plugins import PluginNetworks

        (point,) = importlib.metadata.entry_points(group=GROUP, name=self.prefix.removesuffix("/"))
        try:
            return PluginNetworks(point.load(), point)
        except Exception as error:  # importing another package can raise anything
            raise BackboneError(
                f"The backbones {self.prefix}… of the package {self.package} cannot be imported: "
                f"{type(error).__name__}: {error}. Repair the package, or uninstall it."
            ) from error


@cache
def libraries() -> tuple[Library, ...]:
    """Thawline's own libraries and those of other packages, which are not imported.

    Raises:
        BackboneError: if two have the same prefix.
    """
    found = list(LIBRARIES)
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name):
        package = point.dist.name if point.dist else point.module
        prefix = f"{point.name}/"
        if not point.name.isidentifier() or prefix in {*(library.prefix for library in found), "torchvision/"}:
            raise BackboneError(
                f"The name of an entry point in the group {GROUP} must be a Python identifier that no other library "
                f"has, but got {point.name!r} of the package {package}. Uninstall that package, or have it renamed."
            )
        found.append(_Plugin(package, prefix, point.value, extra=None))
    return tuple(found)


def library_of(name: str) -> Library:
    """The library of a name, whether it has such a backbone or not."""
    return max((library for library in libraries() if name.startswith(library.prefix)), key=lambda one: len(one.prefix))


def refuse_length(name: str, max_length: int | None) -> None:
    """Refuse ``max_length`` for image networks.

    Raises:
        BackboneError: if a number of tokens is given.
    """
    if max_length is not None:
        raise BackboneError(f"{name!r} takes images, so max_length does not apply, but got max_length={max_length}.")
