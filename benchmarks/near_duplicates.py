"""Recall, false positives and cost of finding generated near-duplicates of photographs.

python benchmarks/near_duplicates.py --data ../shared/data/clothing --seeds 5
"""

import argparse
import io
import random
import statistics
import time
from pathlib import Path

from PIL import Image

from thawline.data import decode
from thawline.data._near_duplicates import near_duplicates, thumbnail
from thawline.data.contract import content_digest
from thawline.data.folder import image_files

KINDS = ("png", "jpeg", "resized", "cropped", "cropped and resized")


def changed(image: Image.Image, kind: str, draw: random.Random) -> bytes:
    """Another file with the same picture: JPEG of quality 50 to 90 except for ``png``; resized to 0.4 to 0.8 of each
    side; cropped to 92 to 98 % of each side at any position.
    """
    if "cropped" in kind:
        width, height = (round(side * draw.uniform(0.92, 0.98)) for side in image.size)
        left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
        image = image.crop((left, top, left + width, top + height))
    if "resized" in kind:
        scale = draw.uniform(0.4, 0.8)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if kind == "png" else "JPEG", quality=draw.randint(50, 90))
    return buffer.getvalue()


def enlarged(data: bytes, side: int) -> bytes:
    """The photograph at a camera's resolution, with this longer side in pixels."""
    image = decode(data)
    scale = side / max(image.size)
    buffer = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC).save(
        buffer, "JPEG"
    )
    return buffer.getvalue()


def cost(data: list[bytes]) -> tuple[float, float, float, list[bytes]]:
    """CPU seconds of reading (digest and decoding), of thumbnails and of comparing them, and the thumbnails."""
    reading, making, thumbnails = 0.0, 0.0, []
    for each in data:
        began = time.process_time()
        content_digest(each)
        image = decode(each)
        decoded = time.process_time()
        thumbnails.append(thumbnail(image))
        reading, making = reading + decoded - began, making + time.process_time() - decoded
    began = time.process_time()
    near_duplicates(thumbnails)
    return reading, making, time.process_time() - began, thumbnails


def main() -> None:
    """Print recall, precision and cost for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--copies", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--side", type=int, default=1600, help="longer side of 200 enlarged photographs for measuring")
    options = parser.parse_args()

    files = image_files(options.data)
    data = [file.read_bytes() for file in files]
    recalls, precisions, shares = [], [], []
    for seed in range(options.seeds):
        draw = random.Random(seed)
        chosen = draw.sample(range(len(data)), options.copies)
        kinds = [KINDS[place % len(KINDS)] for place in range(options.copies)]
        made = [changed(decode(data[n]), kind, draw) for n, kind in zip(chosen, kinds, strict=True)]
        reading, making, comparing, thumbnails = cost([*data, *made])
        truth = {(n, len(data) + place) for place, n in enumerate(chosen)}
        found = set(near_duplicates(thumbnails))
        recalls.append(len(found & truth) / len(truth))
        precisions.append(len(found & truth) / len(found))
        shares.append((making + comparing) / reading)
        missed = [kinds[other - len(data)] for _, other in truth - found]
        print(
            f"seed {seed}: recall {recalls[-1]:.3f}, precision {precisions[-1]:.3f}; CPU: reading {reading:.2f} s, "
            f"thumbnails {making:.2f}, comparing {comparing:.2f} ({shares[-1]:.1%}); missed: "
            + (", ".join(f"{missed.count(kind)} {kind}" for kind in KINDS if kind in missed) or "none")
        )
        for one, other in sorted(found - truth) if seed == 0 else []:
            print("  also found:", *(files[n] if n < len(files) else "a copy" for n in (one, other)))
    for name, values in (("recall", recalls), ("precision", precisions), ("share of reading", shares)):
        print(f"{name}: median {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    reading, making, comparing, _ = cost([enlarged(each, options.side) for each in data[:200]])
    print(f"200 of {options.side} pixels: {(making + comparing) / reading:.1%} of {reading:.2f} CPU seconds")


if __name__ == "__main__":
    main()
