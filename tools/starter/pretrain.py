"""Trains the starter backbone: ``python tools/starter/pretrain.py --out FILE``.

The images are drawn by formula (see ``draw.py``), once, into a bank of
masks. Each training image is then put together on the fly: one mask is distorted and cropped at
random, and two fills - a colour, a gradient and a faint texture each - show through it and around
it; blur and noise come last. The network, torchvision's ``mobilenet_v3_small``, learns to name the
class of the mask among all the classes of all the families.

The depthwise convolutions of this network gain little from a second thread, so ``--threads N``
starts N single-threaded processes that average their gradients after every batch.

The schedule runs over wall time, so that a run ends when it was told to. A seed fixes the images,
the initial weights and the order of the samples; how many steps fit in depends on the machine.

The file holds the weights in half precision, without the final classification layer, under
torchvision's own names, and is rewritten about once a minute during training.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torchvision.models import mobilenet_v3_small

from draw import FAMILIES, Bank, Plan, draw_bank

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""The usual normalisation of ImageNet, so that images are prepared as for any other backbone."""

HEAD = "classifier.3."
"""Where the final classification layer's parameters begin with; they are not shipped."""

SIDES = (40, 48, 56)
"""The sides, in pixels, that a batch is drawn at; small, because the run is meant for a CPU."""

EASY = 0.3
"""The share of the run over which the distortions grow to their full strength."""

GLYPH, TEXTURE = FAMILIES.index("glyph"), FAMILIES.index("texture")


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on."""

    out: Path
    minutes: float
    seed: int
    threads: int
    start: Path | None = None
    """A file of an earlier run to resume from; its classes need not be the same."""
    batch: int = 64
    """Images per process and step."""
    peak_rate: float = 2e-3
    weight_decay: float = 0.03
    smoothing: float = 0.1
    strength: float = 0.6
    """How strong the distortions become; a longer run can bear more."""
    warm_up: float = 0.04
    """The share of the run over which the learning rate rises."""


# --- putting images together ------------------------------------------------------------------


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _warp(families: Tensor, side: int, strength: float, generator: torch.Generator) -> Tensor:
    """Give one random sampling grid per mask: crop, turn, stretch, shear, mirror and bend."""
    count = len(families)
    glyph, texture = families == GLYPH, families == TEXTURE

    def spread(low: float, high: float) -> Tensor:
        return _uniform((count, 1, 1), low * strength, high * strength, generator)

    limit = torch.where(texture, 0.15, torch.where(glyph, 0.26, 0.45)).view(-1, 1, 1)
    turn, zoom, stretch = spread(-1.0, 1.0) * limit, spread(-0.4, 0.35).exp(), spread(-0.2, 0.2).exp()
    shear, right, down = spread(-0.25, 0.25), spread(-0.25, 0.25), spread(-0.25, 0.25)
    mirrored = (torch.rand(count, generator=generator) < 0.5) & ~glyph & ~texture
    mirror = torch.where(mirrored, -1.0, 1.0).view(-1, 1, 1)
    axis = (torch.arange(side) + 0.5) * (2.0 / side) - 1.0
    x, y = axis * mirror, axis[:, None]
    across = (turn.cos() * stretch * x + (shear - turn.sin()) * y) * zoom + right
    along = (turn.sin() * x + turn.cos() / stretch * y) * zoom + down
    # A bicubic surface over a 4 by 4 grid of random nodes bends the picture.
    nodes = torch.randn((count, 2, 4, 4), generator=generator) * spread(0.0, 0.07)[:, None]
    nodes[texture] *= 0.3
    smooth = F.interpolate(torch.eye(4)[None, None], size=(side, 4), mode="bicubic")[0, 0]
    return (torch.stack((across, along), 1) + smooth @ nodes @ smooth.T).permute(0, 2, 3, 1)


def _fill(colour: Tensor, textures: Tensor, plain: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Paint whole images: a colour each, a linear change of light and a faint texture."""
    count = len(colour)
    axis = torch.linspace(-1.0, 1.0, side)
    slope = torch.randn((count, 2, 1, 1), generator=generator) * 0.12
    light = slope[:, :1] * axis[:, None] + slope[:, 1:] * axis
    everywhere = torch.full((count,), TEXTURE)
    grid = _warp(everywhere, side, 1.0, generator) * _uniform((count, 1, 1, 1), 0.3, 1.2, generator)
    pattern = F.grid_sample(textures, grid, padding_mode="reflection", align_corners=False) - 0.5
    strength = _uniform((count, 1, 1, 1), -0.5, 0.7, generator).clamp_min(0.0) * ~plain[:, None, None, None]
    tint = 1.0 + 0.5 * torch.randn((count, 3, 1, 1), generator=generator)
    return colour[:, :, None, None] + light + pattern * strength * tint


