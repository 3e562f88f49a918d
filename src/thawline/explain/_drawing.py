"""Heat maps as images: the original image beside its overlay with the heat map."""

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from thawline.backbones import TextPreprocessing
from thawline.exceptions import ConfigError
from thawline.explain._attribution import Explainer

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    from thawline.backbones import Backbone

__all__ = ["explained_pictures", "overlay", "sheet"]

_OPACITY = 0.6
_LEAST_SIDE = 320
"""Minimum size of an image on a sheet (pixels): a network's input of 64 would be too small to see."""
_GAP, _FONT_SIZE, _LINE = 8, 15, 21


def overlay(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """Lay a heat map over an image, from dark violet (0) to yellow (1), with perceptually uniform colours.

    The image shows through in grey, so that all colours are those of the heat map.

    Args:
        image: uint8 ``[H, W, 3]``.
        heatmap: float ``[H, W]``, 0 to 1.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    import matplotlib

    grey = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    colours = matplotlib.colormaps["plasma"](heatmap)[..., :3] * 255
    mixed = grey[..., None] * (1 - _OPACITY) + colours * _OPACITY
    return np.asarray(np.rint(mixed), dtype=np.uint8)


def explained_pictures(backbone: "Backbone", pictures: np.ndarray, classes: Sequence[int] | np.ndarray) -> list[bytes]:
    """Draw each image beside the evidence for a class in it.

    Args:
        backbone: in any mode, which is kept.
        pictures: uint8 ``[N, S, S, 3]``, resized and cropped as for the backbone.
        classes: ``[N]``, index of the class to explain in each.

    Returns:
        ``N`` JPEG files of ``2 S + 8`` by ``S`` pixels.

    Raises:
        ConfigError: if the backbone is a text encoder.
    """
    from PIL import Image

    if isinstance(backbone.preprocessing, TextPreprocessing):
        raise ConfigError(f"{backbone.name} reads texts, but explanations are drawn on images.")
    preprocessing, device = backbone.preprocessing, next(backbone.module.parameters()).device
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    images = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
    heatmaps = Explainer(backbone.module, pictures.shape[1])((images - mean) / std, classes)
    files = []
    for picture, heatmap in zip(pictures, heatmaps, strict=True):
        gap = np.full((len(picture), _GAP, 3), 255, np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(np.hstack([picture, gap, overlay(picture, heatmap)])).save(encoded, "JPEG", quality=88)
        files.append(encoded.getvalue())
    return files


def sheet(image: np.ndarray, heatmap: np.ndarray, lines: Sequence[str]) -> bytes:
    """Draw the image beside its overlay, above lines of text, as PNG; the same values give the same bytes.

    Args:
        image: uint8 ``[S, S, 3]``, enlarged if it is small.
        heatmap: float ``[S, S]``, 0 to 1.
        lines: lines of text; long lines are cut with an ellipsis.
    """
    from PIL import Image, ImageDraw

    side = max(_LEAST_SIDE, image.shape[0])
    width = 2 * side + 3 * _GAP
    drawn = Image.new("RGB", (width, side + 3 * _GAP + len(lines) * _LINE), "white")
    for number, pixels in enumerate((image, overlay(image, heatmap))):
        drawn.paste(_enlarged(pixels, side), (_GAP + number * (side + _GAP), _GAP))
    draw = ImageDraw.Draw(drawn)
    for number, line in enumerate(lines):
        place = (_GAP, side + 2 * _GAP + number * _LINE)
        draw.text(place, _shortened(line, width - 2 * _GAP), fill="black", font=_font())
    encoded = io.BytesIO()
    drawn.save(encoded, "PNG")
    return encoded.getvalue()


def _enlarged(pixels: np.ndarray, side: int) -> "Image.Image":
    from PIL import Image

    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def _shortened(line: str, width: int) -> str:
    """Cut a line to a width in pixels."""
    if _font().getlength(line) <= width:
        return line
    while line and _font().getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line.rstrip()}…"


@cache
def _font() -> "ImageFont.FreeTypeFont":
    """Matplotlib's own font, which also has Greek and Cyrillic."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _FONT_SIZE)
