"""Hooks of MkDocs.

``FOLDER/*`` in the navigation stands for all pages of a folder that are not listed elsewhere; sections of empty folders
are omitted. Docstring roles such as ``:func:``, which Markdown does not support, are removed from pages.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

__all__ = ["expanded", "on_files", "on_page_content"]

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):(?=<code>)")


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Called by MkDocs when all files are known, before it builds the navigation."""
    config.nav = expanded(config.nav or [], [file.src_uri for file in files.documentation_pages()])
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Called by MkDocs with the content of each page."""
    return _ROLE.sub("", html)


def expanded(nav: list[Any], pages: list[str]) -> list[Any]:
    """The navigation with ``FOLDER/*`` replaced by the names of pages, in order."""
    listed = set(_listed(nav))
    return _expanded(nav, [page for page in sorted(pages) if page not in listed])


def _expanded(nav: list[Any], rest: list[str]) -> list[Any]:
    result: list[Any] = []
    for item in nav:
        if isinstance(item, dict):
            for title, value in item.items():
                if isinstance(value, str) and not _is_folder(value):
                    result.append({title: value})
                elif below := _expanded(value if isinstance(value, list) else [value], rest):
                    result.append({title: below})
        elif _is_folder(item):
            result += [page for page in rest if page.rpartition("/")[0] == item.removesuffix("/*")]
        else:
            result.append(item)
    return result


def _is_folder(item: str) -> bool:
    return item.endswith("/*")


def _listed(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from _listed(item)
