"""Data too large to store decoded: small JPEGs in tars, streamed through the frozen layers into the store.

python benchmarks/streaming.py --data ../shared/data/clothing/train --images 200000

The pass is killed once in the middle and resumed. It is compared, block by block within the same run, with only
decoding and only the forward pass. Memory is the total of all processes.
"""

import argparse
import io
import multiprocessing
import os
import random
import signal
import statistics
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

PER_SHARD = 5000
BARE_ROWS = 256
"""Images of the bare passes for each block."""
CHECKED = 20
"""Batches recomputed at the end for comparison with the stored ones."""


def main() -> None:
    """Create the tars, read them, fill the store, and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="class folders of photographs, which are repeated")
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--side", type=int, default=64, help="side of each JPEG in pixels")
    parser.add_argument("--image-size", type=int, default=224, help="side of the network's input in pixels")
    parser.add_argument("--backbone", default="mobilenet_v3_small")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="folder for the data; by default in the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        os.environ["THAWLINE_HOME"] = str(folder / "home")
        in_process(None, make_shards, folder / "tars", options)
        tars = len(list((folder / "tars").iterdir()))
        print(f"{options.images} JPEGs of {options.side} px in {tars} tars, {size(folder / 'tars'):.2f} GB", flush=True)
        measure(folder, options)


def make_shards(_: Connection, target: Path, options: argparse.Namespace) -> None:
    """WebDataset shards of repeated photographs with random crops and mirroring, so that all files differ."""
    target.mkdir()
    draw, side = random.Random(0), options.side
    files = sorted(options.data.rglob("*.jpg"))
    draw.shuffle(files)
    larger = round(side * 1.25)
    photographs = []
    for file in files[: options.images]:
        with Image.open(file) as image:
            photographs.append((file.parent.name, image.convert("RGB").resize((larger, larger))))
    for shard, start in enumerate(range(0, options.images, PER_SHARD)):
        with tarfile.open(target / f"photos-{shard:05d}.tar", "w") as tar:
            for number in range(start, min(start + PER_SHARD, options.images)):
                label, photograph = photographs[number % len(photographs)]
                left, top = (draw.randint(0, larger - side) for _ in range(2))
                picture = photograph.crop((left, top, left + side, top + side))
                if draw.random() < 0.5:
                    picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                buffer = io.BytesIO()
                picture.save(buffer, "JPEG", quality=draw.randint(80, 95))
                for ending, content in (("jpg", buffer.getvalue()), ("cls", label.encode())):
                    info = tarfile.TarInfo(f"{number:07d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Read, fill with a kill, and print the measurements."""
    from thawline.config import DataConfig
    from thawline.data import decoded, scan

    watch = Watch()
    began = time.perf_counter()
    # Crops of a photograph are near-duplicates, a hundred of each.
    manifest = scan(DataConfig(path=folder / "tars", near_duplicates="off"))
    read = time.perf_counter() - began
    scanned = watch.peak()
    view = preprocessing(options)
    images = decoded(
        manifest,
        resize_size=view.resize_size,
        crop_size=view.image_size,
        interpolation=view.interpolation,
        crop_mode=view.crop_mode,
        cache_dir=folder / "home" / "cache" / "decoded",
        cache="off",
    )
    half = options.images // 2
    killed = in_process(lambda done: done >= half, fill_blocks, folder, images.path, options)
    resumed = in_process(None, fill_blocks, folder, images.path, options)
    filled = watch.peak()
    blocks = [*killed, *resumed]
    seconds = sum(block["seconds"] for block in blocks)
    rows = sum(block["rows"] for block in blocks)
    ratios = [(block["decode"] + block["forward"]) / (block["seconds"] / block["rows"]) for block in blocks]
    again = resumed[0]["done"] - resumed[0]["rows"]
    (checked,) = in_process(None, check, folder, images.path, options)
    print(f"reading: {read:.0f} s, peak {scanned[0]:.2f} GB resident, {scanned[1]:.2f} GB anonymous")
    print(
        f"filling: {rows / seconds:.0f} images a second; bare decoding "
        f"{1 / statistics.median(block['decode'] for block in blocks):.0f}, bare forward "
        f"{1 / statistics.median(block['forward'] for block in blocks):.0f}; peak {filled[0]:.2f} GB resident, "
        f"{filled[1]:.2f} GB anonymous"
    )
    print(
        f"of bare decoding and forward in sequence: median {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f} over {len(ratios)} blocks)"
    )
    before = killed[-1]["done"]
    print(f"killed after {before} images, resumed at {again}; {checked['rows']} sampled rows have the same bits")
    home = folder / "home" / "cache"
    kept = {name: size(home / name) for name in ("unpacked", "decoded", "activations")}
    print(
        f"on the disk: {kept['unpacked']:.2f} GB of JPEGs, {kept['activations']:.2f} GB of activations, "
        f"{kept['decoded'] * 1000:.1f} MB that list the files; decoded it would be {images.images.nbytes / 1e9:.1f} GB"
    )


