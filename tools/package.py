"""Build the distributions for a package index, whose page of the project shows README outside of the repository.

    python tools/package.py https://example.org/thawline    # or `make package REPOSITORY=…`; writes to dist/

README's relative links become absolute, at the tag of this version, and the project's addresses are added to its
metadata.
The repository itself contains no address: a copy and a mirror are as good as the original.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

__all__ = ["build", "with_absolute_links"]

ROOT = Path(__file__).resolve().parents[1]
_FOLDERS = ("src", "flows")
_FILES = ("pyproject.toml", "README.md", "LICENSE")
_LEFT_OVER = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
_LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!https?://|#|mailto:)([^)\s]+)\)")
_BUILD = """
import sys
from setuptools.build_meta import build_sdist, build_wheel

folder = sys.argv[1]  # setuptools replaces the arguments
build_wheel(folder)
build_sdist(folder)
"""


def build(repository: str, target: Path) -> None:
    """Build wheel and source distribution from a copy of the sources.

    Args:
        repository: address of the repository, such as ``https://example.org/thawline``. Its files must be at
            ``blob/TAG/PATH`` and ``raw/TAG/PATH``, as on the usual hosts.
        target: folder of the distributions, created if missing.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="thawline-package-") as temporary:
        copy = Path(temporary)
        for name in _FOLDERS:
            shutil.copytree(ROOT / name, copy / name, ignore=_LEFT_OVER)
        for name in _FILES:
            shutil.copy(ROOT / name, copy / name)
        settings = copy / "pyproject.toml"
        text = settings.read_text(encoding="utf-8")
        tag = f"v{tomllib.loads(text)['project']['version']}"
        settings.write_text(f"{text}\n{_addresses(repository, tag)}", encoding="utf-8")
        readme = copy / "README.md"
        readme.write_text(with_absolute_links(readme.read_text(encoding="utf-8"), repository, tag), encoding="utf-8")
        subprocess.run(
            [sys.executable, "-c", _BUILD, target.resolve()], cwd=copy, check=True, stdout=subprocess.DEVNULL
        )


def with_absolute_links(text: str, repository: str, tag: str) -> str:
    """Markdown whose relative links, and pictures, are absolute."""

    def absolute(link: re.Match[str]) -> str:
        picture, label, path = link.groups()
        return f"{picture}{label}({repository}/{'raw' if picture else 'blob'}/{tag}/{path})"

    return _LINK.sub(absolute, text)


def _addresses(repository: str, tag: str) -> str:
    addresses = {
        "Repository": repository,
        "Documentation": f"{repository}/tree/{tag}/docs",
        "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    lines = [f'{name} = "{address}"' for name, address in addresses.items()]
    return "\n".join(["[project.urls]", *lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Build into ``dist/``; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", help="address of the repository: https://HOST/PATH")
    repository = parser.parse_args(arguments).repository.rstrip("/")
    if not re.fullmatch(r"https://[\w.-]+(?:/[\w.~-]+)+", repository):
        parser.error(f"the address of the repository must be https://HOST/PATH, but got {repository!r}")
    build(repository, ROOT / "dist")
    print(*sorted(path.name for path in (ROOT / "dist").iterdir()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
