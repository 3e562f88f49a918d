"""Draws labelled images by formula: the only data the starter backbone is trained on.

Every image is a single-channel mask in ``uint8``; colours, backgrounds and distortions are
added later, while training. There are four families, and every class belongs to one:

* **fractals** - attractors of iterated function systems, drawn with the chaos game. The idea of
  pretraining on them is from Kataoka et al., "Pre-training without Natural Images", ACCV 2020
  (FractalDB); sampling the maps through their singular values, so that each one contracts,
  follows Anderson and Farrell, "Improving Fractal Pre-training", WACV 2022.
* **contours** - closed curves given by a short Fourier series of the radius, in the spirit of the
  radial contours of Kataoka et al., "Replacing Labeled Real-image Datasets with Auto-generated
  Contours", CVPR 2022.
* **textures** - gratings, plaids, checks, dots, band-limited noise and cells.
* **glyphs** - characters of the fonts that ship with matplotlib (DejaVu, STIX and Computer
  Modern). The digits 0-9 are left out, and so is every character that looks like one, so that
  digits stay an honest measure of transfer.

No photograph and no scanned drawing is involved.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

SIDE = 80
"""Side of a stored mask, in pixels."""

FAMILIES = ("fractal", "contour", "texture", "glyph")
"""The families of classes, in the order of their class numbers."""


@dataclass(frozen=True)
class Bank:
    """All masks drawn once, before training starts."""

    masks: Tensor
    """``uint8``, one mask of ``SIDE`` by ``SIDE`` pixels per row."""
    labels: Tensor
    """``int64``, the class of each mask."""
    families: Tensor
    """``int64``, the index into :data:`FAMILIES` of each mask."""

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.labels.max()) + 1


@dataclass(frozen=True)
class Plan:
    """How many classes of each family to draw, and how many masks of each class."""

    fractals: int = 64
    contours: int = 40
    textures: int = 24
    glyphs: int = 128
    per_fractal: int = 40
    per_contour: int = 40
    per_texture: int = 40
    per_glyph: int = 60


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _normal(shape: tuple[int, ...], scale: float, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * scale


def _to_bytes(values: Tensor) -> Tensor:
    return (values.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


# --- fractals ---------------------------------------------------------------------------------

_MAPS = 6
"""The largest number of affine maps in one system."""


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)


def _random_systems(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw systems of contracting maps: matrices, shifts and the weight of each map."""
    shape = (count, _MAPS)
    larger = _uniform(shape, 0.3, 0.92, generator)
    smaller = larger * _uniform(shape, 0.15, 1.0, generator)
    flip = torch.where(torch.rand(shape, generator=generator) < 0.5, -1.0, 1.0)
    scale = torch.diag_embed(torch.stack((larger, smaller * flip), -1))
    left = _rotation(_uniform(shape, 0.0, 2.0 * math.pi, generator))
    right = _rotation(_uniform(shape, 0.0, 2.0 * math.pi, generator))
    matrices = left @ scale @ right
    shifts = _uniform((*shape, 2), -1.0, 1.0, generator)
    used = torch.randint(2, _MAPS + 1, (count, 1), generator=generator)
    weights = (larger * smaller + 0.02) * (torch.arange(_MAPS)[None] < used)
    return matrices, shifts, weights


