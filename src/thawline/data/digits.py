"""Demo data without a download: the 1,797 handwritten digits of scikit-learn."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["write_digits"]

_SCALE = 4


def write_digits(folder: Path) -> Path:
    """Write the digits as an image folder, ``<folder>/<digit>/digit-0000.png`` and so on; returns the folder.

    The originals are 8 x 8 pixels with 17 levels of ink (E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
    Digits, UCI, CC BY 4.0). They are written as dark ink on white paper, enlarged to 32 x 32 with bicubic
    interpolation, which looks like handwriting instead of blocks. The number in the name is the index in scikit-learn's
    list. Existing files with this content are kept, so calling again is cheap and completes an interrupted call.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        small = Image.fromarray(np.rint(255 - pixels / 16 * 255).astype(np.uint8))
        large = small.resize((small.width * _SCALE, small.height * _SCALE), Image.Resampling.BICUBIC)
        encoded = io.BytesIO()
        large.save(encoded, "PNG")
        path = folder / str(digit) / f"digit-{index:04d}.png"
        if not (path.is_file() and path.read_bytes() == encoded.getvalue()):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded.getvalue())
    return folder