def compose(bank: Bank, chosen: Tensor, side: int, strength: float, generator: torch.Generator) -> Tensor:
    """Turn the chosen masks into normalised RGB images of ``side`` by ``side`` pixels.

    ``strength``, from 0 to 1, says how much masks are distorted, and how often fills have a
    texture and pictures lose their sharpness.
    """
    count = len(chosen)
    families = bank.families[chosen]
    texture = families == TEXTURE
    masks = bank.masks[chosen].unsqueeze(1).float() / 255.0
    grid = _warp(families, side, strength, generator)
    shape = F.grid_sample(masks, grid, padding_mode="zeros", align_corners=False)
    if bool(texture.any()):
        shape[texture] = F.grid_sample(masks[texture], grid[texture], padding_mode="reflection", align_corners=False)

    light = torch.rand((count, 1), generator=generator)
    other = (light + _uniform((count, 1), 0.35, 0.65, generator)) % 1.0
    hue = 0.18 * torch.randn((2, count, 3), generator=generator)
    hue *= torch.rand((count, 1), generator=generator) > 0.25
    pool = torch.nonzero(bank.families == TEXTURE).flatten()
    picks = pool[torch.randint(len(pool), (2, count), generator=generator)]
    plain = texture | (torch.rand(count, generator=generator) < 1.0 - 0.5 * strength)
    front, back = (
        _fill(base + hue[index], bank.masks[picks[index]].unsqueeze(1).float() / 255.0, plain, side, generator)
        for index, base in enumerate((light, other))
    )
    images = back + (front - back) * shape

    coarse = torch.rand(count, generator=generator) < 0.4 * strength
    if bool(coarse.any()):
        small = round(side * float(_uniform((1,), 0.15, 0.6, generator)))
        reduced = F.interpolate(images[coarse], size=(small, small), mode="bilinear", antialias=True)
        images[coarse] = F.interpolate(reduced, size=(side, side), mode="bilinear")
    noise = torch.randn(images.shape, generator=generator)
    images = images + noise * _uniform((count, 1, 1, 1), 0.0, 0.06, generator)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (images.clamp(0.0, 1.0) - mean) / std