def _chaos_game(matrices: Tensor, shifts: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Render one attractor per system: many points walk at once, and visits are counted."""
    systems, walkers, steps, settle = len(matrices), 384, 64, 12
    points = _uniform((systems, walkers, 2), -0.5, 0.5, generator)
    visited = []
    rows = torch.arange(systems)[:, None]
    for step in range(steps):
        chosen = torch.multinomial(weights, walkers, replacement=True, generator=generator)
        points = (matrices[rows, chosen] @ points[..., None])[..., 0] + shifts[rows, chosen]
        if step >= settle:
            visited.append(points)
    cloud = torch.cat(visited, 1)
    low, high = cloud.amin(1, keepdim=True), cloud.amax(1, keepdim=True)
    extent = (high - low).amax(-1, keepdim=True).clamp_min(1e-6)
    pixels = ((cloud - (low + high) / 2) / extent * (SIDE - 4) + SIDE / 2).long()
    pixels = pixels.clamp(0, SIDE - 1)
    flat = rows * SIDE * SIDE + pixels[..., 1] * SIDE + pixels[..., 0]
    visits = torch.bincount(flat.flatten(), minlength=systems * SIDE * SIDE)
    density = torch.log1p(visits.view(systems, SIDE, SIDE).float())
    peak = density.flatten(1).quantile(0.99, dim=1).clamp_min(1.0)
    return _to_bytes(density / peak[:, None, None])


def draw_fractals(classes: int, each: int, generator: torch.Generator) -> Tensor:
    """Draw ``each`` variations of ``classes`` random attractors that fill enough of the frame."""
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    while len(kept) < classes:
        matrices, shifts, weights = _random_systems(64, generator)
        fill = (_chaos_game(matrices, shifts, weights, generator) > 0).float().mean((1, 2))
        good = torch.nonzero((fill > 0.12) & (fill < 0.75)).flatten().tolist()
        kept += [(matrices[index], shifts[index], weights[index]) for index in good]
    drawn = []
    for matrix, shift, weight in kept[:classes]:
        matrices = matrix * (1.0 + _normal((each, _MAPS, 2, 2), 0.06, generator))
        shifts = shift + _normal((each, _MAPS, 2), 0.05, generator)
        norms = torch.linalg.matrix_norm(matrices, ord=2)[..., None, None]
        matrices = matrices / (norms / 0.95).clamp_min(1.0)  # every map keeps contracting
        drawn.append(_chaos_game(matrices, shifts, weight.expand(each, -1), generator))
    return torch.cat(drawn)


# --- contours ---------------------------------------------------------------------------------


def draw_contours(classes: int, each: int, generator: torch.Generator) -> Tensor:
    """Draw filled or outlined shapes; half of the classes are mirror-symmetric."""
    axis = torch.linspace(-1.0, 1.0, SIDE)
    down, across = torch.meshgrid(axis, axis, indexing="ij")
    radius, angle = torch.hypot(across, down), torch.atan2(across, down)
    harmonics = torch.arange(1, 9)
    drawn = []
    for number in range(classes):
        power = float(_uniform((1,), 0.3, 1.3, generator))
        strength = _normal((8,), 1.0, generator) / harmonics**power
        strength = strength / strength.abs().sum() * _uniform((1,), 0.4, 0.9, generator)
        phase = _uniform((8,), 0.0, 2.0 * math.pi, generator)
        if number % 2 == 0:
            phase = torch.where(phase < math.pi, 0.0, math.pi)
        strengths = strength * (1.0 + _normal((each, 8), 0.15, generator))
        phases = phase + _normal((each, 8), 0.06, generator)
        waves = torch.cos(angle[..., None] * harmonics + phases[:, None, None, :])
        edge = 1.0 + (waves * strengths[:, None, None, :]).sum(-1)
        inside = edge / edge.flatten(1).amax(1)[:, None, None] * 0.95 - radius
        width = _uniform((each, 1, 1), 0.04, 0.12, generator)
        outlined = torch.rand((each, 1, 1), generator=generator) < 0.3
        inside = torch.where(outlined, width - inside.abs(), inside)
        drawn.append(_to_bytes(inside * SIDE / 2 + 0.5))
    return torch.cat(drawn)


# --- textures ---------------------------------------------------------------------------------


def _rescaled(values: Tensor) -> Tensor:
    low, high = values.flatten(1).amin(1), values.flatten(1).amax(1)
    return (values - low[:, None, None]) / (high - low).clamp_min(1e-6)[:, None, None]


def _band_noise(frequency: float, angle: float, stretch: float, each: int, generator: torch.Generator) -> Tensor:
    """Noise whose spectrum is a ring (or, with stretch, two lobes) around one frequency."""
    noise = torch.fft.fft2(torch.randn((each, SIDE, SIDE), generator=generator))
    cycles = torch.fft.fftfreq(SIDE) * SIDE
    down, across = torch.meshgrid(cycles, cycles, indexing="ij")
    along = across * math.cos(angle) + down * math.sin(angle)
    beside = -across * math.sin(angle) + down * math.cos(angle)
    distance = torch.hypot(along, beside * stretch)
    ring = torch.exp(-(((distance - frequency) / (0.35 * frequency)) ** 2))
    return _rescaled(torch.fft.ifft2(noise * ring).real)


def _cells(frequency: float, each: int, generator: torch.Generator) -> Tensor:
    """Distance to the nearest of random seeds: a picture of cells."""
    seeds = _uniform((each, round(frequency**2), 2), 0.0, float(SIDE), generator)
    axis = torch.arange(SIDE, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(1, -1, 2)
    nearest = torch.cdist(grid.expand(each, -1, -1), seeds).amin(-1)
    return _rescaled(nearest.view(each, SIDE, SIDE))


def draw_textures(classes: int, each: int, generator: torch.Generator) -> Tensor:
    """Draw patterns; kind, frequency, direction and hardness are what makes a class."""
    axis = torch.linspace(0.0, 2.0 * math.pi, SIDE)
    down, across = torch.meshgrid(axis, axis, indexing="ij")
    drawn = []
    for number in range(classes):
        frequency = float(_uniform((1,), 3.0, 11.0, generator))
        angle = float(_uniform((1,), 0.0, math.pi, generator))
        hardness = float(_uniform((1,), 1.0, 6.0, generator))
        turned = angle + _normal((each, 1, 1), 0.05, generator)
        jittered = frequency * (1.0 + _normal((each, 1, 1), 0.05, generator))
        phases = _uniform((2, each, 1, 1), 0.0, 2.0 * math.pi, generator)
        first = torch.sin(jittered * (across * turned.cos() + down * turned.sin()) + phases[0])
        second = torch.sin(jittered * (down * turned.cos() - across * turned.sin()) + phases[1])
        kind = number % 8
        if kind == 0:
            pattern = torch.sigmoid(hardness * first)
        elif kind == 1:
            pattern = _rescaled(torch.maximum(first, second))
        elif kind == 2:
            pattern = torch.sigmoid(hardness * 2.0 * first * second)
        elif kind == 3:
            pattern = torch.sigmoid(hardness * 2.0 * (first + second - 0.9))
        elif kind == 4:
            pattern = _band_noise(frequency, angle, 1.0, each, generator)
        elif kind == 5:
            pattern = _band_noise(frequency, angle, 3.0, each, generator)
        elif kind == 6:
            noise = _band_noise(frequency, angle, 2.0, each, generator)
            pattern = torch.sigmoid(hardness * 6.0 * (noise - 0.5))
        else:
            pattern = _cells(frequency, each, generator)
        drawn.append(_to_bytes(pattern))
    return torch.cat(drawn)


# --- glyphs -----------------------------------------------------------------------------------

_WIDE_FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
_LATIN_FONTS = ("cmb10", "cmr10", "cmss10", "cmtt10")
_RANGES = (
    (0x0041, 0x005A),  # Latin capitals
    (0x0061, 0x007A),  # Latin small letters
    (0x0391, 0x03C9),  # Greek
    (0x0410, 0x044F),  # Cyrillic
    (0x0021, 0x007E),  # punctuation and signs of ASCII
    (0x0531, 0x0586),  # Armenian
    (0x10D0, 0x10F5),  # Georgian
    (0x05D0, 0x05EA),  # Hebrew
    (0x0621, 0x064A),  # Arabic
    (0x2D30, 0x2D65),  # Tifinagh
    (0x2190, 0x21FF),  # arrows
    (0x2200, 0x22FF),  # mathematical operators
    (0x25A0, 0x25FF),  # geometric shapes
    (0x2600, 0x26FF),  # symbols
)


def _font_files() -> dict[Path, frozenset[int]]:
    """Give the font files in use and the characters that each of them has."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found: dict[Path, frozenset[int]] = {}
    for path in sorted(folder.glob("*.ttf")):
        known = frozenset(FT2Font(str(path)).get_charmap())
        if path.stem.endswith("Display"):
            continue
        if path.stem.startswith(_WIDE_FONTS):
            found[path] = known
        elif path.stem in _LATIN_FONTS:
            found[path] = frozenset(code for code in known if chr(code).isascii() and chr(code).isalpha())
    return found


def _render_glyph(character: str, font: ImageFont.FreeTypeFont, stroke: int = 0) -> Image.Image | None:
    """Draw one character centred in the frame; ``None`` where it is empty or too large."""
    left, top, right, bottom = font.getbbox(character, stroke_width=stroke)
    width, height = right - left, bottom - top
    if not (4 < max(width, height) <= SIDE):
        return None
    image = Image.new("L", (SIDE, SIDE), 0)
    corner = ((SIDE - width) / 2 - left, (SIDE - height) / 2 - top)
    ImageDraw.Draw(image).text(corner, character, fill=255, font=font, stroke_width=stroke)
    return image


def _as_tensor(image: Image.Image) -> Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width)


