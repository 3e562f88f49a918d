"""What a data path is, a folder of images or a table of texts, and reading it."""

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

if TYPE_CHECKING:  # the processes that decode import this package and need no pydantic
    from thawline.config import DataConfig

__all__ = ["check_data", "data_kind", "scan"]


def data_kind(config: "DataConfig") -> DataKind:
    """``texts`` for a table of them, or a folder of such tables; else ``images``. Of tables the first rows are read.

    Raises:
        DataError: if the path does not exist or is a file that is no table, or the folder cannot be listed.
    """
    config, _ = unpacked(config)
    root = config.path.expanduser().absolute()
    if not is_table(root):
        return "images"
    table = next(iter(tables_in(root).values()))[0] if root.is_dir() else root
    return "images" if names_images(table, config) else "texts"


def scan(config: "DataConfig", *, on_progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Find the classes, read every image or text once, and decide what is trained on.

    - What cannot be read is named (kind ``bad``) and left out, never replaced.
    - The same content under two classes contradicts itself: all its copies are left out (kind ``conflict``).
    - The same content, or one group, in two *given* splits is a leak: test wins over validation over train, and what
      lies in the lesser one is left out (kind ``leak``).
    - What ``data.exclude`` and ``data.relabel`` name is left out, or under another class, before anything else.
    - Copies within one class are kept (kind ``duplicate``): they always lie on one side.

    Images are the same if their files are; texts if they are alike after :func:`thawline.data.tokenizer.normalized`.

    Args:
        config: the folder or table, the fractions, the groups, the columns and the limits.
        on_progress: called with (files read, files in all) while reading.

    Raises:
        DataError: if there is nothing to train on, too much is unreadable, or a split or a class would be empty.
    """
    config, note = unpacked(config)
    read = scan_table if data_kind(config) == "texts" else scan_folder
    manifest = read(config, on_progress=on_progress)
    return replace(manifest, layout=f"{note}; {manifest.layout}") if note else manifest


def check_data(config: "DataConfig") -> None:
    """Refuse data that cannot be trained on: a folder by listing it, a table by reading it (100,000 texts in some 3 s).

    Raises:
        DataError: as :func:`scan` does for what lies where.
    """
    check_corrections(config)
    config, _ = unpacked(config)
    if data_kind(config) == "texts":
        scan_table(config)
    else:
        check_folder(config)
