"""The common style of all figures, and their conversion to small SVG documents.

Drawings are half a page wide, so that their text is readable on a phone in portrait mode.
"""

import io
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from thawline.data import printable

if TYPE_CHECKING:  # matplotlib takes half a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = [
    "ACCENT",
    "BAND",
    "COLOURS",
    "FAINT",
    "INK",
    "MAIN",
    "Canvas",
    "canvas",
    "freeze_depth_axis",
    "learning_rate_axis",
    "plain_rate",
    "shorten",
]

MAIN = "#0072b2"
ACCENT = "#d55e00"
INK = "#1f2328"
FAINT = "#666c74"
BAND = "#dbe4ec"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b27b00", "#56b4e9")
"""Colour-blind safe (Okabe and Ito, Color Universal Design, 2008), with a darker yellow for white paper."""

_FONT = "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
_LOOK: Any = {
    # Text is measured in matplotlib's own font, on every machine; it is wide enough for browsers' fonts.
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7ea",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "text.parse_math": False,  # a class may be called $x$
    "svg.fonttype": "none",
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_CLOUD_DPI = 100
_DRAWING = threading.Lock()  # matplotlib's settings are global to the process


class Canvas:
    """The drawing inside :func:`canvas`; afterwards it contains the SVG document."""

    def __init__(self, drawing: "Drawing") -> None:
        self.drawing = drawing
        self.svg = ""

    @property
    def axes(self) -> "Axes":
        """The drawing as a single plot, created on first use."""
        return self.drawing.axes[0] if self.drawing.axes else self.drawing.add_subplot()


@contextmanager
def canvas(name: str, width: float = 4.4, height: float = 3.2) -> Iterator[Canvas]:
    """A blank drawing in the common style; after the block, its :attr:`Canvas.svg` is set.

    The same drawing gives the same bytes. Global settings of matplotlib stay unchanged.

    Args:
        name: makes ids in the document unique among the drawings of a page.
        width: in inches, at 72 points each; 4.4 fills a phone screen.
        height: in inches.
    """
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    with _DRAWING, matplotlib.rc_context(), warnings.catch_warnings():
        # Class names may be in a script that the measuring font lacks but the browser's fonts have.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_LOOK)
        matplotlib.rcParams["svg.hashsalt"] = name
        made = Canvas(Drawing(figsize=(width, height), layout="constrained"))
        yield made
        text = io.StringIO()
        made.drawing.savefig(text, format="svg", metadata=_NO_METADATA, dpi=_CLOUD_DPI)
        made.svg = _small(text.getvalue())


def _small(svg: str) -> str:
    """Remove parts that a browser does not need: prolog, ids of groups, the font of every text, zero rotations."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", svg)
    svg = svg.replace("font-family: 'DejaVu Sans', sans-serif", "").replace("<svg ", f'<svg font-family="{_FONT}" ', 1)
    return re.sub(r"\n\s+", "\n", svg).strip()


def shorten(text: str, most: int = 22) -> str:
    """Shorten a name for a label: on one line, cut with an ellipsis after ``most`` characters."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def freeze_depth_axis(axes: "Axes", depths: Sequence[int], deepest: int | None = None) -> None:
    """Set the horizontal axis to integer depths, with labels that explain its ends if they are known.

    Args:
        axes: to set.
        depths: to show.
        deepest: the depth at which only the head is trained, if it is known.
    """
    low, high = min(depths), max(depths)
    step = max(1, (high - low + 1) // 12)
    ticks = [*range(low, high + 1, step)]
    meanings = {0: "0\nall trained"} | ({deepest: f"{deepest}\nhead only"} if deepest else {})
    axes.set_xticks(ticks, [meanings.get(tick, str(tick)) for tick in ticks])
    axes.set_xlim(low - 0.5, high + 0.5)
    axes.set_xlabel("freeze depth")


def learning_rate_axis(axes: "Axes", rates: Sequence[float]) -> None:
    """Set the vertical axis to a log scale with plain labels, a little beyond the rates shown."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_major_formatter(lambda rate, _: plain_rate(rate))
    axes.yaxis.set_minor_formatter(NullFormatter())
    beyond = 1.2 if max(rates) >= 10 * min(rates) else 2.0  # at least one label is visible
    axes.set_ylim(min(rates) / beyond, max(rates) * beyond)
    axes.set_ylabel("learning rate")


def plain_rate(rate: float) -> str:
    """A learning rate in few characters, such as ``3e-4``."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
