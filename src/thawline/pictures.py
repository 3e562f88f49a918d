"""Draw labelled pictures on one sheet."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["label_grid"]

_RIGHT, _WRONG = (0, 130, 60), (210, 30, 30)
_FRAME, _GAP, _FONT_SIZE, _LINE = 3, 6, 12, 15
"""In pixels: frame of a picture, gap between pictures, font size, and line height."""


def label_grid(
    images: np.ndarray, captions: Sequence[str], wrong: Sequence[bool], columns: int, *, side: int = 112
) -> np.ndarray:
    """Draw pictures in a grid, each in a frame above its caption.

    Args:
        images: at least one, uint8 ``[N, H, W, 3]`` of any size, shown as squares.
        captions: one per image, with one or more lines; long lines are truncated with an ellipsis.
        wrong: per image, whether its frame is red instead of green.
        columns: maximum number of pictures per row, at least 1.
        side: side of a picture on the sheet in pixels; 112 leaves room for some 15 letters.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    columns = min(columns, len(images))
    lines = max(caption.count("\n") + 1 for caption in captions)
    width, height = side + 2 * _FRAME + _GAP, side + 2 * _FRAME + lines * _LINE + _GAP
    sheet = Image.new("RGB", (_GAP + columns * width, _GAP + math.ceil(len(images) / columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (pixels, caption, mistaken) in enumerate(zip(images, captions, wrong, strict=True)):
        left, top = _GAP + i % columns * width, _GAP + i // columns * height
        frame = (left, top, left + side + 2 * _FRAME - 1, top + side + 2 * _FRAME - 1)
        draw.rectangle(frame, fill=_WRONG if mistaken else _RIGHT)
        picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(picture, (left + _FRAME, top + _FRAME))
        for number, line in enumerate(caption.split("\n")):
            below = top + side + 2 * _FRAME + 1 + number * _LINE
            draw.text((left, below), _cut(line, side + 2 * _FRAME), fill="black", font=_font())
    return np.asarray(sheet)


def _cut(line: str, width: int) -> str:
    """Truncate a line to ``width`` pixels."""
    if _font().getlength(line) <= width:
        return line
    while line and _font().getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line.rstrip()}…"


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE)