def _outline(character: str, font: ImageFont.FreeTypeFont) -> Tensor | None:
    """Describe a character's form, whatever its size and width: a blurred unit vector."""
    image = _render_glyph(character, font)
    box = image.getbbox() if image is not None else None
    if image is None or box is None:
        return None
    form = image.crop(box).resize((24, 24), Image.Resampling.BILINEAR)
    values = _as_tensor(form.filter(ImageFilter.GaussianBlur(1.5))).float().flatten()
    values = values - values.mean()
    length = values.square().sum().sqrt()
    return values / length if float(length) > 1e-3 else None


def choose_characters(count: int) -> list[str]:
    """Choose characters that differ from one another in form, and all of them from any digit."""
    fonts = _font_files()
    reference = next(path for path in fonts if path.stem == "DejaVuSans")
    font = ImageFont.truetype(str(reference), 52)
    taken = [form for digit in "0123456789" if (form := _outline(digit, font)) is not None]
    chosen: list[str] = []
    for first, last in _RANGES:
        for code in range(first, last + 1):
            character = chr(code)
            numeric = unicodedata.category(character).startswith("N")
            if numeric or character in chosen or code not in fonts[reference]:
                continue
            form = _outline(character, font)
            if form is None or max(float(form @ other) for other in taken) > 0.86:
                continue
            taken.append(form)
            chosen.append(character)
    return chosen[:count]


