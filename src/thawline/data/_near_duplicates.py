"""Find near-duplicates: the same picture recompressed, resized or slightly cropped.

Three steps filter the pairs: a perceptual hash of 64 bits (the signs of the lowest frequencies of a cosine transform,
as in Zauner's pHash), compared between all images; the sums of rows and of columns, which determine how one image was
cropped to give the other; and the colours of both images, aligned accordingly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["SIDE", "Thumbnails", "near_duplicates", "thumbnail", "write_thumbnail"]

SIDE = 32
"""Side of a thumbnail in pixels. Smaller images are not compared: a few pixels are easily similar."""

_SAMPLED = 96, 128  # pixels per side averaged in a thumbnail: for small images, and for those larger than _LARGE
_LARGE = 250_000
_FREQUENCIES = 9  # per side, of which the 64 lowest are used
_RADIUS = 18  # maximum distance of two candidates' hashes, in bits
_CANDIDATES = 100  # maximum per image: among many similar images the radius shrinks to this number
_BLOCK = 1 << 18  # pairs of hashes per comparison, which fit into a core's cache
_ROUGH = 20.0  # root mean square of the differences of the mean colours of 4 x 4 parts, of 255
_PAIRS = 8192  # candidates per batch, at some 40 kB each
_CUT = 4  # maximum total crop of both ends of a side, in steps of 2 %
_ALONG = 0.93  # correlation of the sums of rows, and of columns
_COARSE = 8  # cells per side for comparing colours
_COLOURS = 7.0  # root mean square of their differences, of 255
_CONTRAST = 0.17  # the same relative to the standard deviation over cells: pale images are easily similar
_DETAIL = 20.0  # root mean square of the differences of all pixels, exceeded by noise on the same drawing

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.intp]


def write_thumbnail(made: bytes, path: Path, place: int) -> None:
    """Write a thumbnail into a shared file, which any number of processes may write to."""
    with path.open("rb+") as file:
        file.seek(place * SIDE * SIDE * 3)
        file.write(made)


def thumbnail(image: Image.Image) -> bytes:
    """The thumbnail of an image: ``SIDE`` x ``SIDE`` colours, ignoring its aspect ratio; empty if the image is smaller.

    Args:
        image: in mode RGB.
    """
    if min(image.size) < SIDE:
        return b""
    side = _SAMPLED[image.width * image.height > _LARGE]
    # Samples instead of all pixels, in a third of the time.
    return image.resize((side, side), Image.Resampling.NEAREST).reduce(side // SIDE).tobytes()


def near_duplicates(thumbnails: "Sequence[bytes] | Thumbnails") -> list[tuple[int, int]]:
    """Pairs of images with the same picture, as indices into the list, the smaller one first.

    The time grows with the square of the number of images, because all hashes are compared with each other.

    Args:
        thumbnails: thumbnail of each image; empty ones are skipped.
    """
    seen = thumbnails if isinstance(thumbnails, Thumbnails) else Thumbnails.of(thumbnails)
    if len(seen.places) < 2:
        return []
    found: list[tuple[int, int]] = []
    one, other = _candidates(_hashes(seen), _rough(seen))
    for start in range(0, len(one), _PAIRS):
        first, second = one[start : start + _PAIRS], other[start : start + _PAIRS]
        near = _same(seen, first, second)
        found += zip(seen.places[first[near]].tolist(), seen.places[second[near]].tolist(), strict=True)
    return sorted(found)


@dataclass(frozen=True)
class Thumbnails:
    """Thumbnails of many images: in memory, or in a file that is read in batches."""

    pixels: npt.NDArray[np.uint8]
    """``[N, SIDE, SIDE, 3]``."""
    rows: Integers
    """Row of each image's thumbnail."""
    places: Integers
    """Index of each image in the result."""

    @classmethod
    def of(cls, thumbnails: Sequence[bytes]) -> "Thumbnails":
        """From the results of :func:`thumbnail`; empty ones are skipped."""
        places = np.array([place for place, each in enumerate(thumbnails) if each], np.intp)
        whole = np.frombuffer(b"".join(thumbnails), np.uint8)
        return cls(whole.reshape(len(places), SIDE, SIDE, 3), np.arange(len(places)), places)

    @classmethod
    def in_file(cls, path: Path, rows: Sequence[int]) -> "Thumbnails":
        """From a file of :func:`write_thumbnail`, at these places."""
        pixels = np.memmap(path, np.uint8, "r").reshape(-1, SIDE, SIDE, 3)
        return cls(pixels, np.array(rows, np.intp), np.arange(len(rows)))

    def take(self, numbers: Integers | slice) -> npt.NDArray[np.uint8]:
        """Some thumbnails, ``[n, SIDE, SIDE, 3]``."""
        return self.pixels[self.rows[numbers]]

    def blocks(self) -> Iterator[npt.NDArray[np.uint8]]:
        """All thumbnails, in blocks of some thousands."""
        for start in range(0, len(self.rows), _PAIRS):
            yield self.take(slice(start, start + _PAIRS))


def _hashes(seen: Thumbnails) -> npt.NDArray[np.uint64]:
    """The 64-bit hash of each image."""
    points = (np.arange(SIDE) + 0.5) * np.pi / SIDE
    waves = np.cos(np.outer(np.arange(_FREQUENCIES), points)).astype(np.float32)
    both = ((u, v) for u in range(_FREQUENCIES) for v in range(_FREQUENCIES) if u + v > 0)
    lowest = np.array(sorted(both, key=lambda pair: pair[0] ** 2 + pair[1] ** 2)[:64])
    parts = []
    for colours in seen.blocks():
        green = colours[:, :, :, 1].astype(np.float32)
        spectrum = np.tensordot(np.tensordot(green, waves, (2, 1)), waves, (1, 1))  # [n, v, u]
        bits = np.packbits(spectrum[:, lowest[:, 1], lowest[:, 0]] > 0, axis=1)
        parts.append(np.ascontiguousarray(bits).view(np.uint64)[:, 0])
    return np.concatenate(parts)


