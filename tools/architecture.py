"""Draw Thawline's packages and their imports, for CONTRIBUTING.md, from the actual imports.

python tools/architecture.py            # docs/images/architecture.svg
python tools/architecture.py --check    # exit code 1 if it is out of date

The rows are the layers in `pyproject.toml`, highest first; an arrow leads from a package to one that its modules
import. Transitive arrows are omitted: a package may import everything that its imports import.
"""

import html
import sys
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
_WIDTH, _ROW, _HEIGHT = 1180, 74, 34
_STYLE = (
    "text{font:14px system-ui,sans-serif;fill:#1f2328;text-anchor:middle}rect{fill:#eef4fb;stroke:#0060a0;rx:6}"
    "path{fill:none;stroke:#0060a0;stroke-opacity:.45}"
)


def layers() -> list[list[str]]:
    """The packages and modules of each layer, highest first, without the prefix ``thawline.``."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (ordered,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [[name.strip().removeprefix("thawline.") for name in layer.split("|")] for layer in ordered]


def imports(names: list[str]) -> dict[str, set[str]]:
    """For each name, the others that its modules import directly."""
    graph = grimp.build_graph("thawline", cache_dir=None)
    found: dict[str, set[str]] = {name: set() for name in names}
    for module in graph.modules:
        importer = _part(module)
        if importer in found:
            imported = {_part(other) for other in graph.find_modules_directly_imported_by(module)}
            found[importer] |= imported & found.keys() - {importer}
    return found


def _part(module: str) -> str:
    return module.removeprefix("thawline.").partition(".")[0]


def shortest(imported: dict[str, set[str]]) -> dict[str, list[str]]:
    """The transitive reduction of the acyclic imports, in alphabetical order."""

    def below(name: str) -> set[str]:
        return imported[name].union(*(below(other) for other in imported[name]))

    beyond = {name: {far for other in others for far in below(other)} for name, others in imported.items()}
    return {name: sorted(imported[name] - beyond[name]) for name in sorted(imported)}


def picture(rows: list[list[str]], imported: dict[str, set[str]]) -> str:
    """The drawing, as SVG.

    Args:
        rows: rows of boxes, highest first.
        imported: the imports of each box, by name.
    """
    places: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        for place, name in enumerate(row):
            places[name] = (_WIDTH * (place + 0.5) / len(row), _ROW * number + _ROW / 2)
    arrows = [_arrow(*places[name], *places[other]) for name, others in shortest(imported).items() for other in others]
    wide = {name: min(130.0, _WIDTH / len(row) - 6) for row in rows for name in row}
    boxes = [_box(name, *place, wide[name]) for name, place in places.items()]
    height = _ROW * len(rows)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
            'aria-label="Packages of Thawline in layers; each imports only what is below it">',
            f"<style>{_STYLE}</style>",
            f'<rect x="0" y="0" width="{_WIDTH}" height="{height}" style="fill:#fff;stroke:none"/>',
            *arrows,
            *boxes,
            "</svg>\n",
        ]
    )


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    start, end = y + _HEIGHT / 2, to_y - _HEIGHT / 2
    bend = (end - start) / 2
    return (
        f'<path d="M{x:.0f} {start:.0f}C{x:.0f} {start + bend:.0f} {to_x:.0f} {end - bend:.0f} {to_x:.0f} {end:.0f}"/>'
    )


def _box(name: str, x: float, y: float, width: float) -> str:
    size = f' textLength="{width - 8:.0f}" lengthAdjust="spacingAndGlyphs"' if len(name) * 7.6 > width - 8 else ""
    return (
        f'<rect x="{x - width / 2:.0f}" y="{y - _HEIGHT / 2:.0f}" width="{width:.0f}" height="{_HEIGHT}"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}"{size}>{html.escape(name)}</text>'
    )


def drawn() -> str:
    """The picture of the current imports."""
    rows = layers()
    return picture(rows, imports([name for row in rows for name in row]))


def main(arguments: list[str]) -> int:
    """Write the picture, or compare it; returns the exit code."""
    now = drawn()
    if arguments == ["--check"]:
        same = PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == now
        if not same:
            print("docs/images/architecture.svg is out of date: run python tools/architecture.py", file=sys.stderr)
        return 0 if same else 1
    PICTURE.write_text(now, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