def draw_glyphs(classes: int, each: int, generator: torch.Generator) -> Tensor:
    """Draw characters in every font that has them, thinned and thickened at random."""
    fonts = _font_files()
    loaded: dict[tuple[Path, int], ImageFont.FreeTypeFont] = {}
    drawn = []
    for character in choose_characters(classes):
        owners = [path for path, known in fonts.items() if ord(character) in known]
        done = 0
        while done < each:
            draw = torch.randint(0, 1 << 16, (3,), generator=generator).tolist()
            path, size = owners[draw[0] % len(owners)], 44 + 4 * (draw[1] % 5)
            if (path, size) not in loaded:
                loaded[path, size] = ImageFont.truetype(str(path), size)
            style = draw[2] % 6
            image = _render_glyph(character, loaded[path, size], stroke=max(0, style - 2))
            if image is None:
                image = _render_glyph(character, ImageFont.truetype(str(path), 28))
            if image is None:
                raise ValueError(f"cannot draw {character!r} with {path.name}")
            drawn.append(_as_tensor(image.filter(ImageFilter.MinFilter(3)) if style == 0 else image))
            done += 1
    return torch.stack(drawn)


# --- the whole bank ---------------------------------------------------------------------------


def draw_bank(plan: Plan, seed: int) -> Bank:
    """Draw every class of every family; the same plan and seed give the same bank."""
    drawers: tuple[tuple[Callable[[int, int, torch.Generator], Tensor], int, int], ...] = (
        (draw_fractals, plan.fractals, plan.per_fractal),
        (draw_contours, plan.contours, plan.per_contour),
        (draw_textures, plan.textures, plan.per_texture),
        (draw_glyphs, plan.glyphs, plan.per_glyph),
    )
    masks, labels, families, first = [], [], [], 0
    for family, (drawer, _, each) in enumerate(drawers):
        generator = torch.Generator().manual_seed(seed * 1000 + family)
        drawn = drawer(drawers[family][1], each, generator)
        classes = len(drawn) // each
        masks.append(drawn)
        labels.append(torch.arange(first, first + classes).repeat_interleave(each))
        families.append(torch.full((len(drawn),), family))
        first += classes
    return Bank(torch.cat(masks), torch.cat(labels), torch.cat(families))
