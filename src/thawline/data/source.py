"""Determine whether a data path is a folder of images or a table of texts, and read it."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from thawline.data._image_tables import names_images
from thawline.data._sources import tables_in
from thawline.data._unpacking import unpacked
from thawline.data.contract import DataKind, Manifest
from thawline.data.corrections import check_corrections
from thawline.data.folder import check_folder, scan_folder
from thawline.data.text import is_table, scan_table

if TYPE_CHECKING:  # decoding processes import this package and do not need pydantic
    from thawline.config import DataConfig

__all__ = ["check_data", "data_kind", "scan"]


def data_kind(config: "DataConfig") -> DataKind:
    """``texts`` for a table of texts, or a folder of such tables; else ``images``. Reads the first rows of tables.

    Raises:
        DataError: if the path does not exist or is not a table, or the folder cannot be listed.
    """
    config, _ = unpacked(config)
    root = config.path.expanduser().absolute()
    if not is_table(root):
        return "images"
    table = next(iter(tables_in(root).values()))[0] if root.is_dir() else root
    return "images" if names_images(table, config) else "texts"


def scan(config: "DataConfig", *, on_progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Find the classes, read every image or text once, and build the manifest.

    - Unreadable items are reported (kind ``bad``) and skipped, never replaced.
    - The same content under two classes is a contradiction: all its copies are skipped (kind ``conflict``).
    - The same content, or one group, in two *given* splits is a leak: test has priority over validation over train, and
      the items of the lower one are skipped (kind ``leak``).
    - Items in ``data.exclude`` are dropped and those in ``data.relabel`` change their class, before anything else.
    - Copies within one class are kept (kind ``duplicate``), always in the same split.

    Images are the same if their files are equal; texts if they are equal after
    :func:`thawline.data.tokenizer.normalized`.

    Args:
        config: the folder or table, the fractions, the groups, the columns and the limits.
        on_progress: called with (files read, total) while reading.

    Raises:
        DataError: if there is nothing to train on, too much is unreadable, or a split or a class would be empty.
    """
    config, note = unpacked(config)
    read = scan_table if data_kind(config) == "texts" else scan_folder
    manifest = read(config, on_progress=on_progress)
    return replace(manifest, layout=f"{note}; {manifest.layout}") if note else manifest


def check_data(config: "DataConfig") -> None:
    """Refuse unsuitable data: a folder by listing it, a table by reading it (100,000 texts in some 3 s).

    Raises:
        DataError: as :func:`scan` for the layout.
    """
    check_corrections(config)
    config, _ = unpacked(config)
    if data_kind(config) == "texts":
        scan_table(config)
    else:
        check_folder(config)