def _rough(seen: Thumbnails) -> Floats:
    """Mean colours of 4 x 4 parts of each image, float32 ``[n, 48]``."""
    cells, parts = SIDE // 4, []
    for colours in seen.blocks():
        rows = colours.reshape(len(colours), 4, cells, SIDE * 3).sum(2, dtype=np.uint16)  # in memory order, in steps
        sums = rows.reshape(len(colours), 4, 4, cells, 3).sum(3, dtype=np.uint16)
        parts.append(sums.reshape(len(colours), -1).astype(np.float32) / cells**2)
    return np.concatenate(parts)


def _candidates(hashes: npt.NDArray[np.uint64], rough: Floats) -> tuple[Integers, Integers]:
    """Pairs whose hashes and rough colours are close."""
    radius, kept, most = _RADIUS, 0, _CANDIDATES * len(hashes)
    found: list[npt.NDArray[np.intp]] = [np.empty((3, 0), np.intp)]  # first, second, distance in bits
    step = max(1, _BLOCK // len(hashes))
    for start in range(0, len(hashes), step):
        apart = np.bitwise_count(hashes[start : start + step, None] ^ hashes[None, start:])
        first, second = np.divmod(np.flatnonzero(apart <= radius), len(hashes) - start)
        bits = apart[first, second]
        ahead = second > first
        first, second, bits = first[ahead] + start, second[ahead] + start, bits[ahead]
        alike = ((rough[first] - rough[second]) ** 2).mean(1) < _ROUGH**2
        found.append(np.stack([first[alike], second[alike], bits[alike]]))
        kept += found[-1].shape[1]
        while kept > most:
            radius -= 1
            found = [each[:, each[2] <= radius] for each in found]
            kept = sum(each.shape[1] for each in found)
    first, second, _ = np.concatenate(found, axis=1)
    return first, second


def _same(seen: Thumbnails, first: Integers, second: Integers) -> npt.NDArray[np.bool_]:
    """The pairs that show the same picture, possibly cropped."""
    cuts = [(left / 50, right / 50) for left in range(_CUT + 1) for right in range(_CUT + 1 - left)]
    full, coarse = (np.stack([_cutting(*cut, cells) for cut in cuts]) for cells in (SIDE, _COARSE))
    used, index = np.unique(np.concatenate([first, second]), return_inverse=True)
    one, other = index[: len(first)], index[len(first) :]
    green = seen.take(used)[:, :, :, 1].astype(np.float32)
    axes = [(_unit(sums), _unit(np.tensordot(sums, full, (1, 2)))) for sums in (green.mean(2), green.mean(1))]

    def along(whole: Integers, part: Integers) -> tuple[Integers, Integers, Floats]:
        """The best crop of rows and of columns of one image to match the other, and the lower correlation."""
        fits = [np.matmul(cut[whole], plain[part][:, :, None])[:, :, 0] for plain, cut in axes]
        rows, columns = (fit.argmax(1) for fit in fits)
        return rows, columns, np.minimum(fits[0].max(1), fits[1].max(1))

    (rows, columns, fit), (rows_back, columns_back, fit_back) = along(one, other), along(other, one)
    turned = fit_back > fit
    rows, columns = np.where(turned, rows_back, rows), np.where(turned, columns_back, columns)
    whole, part = np.where(turned, second, first), np.where(turned, first, second)
    same: npt.NDArray[np.bool_] = np.maximum(fit, fit_back) > _ALONG

    def laid(cutting: Floats) -> tuple[Floats, Floats]:
        """Both images of the remaining pairs, aligned."""
        over = _laid(seen.take(whole[same]), cutting[rows[same]], cutting[columns[same]])
        return over, _laid(seen.take(part[same]), cutting[[0]], cutting[[0]])

    over, wanted = laid(coarse)
    contrast = np.sqrt(wanted.var((1, 2)).mean(1))
    same[same] = _apart(over, wanted) < np.minimum(_COLOURS, _CONTRAST * contrast)
    same[same] = _apart(*laid(full)) < _DETAIL
    return same


def _apart(one: Floats, other: Floats) -> Floats:
    """Root mean square of the differences of each pair."""
    squares: Floats = ((one - other) ** 2).mean((1, 2, 3))
    return np.sqrt(squares)


def _laid(colours: npt.NDArray[np.uint8], rows: Floats, columns: Floats) -> Floats:
    """Mean colours of the cells, float32 ``[n, cells, cells, 3]``, of a part of each image."""
    cells = rows.shape[1]
    flat = colours.astype(np.float32).reshape(len(colours), SIDE, SIDE * 3)
    down = np.matmul(rows, flat).reshape(-1, cells, SIDE, 3)
    both: Floats = np.matmul(columns[:, None], down)
    return both


def _cutting(left: float, right: float, cells: int) -> Floats:
    """float32 ``[cells, SIDE]``: the means of a row's pixels in cells between ``left`` and ``right``."""
    edges = (left + (1 - left - right) * np.arange(cells + 1) / cells) * SIDE
    pixels = np.arange(SIDE)
    overlap = np.clip(np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels), 0, None)
    means: Floats = (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)
    return means


def _unit(values: Floats) -> Floats:
    """Centred and normalised along the last axis."""
    centred = values - values.mean(-1, keepdims=True)
    unit: Floats = centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), np.float32(1e-6))
    return unit