def in_process(
    until: Callable[[int], bool] | None, function: Callable[..., None], *arguments: Any
) -> list[dict[str, Any]]:
    """Results of a function in its own process, which is killed at a given point."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(theirs, *arguments))
    process.start()
    theirs.close()
    sent: list[dict[str, Any]] = []
    try:
        while True:
            sent.append(ours.recv())
            if until is not None and until(sent[-1]["done"]):
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
    except EOFError:
        pass
    process.join()
    return sent


class Pass:
    """The state of a search's worker that fills the store."""

    def __init__(self, folder: Path, listed: Path, options: argparse.Namespace) -> None:
        from thawline import backbones
        from thawline.activations import ActivationKey, ActivationStore
        from thawline.config import TrainConfig
        from thawline.data import DecodedImages, StreamedImages
        from thawline.training import ImageInputs, runtime_for, set_up_process

        set_up_process(threads=None, seed=0)
        self.runtime = runtime_for(TrainConfig(device="cpu"))
        self.backbone = backbones.create(
            options.backbone, num_classes=10, weights="none", image_size=options.image_size
        )
        opened = DecodedImages.open(listed)
        assert isinstance(opened.images, StreamedImages)
        self.images = opened.images
        assert isinstance(self.backbone.preprocessing, backbones.Preprocessing)
        self.inputs = ImageInputs(opened.images, opened.labels, self.backbone.preprocessing, self.runtime)
        self.store = ActivationStore(folder / "home" / "cache" / "activations")
        self.deepest = len(self.backbone.layer_groups)
        self.key = ActivationKey(
            data=listed.stem,
            split="all",
            view="plain",
            backbone=options.backbone,
            weights=self.backbone.weights_digest,
            boundary=self.deepest,
            preprocessing=self.backbone.preprocessing,
            computed_in=str(self.runtime),
            stored_as="float16",
            libraries="",
        )
        self.backbone.module.to(memory_format=self.runtime.memory_format).eval()


def fill_blocks(connection: Connection, folder: Path, listed: Path, options: argparse.Namespace) -> None:
    """Fill the store; sends the seconds of each block, and of bare decoding and forward."""
    from thawline.activations.fill import fill

    work = Pass(folder, listed, options)
    most = 2048 // options.batch_size * options.batch_size  # of a block
    began = time.perf_counter()

    def block(done: int, total: int) -> None:
        nonlocal began
        seconds, start = time.perf_counter() - began, (done - 1) // most * most
        decode, forward = bare(work, np.arange(max(start, done - BARE_ROWS), done), options.batch_size)
        connection.send({"done": done, "rows": done - start, "seconds": seconds, "decode": decode, "forward": forward})
        began = time.perf_counter()

    fill(
        work.store,
        work.backbone,
        work.inputs,
        0,
        {work.deepest: work.key},
        work.runtime,
        batch_size=options.batch_size,
        on_progress=block,
    )


def bare(work: Pass, rows: np.ndarray, batch_size: int) -> tuple[float, float]:
    """Seconds per image of only decoding, with a thread per core, and of only normalising and the layers."""
    import torch

    from thawline.backbones import section
    from thawline.data import images

    view = work.images.view
    whole = section(work.backbone, 0, work.deepest)
    files = [work.images.file_of(int(row)) for row in rows]

    def decode(files: Sequence[Path]) -> list[np.ndarray]:
        return [
            images.seen(
                file.read_bytes(),
                max_pixels=view.max_pixels,
                resize_size=view.resize_size,
                crop_size=view.crop_size,
                interpolation=view.interpolation,
                crop_mode=view.crop_mode,
            )
            for file in files
        ]

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        pixels = [each for part in pool.map(decode, [files[n::threads] for n in range(threads)]) for each in part]
        decoded = time.perf_counter() - began
    parts = [torch.from_numpy(np.stack(pixels[i : i + batch_size])) for i in range(0, len(pixels), batch_size)]
    began = time.perf_counter()
    with torch.inference_mode():
        for start, part in zip(range(0, len(rows), batch_size), parts, strict=True):
            whole(work.inputs.prepare(part, rows[start : start + batch_size], 0))
    return decoded / len(rows), (time.perf_counter() - began) / len(rows)


def check(connection: Connection, folder: Path, listed: Path, options: argparse.Namespace) -> None:
    """Recompute some batches, and compare them bitwise with the stored ones."""
    import torch

    from thawline.backbones import section

    work = Pass(folder, listed, options)
    stored = work.store.open(work.key)
    assert stored is not None
    assert len(stored) == options.images
    whole, equal = section(work.backbone, 0, work.deepest), 0
    starts = range(0, options.images, options.batch_size)
    for start in random.Random(0).sample(starts, min(CHECKED, len(starts))):
        rows = np.arange(start, min(start + options.batch_size, options.images))
        with torch.inference_mode():
            computed = whole(work.inputs.prepare(work.inputs.read(rows, 0), rows, 0)).half()
        assert torch.equal(stored.rows(rows), computed), f"rows from {start} differ"
        equal += len(rows)
    connection.send({"rows": equal})


def preprocessing(options: argparse.Namespace) -> Any:
    """The network's preprocessing."""
    from thawline import backbones

    return backbones.preprocessing_of(options.backbone, weights="none", image_size=options.image_size)


def size(folder: Path) -> float:
    """Total size of all files below, in GB."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9


class Watch:
    """Resident and anonymous memory of this process and its children, sampled twenty times a second."""

    def __init__(self) -> None:
        self._most = [0.0, 0.0]
        threading.Thread(target=self._look, daemon=True).start()

    def peak(self) -> tuple[float, float]:
        """The peaks of both since the last call, in GB."""
        resident, anonymous = self._most
        self._most = [0.0, 0.0]
        return resident, anonymous

    def _look(self) -> None:
        own = psutil.Process()
        while True:
            now = [0.0, 0.0]
            for process in [own, *own.children(recursive=True)]:
                try:
                    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                except OSError:  # it has ended
                    continue
                for place, field in enumerate(("VmRSS:", "RssAnon:")):
                    now[place] += sum(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e6
            self._most = [max(pair) for pair in zip(self._most, now, strict=True)]
            time.sleep(0.05)


if __name__ == "__main__":
    main()