def _shuffled(total: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of mask numbers indefinitely, every mask once before any comes again."""
    while True:
        yield from torch.split(torch.randperm(total, generator=generator), batch)


# --- saving -----------------------------------------------------------------------------------


def shippable(model: nn.Module) -> dict[str, Tensor]:
    """Give the weights as they are shipped: half precision, without the final layer."""
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith(HEAD)}
    halved = {name: value.half() if value.is_floating_point() else value for name, value in kept.items()}
    for name, value in halved.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} does not fit into half precision")
    return halved


def save(model: nn.Module, settings: Settings, *, images: int, classes: int, minutes: float) -> None:
    """Write the file in one step, so that a reader never sees half of it."""
    metadata = {
        "architecture": "torchvision.models.mobilenet_v3_small",
        "left_out": HEAD.rstrip("."),
        "image_size": "48",
        "mean": ",".join(map(str, MEAN)),
        "std": ",".join(map(str, STD)),
        "colour": "RGB in 0..1, then (x - mean) / std; bilinear resize",
        "data": "images drawn by formula: fractals, contours, textures and glyphs other than digits",
        "classes": str(classes),
        "images_seen": str(images),
        "minutes": f"{minutes:.1f}",
        "seed": str(settings.seed),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "licence": "Apache-2.0",
    }
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    partial = settings.out.with_name(settings.out.name + ".partial")
    save_file(shippable(model), str(partial), metadata=metadata)
    partial.chmod(0o644)  # the library leaves it readable by its owner only
    partial.replace(settings.out)


def load(model: nn.Module, start: Path) -> tuple[int, float]:
    """Take over an earlier run's weights; give the images it saw and the minutes it took."""
    with safe_open(str(start), framework="pt") as opened:
        header = opened.metadata()
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    model.load_state_dict(weights, strict=False)
    return int(header["images_seen"]), float(header["minutes"])


# --- training ---------------------------------------------------------------------------------


def learning_rate(settings: Settings, progress: float) -> float:
    """Rise linearly, then fall along a cosine to nearly nothing; ``progress`` goes from 0 to 1."""
    if progress < settings.warm_up:
        return settings.peak_rate * max(0.02, progress / settings.warm_up)
    rest = (min(1.0, progress) - settings.warm_up) / (1.0 - settings.warm_up)
    return settings.peak_rate * max(1e-3, 0.5 * (1.0 + math.cos(math.pi * rest)))


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """Decay matrices and kernels only; biases and normalisation parameters are left alone."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings.peak_rate,
    )


def _share(gradients: list[Tensor], extra: Tensor) -> Tensor:
    """Average gradients over the processes in place, clip them, and return the average of ``extra``."""
    flat = torch.cat([gradient.flatten() for gradient in gradients] + [extra])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    body, shared = flat[: -len(extra)], flat[-len(extra) :]
    body *= (5.0 / body.norm().clamp_min(1e-6)).clamp_max(1.0)
    for gradient, part in zip(gradients, torch.split(body, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
    return shared


def _average_statistics(model: nn.Module) -> None:
    """Average the running statistics of batch normalisation over the processes."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer.div_(dist.get_world_size())


def train(rank: int, settings: Settings, bank: Bank, meeting_point: str) -> None:
    """Run one of the training processes from start to end; the first one saves and reports."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=settings.threads)
    torch.manual_seed(settings.seed)
    model = mobilenet_v3_small(weights=None, num_classes=bank.classes).train()
    earlier_images, earlier_minutes = load(model, settings.start) if settings.start else (0, 0.0)
    optimizer = _optimizer(model, settings)
    sides = torch.Generator().manual_seed(settings.seed)  # the same in every process
    own = torch.Generator().manual_seed(settings.seed * 1000 + 1 + rank)
    torch.manual_seed(settings.seed * 1000 + 1 + rank)  # dropout
    batches = _shuffled(len(bank.labels), settings.batch, own)

    started = time.monotonic()
    progress, step, images, saves = 0.0, 0, 0, 0
    recent = torch.zeros(2)
    while progress < 1.0:
        side = SIDES[int(torch.randint(len(SIDES), (1,), generator=sides))]
        chosen = next(batches)
        labels = bank.labels[chosen]
        strength = settings.strength * min(1.0, 0.2 + progress / EASY)
        scores = model(compose(bank, chosen, side, strength, own))
        loss = F.cross_entropy(scores, labels, label_smoothing=settings.smoothing)
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        right = (scores.detach().argmax(1) == labels).float().mean()
        elapsed = (time.monotonic() - started) / 60.0
        extra = torch.stack((loss.detach(), right, torch.tensor(elapsed / settings.minutes)))
        shared = _share([p.grad for p in model.parameters() if p.grad is not None], extra)
        progress = float(shared[2])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, progress)
        optimizer.step()
        step += 1
        images += len(chosen) * settings.threads
        recent = shared[:2] if step == 1 else 0.98 * recent + 0.02 * shared[:2]
        if progress >= 1.0 or int(progress * settings.minutes) > saves:
            saves = int(progress * settings.minutes)
            _average_statistics(model)
            if rank == 0:
                total, spent = earlier_images + images, earlier_minutes + elapsed
                save(model, settings, images=total, classes=bank.classes, minutes=spent)
                print(
                    f"{elapsed:5.1f} min  step {step:6d}  images {images:8d}  side {side}  "
                    f"loss {float(recent[0]):.3f}  accuracy {float(recent[1]):.3f}",
                    flush=True,
                )
    dist.destroy_process_group()


def main() -> None:
    """Read the command line, draw the bank, and train."""
    parser = argparse.ArgumentParser(description="Pretrain the starter backbone on images drawn by formula.")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--minutes", type=float, default=40.0, help="how long to train, drawing not included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="how many single-threaded processes train together")
    parser.add_argument("--start", type=Path, help="resume from the file of an earlier run")
    given = parser.parse_args()
    settings = Settings(given.out, given.minutes, given.seed, given.threads, given.start)

    torch.set_num_threads(settings.threads)
    bank = draw_bank(Plan(), settings.seed)
    print(f"drew {len(bank.labels)} masks of {bank.classes} classes", flush=True)
    for tensor in (bank.masks, bank.labels, bank.families):
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (settings, bank, str(Path(folder) / "meeting"))
        spawn(train, args=arguments, nprocs=settings.threads)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
