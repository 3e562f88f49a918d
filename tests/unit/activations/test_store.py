"""The store gives what was computed, bit for bit, or nothing, after any kill or truncation."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from thawline.activations import ActivationInputs, ActivationKey, ActivationStore
from thawline.activations.fill import fill
from thawline.backbones import Backbone, LayerGroup, Preprocessing, section
from thawline.config import TrainConfig
from thawline.data import Manifest, Row, StreamedImages, decoded
from thawline.data.contract import content_digest
from thawline.exceptions import ActivationError, DataError
from thawline.training import Augmentation, ImageInputs, runtime_for

SIZE, ROWS = 8, 50
PREPROCESSING = Preprocessing(SIZE, SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear")
RUNTIME = runtime_for(TrainConfig(device="cpu"))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.neck(self.body(self.stem(images))))


def make_backbone(scale: float = 1.0) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Net()
    with torch.no_grad():
        module.stem.weight.mul_(scale)

    def group(name: str, output: str) -> LayerGroup:
        tensors = tuple(key for key in module.state_dict() if key.startswith(f"{name}."))
        return LayerGroup(name, tensors, (name,), output)

    groups = (group("stem", "stem"), group("body", "body_2"))
    return Backbone("net", module, groups, group("head", "head"), PREPROCESSING, "0" * 16, {})


def make_images(rows: int = ROWS, augmentation: Augmentation | None = None) -> ImageInputs:
    pixels = np.random.default_rng(0).integers(0, 256, (rows, SIZE, SIZE, 3)).astype(np.uint8)
    return ImageInputs(pixels, np.arange(rows) % 2, PREPROCESSING, RUNTIME, augmentation)


def key(boundary: int = 1, **changes: Any) -> ActivationKey:
    made = ActivationKey(
        data="data",
        split="train",
        view="plain",
        backbone="net",
        weights="0" * 16,
        boundary=boundary,
        preprocessing=PREPROCESSING,
        computed_in="cpu fp32",
        stored_as="float32",
        libraries="torch",
    )
    return replace(made, **changes)


def expected(boundary: int, images: ImageInputs | None = None, view: int = 0) -> Tensor:
    backbone, images = make_backbone(), images or make_images()
    backbone.module.to(memory_format=RUNTIME.memory_format).eval()
    rows = np.arange(len(images))
    with torch.no_grad():
        return section(backbone, 0, boundary)(images.prepare(images.read(rows, view), rows, view))


def fill_store(
    store: ActivationStore, keys: list[ActivationKey], images: ImageInputs | None = None, **more: Any
) -> Any:
    return fill(
        store,
        more.pop("backbone", None) or make_backbone(),
        images or make_images(),
        more.pop("epoch", 0),
        {each.boundary: each for each in keys},
        RUNTIME,
        batch_size=8,
        **more,
    )


def all_rows(store: ActivationStore, wanted: ActivationKey) -> Tensor:
    opened = store.open(wanted)
    assert opened is not None
    return opened.rows(np.arange(len(opened)))


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return ActivationStore(tmp_path / "store")


SMALL_BLOCKS = {"block_bytes": 4 * 4 * SIZE * SIZE * 16}
"""A block of sixteen rows, so that fifty make several."""


def test_what_is_read_is_what_the_layers_give_bit_for_bit_at_every_boundary(store: ActivationStore) -> None:
    assert fill_store(store, [key(1), key(2)]) == {}
    for boundary in (1, 2):
        computed, stored = expected(boundary), all_rows(store, key(boundary))
        assert torch.equal(stored, computed)
        assert stored.stride() == computed.stride(), "the memory order that the network works in"
    rows = np.array([3, 17, 41])
    opened = store.open(key(2))
    assert opened is not None
    assert torch.equal(opened.rows(rows), expected(2)[rows])


def test_a_backbone_can_be_trained_after_it_has_filled_the_store(store: ActivationStore) -> None:
    backbone = make_backbone()
    fill_store(store, [key(1)], backbone=backbone)
    section(backbone, 1)(all_rows(store, key(1))).sum().backward()
    assert backbone.module.get_parameter("body.0.weight").grad is not None


def test_one_pass_fills_all_boundaries(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images()
    read: list[int] = []
    original = images.read
    monkeypatch.setattr(images, "read", lambda rows, epoch: (read.extend(rows), original(rows, epoch))[1])
    fill_store(store, [key(1), key(2)], images)
    assert len(read) == ROWS + 2, "every image once, and two to learn the shapes"
    fill_store(store, [key(1), key(2)], images)
    assert len(read) == ROWS + 2, "what is there is not computed again"


def test_every_view_is_stored_by_itself_and_takes_its_turn(store: ActivationStore) -> None:
    augmentation = Augmentation("light", views=2)
    images = make_images(augmentation=augmentation)
    keys = [key(1, view=f"view {view}") for view in (0, 1)]
    for view, wanted in enumerate(keys):
        fill_store(store, [wanted], images, epoch=view)
    views = [opened for wanted in keys if (opened := store.open(wanted)) is not None]
    inputs = ActivationInputs(views, images.labels, 1, RUNTIME, augmentation)
    rows = np.arange(5)
    got = [inputs.prepare(inputs.read(rows, epoch), rows, epoch) for epoch in range(3)]
    assert torch.equal(got[0], expected(1, images, view=0)[:5])
    assert torch.equal(got[1], expected(1, images, view=1)[:5])
    assert torch.equal(got[2], got[0])
    assert not torch.equal(got[0], got[1])


def test_half_precision_is_near_and_takes_half_the_space(store: ActivationStore) -> None:
    half = key(1, stored_as="float16")
    fill_store(store, [key(1), half])
    fill_store(store, [half])
    exact, short = store.open(key(1)), store.open(half)
    assert short is not None
    if exact is not None:
        assert short.bytes * 2 == exact.bytes
    torch.testing.assert_close(short.rows(np.arange(ROWS)).float(), expected(1), rtol=1e-3, atol=1e-3)


def test_numbers_too_large_for_half_precision_are_not_stored_and_the_reason_is_given(store: ActivationStore) -> None:
    half = key(1, stored_as="float16")
    refused = fill_store(store, [half, key(2)], backbone=make_backbone(scale=1e6))
    assert list(refused) == [1]
    assert "do not fit into half precision" in refused[1]
    assert store.open(half) is None
    assert store.open(key(2)) is not None
    assert not list(store.folder.glob("*.partial"))


@pytest.mark.parametrize("field", ["data", "view", "weights", "computed_in", "libraries", "backbone", "split"])
def test_a_key_that_differs_in_one_thing_finds_nothing(store: ActivationStore, field: str) -> None:
    fill_store(store, [key(1)])
    assert store.open(key(1)) is not None
    assert store.open(key(1, **{field: "other"})) is None
    assert store.open(key(1, preprocessing=replace(PREPROCESSING, image_size=9))) is None


def data_file(store: ActivationStore) -> Path:
    (path,) = store.folder.glob("*.bin")
    return path


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def overwrite(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def remove(path: Path) -> None:
    path.unlink()


def garble_description(path: Path) -> None:
    path.with_suffix(".json").write_text("{")


def describe_another(path: Path) -> None:
    described = json.loads(path.with_suffix(".json").read_text())
    described["key"]["data"] = "other"
    path.with_suffix(".json").write_text(json.dumps(described))


@pytest.mark.parametrize("damage", [cut_off, overwrite, remove, garble_description, describe_another])
def test_a_damaged_or_foreign_file_is_not_opened_and_is_rebuilt(
    store: ActivationStore, damage: Callable[[Path], None]
) -> None:
    fill_store(store, [key(1)])
    damage(data_file(store))
    assert store.open(key(1)) is None
    assert fill_store(store, [key(1)]) == {}
    assert torch.equal(all_rows(store, key(1)), expected(1))


def test_a_bit_that_the_disk_turned_is_found_by_the_checksum(store: ActivationStore) -> None:
    fill_store(store, [key(1)])
    path = data_file(store)
    before = path.stat()
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the disk does not tell
    assert store.open(key(1)) is not None, "size and time are those that were written"
    assert not store.verify(key(1))
    fill_store(store, [key(1)])
    assert torch.equal(all_rows(store, key(1)), expected(1))


class Interrupted(BaseException):
    """A kill that leaves the test alive."""


def test_a_pass_that_was_stopped_resumes_where_it_was(store: ActivationStore) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 32:
            raise Interrupted

    with pytest.raises(Interrupted):
        fill_store(store, [key(1), key(2)], on_progress=stop, **SMALL_BLOCKS)
    assert store.open(key(1)) is None, "half a file is none"
    told: list[int] = []
    fill_store(store, [key(1), key(2)], on_progress=lambda done, total: told.append(done), **SMALL_BLOCKS)
    assert told == [48, 50]
    for boundary in (1, 2):
        assert torch.equal(all_rows(store, key(boundary)), expected(boundary))


def test_a_torn_block_of_a_stopped_pass_is_computed_again(store: ActivationStore) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 32:
            raise Interrupted

    with pytest.raises(Interrupted):
        fill_store(store, [key(1)], on_progress=stop, **SMALL_BLOCKS)
    (partial,) = store.folder.glob("*.partial")
    row_bytes = 4 * SIZE * SIZE * 4
    with partial.open("rb+") as file:
        file.seek(20 * row_bytes)
        file.write(b"\xff" * 16)
    told: list[int] = []
    fill_store(store, [key(1)], on_progress=lambda done, total: told.append(done), **SMALL_BLOCKS)
    assert told[0] == 32, "the first block of sixteen was whole"
    assert torch.equal(all_rows(store, key(1)), expected(1))


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    size = ROWS * 4 * SIZE * SIZE * 4
    store = ActivationStore(tmp_path / "store", budget=2 * size)
    old, used = key(1, data="old"), key(1, data="used")
    fill_store(store, [old])
    fill_store(store, [used])
    for digest, seconds in ((old.digest, 100), (used.digest, 50)):
        for path in store.folder.glob(f"{digest}.*"):
            os.utime(path, (seconds, seconds))
    description = store.folder / f"{used.digest}.json"
    size_and_time = json.loads(description.read_text())
    size_and_time["modified"] = (store.folder / f"{used.digest}.bin").stat().st_mtime_ns
    description.write_text(json.dumps(size_and_time))
    assert store.open(used) is not None  # now it was used last
    assert fill_store(store, [key(1, data="new")]) == {}
    assert store.open(old) is None
    assert store.open(used) is not None
    assert store.bytes_used() <= 2 * size


def test_more_than_the_budget_is_refused_with_both_numbers_and_nothing_is_lost(tmp_path: Path) -> None:
    size = ROWS * 4 * SIZE * SIZE * 4
    store = ActivationStore(tmp_path / "store", budget=size - 1)
    refused = fill_store(store, [key(1), key(2)])
    assert list(refused) == [1]
    assert "do not fit into the budget" in refused[1]
    assert store.open(key(2)) is not None, "the smaller one fits"


def test_a_full_disk_is_a_reason_and_not_an_end(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("thawline.activations.store.os.posix_fallocate", full)
    refused = fill_store(store, [key(1)])
    assert "is full (No space left on device)" in refused[1]
    assert not list(store.folder.glob("*.partial"))


def test_a_writer_that_has_no_room_says_so(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "store", budget=10)
    with pytest.raises(ActivationError, match="budget"):
        store.writer(key(1), torch.zeros(2, 4, 8, 8), 100)


def _fill_and_tell(folder: Path, connection: Connection) -> None:
    torch.set_num_threads(1)
    passes: list[int] = []
    connection.send("ready")
    connection.recv()
    store = ActivationStore(folder)
    fill_store(store, [key(1), key(2)], on_progress=lambda done, total: passes.append(done))
    connection.send((len(passes), all_rows(store, key(1)).numpy(), all_rows(store, key(2)).numpy()))


@pytest.mark.xdist_group("processes")
def test_of_four_processes_one_computes_and_all_read_the_same(store: ActivationStore) -> None:
    context = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for _ in range(4):
        ours, theirs = context.Pipe()
        process = context.Process(target=_fill_and_tell, args=(store.folder, theirs))
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        assert pipe.recv() == "ready"
    for pipe in pipes:
        pipe.send("go")
    answers = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    assert sorted(passes for passes, _, _ in answers) == [0, 0, 0, 1]
    for _, first, second in answers:
        assert np.array_equal(first, expected(1).numpy())
        assert np.array_equal(second, expected(2).numpy())


def _fill_until_killed(folder: Path, connection: Connection) -> None:
    torch.set_num_threads(1)

    def tell(done: int, total: int) -> None:
        connection.send(done)
        if done >= 32:
            connection.recv()  # indefinitely: the kill comes here, in the middle of the pass

    fill_store(ActivationStore(folder), [key(1)], on_progress=tell, **SMALL_BLOCKS)


@pytest.mark.xdist_group("processes")
def test_a_killed_builder_holds_nobody_up_and_is_resumed(store: ActivationStore) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_fill_until_killed, args=(store.folder, theirs))
    process.start()
    while ours.recv() < 32:
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert store.open(key(1)) is None
    told: list[int] = []
    fill_store(store, [key(1)], on_progress=lambda done, total: told.append(done))
    assert told == [50], "the eighteen rows that were missing, in one block"
    assert torch.equal(all_rows(store, key(1)), expected(1))


def stream_images(folder: Path) -> ImageInputs:
    """The same images as ``make_images``, decoded from files whenever they are read."""
    folder.mkdir()
    rows = []
    for number, pixels in enumerate(np.asarray(make_images().images)):
        file = folder / f"{number}.png"
        Image.fromarray(pixels).save(file)
        rows.append(Row(file.name, number % 2, "train", content_digest(file.read_bytes()), None))
    manifest = Manifest(folder, ("a", "b"), tuple(rows), (), "digest", "files")
    view: dict[str, Any] = {"resize_size": SIZE, "crop_size": SIZE, "interpolation": "bilinear"}
    images, labels = decoded(manifest, **view, cache_dir=folder / "cache", cache="off").split("train")
    return ImageInputs(images, labels, PREPROCESSING, RUNTIME)


def _stream_until_killed(folder: Path, files: Path, connection: Connection) -> None:
    def tell(done: int, total: int) -> None:
        connection.send(done)
        if done >= 32:
            connection.recv()  # indefinitely: the kill comes here, in the middle of the pass

    images = stream_images(files)
    fill_store(ActivationStore(folder), [key(1), key(2)], images, on_progress=tell, **SMALL_BLOCKS)


@pytest.mark.xdist_group("processes")
def test_a_killed_pass_over_images_that_are_not_kept_decoded_resumes_and_stores_the_same_bits(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_stream_until_killed, args=(store.folder, tmp_path / "before", theirs))
    process.start()
    while ours.recv() < 32:
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    at_once: list[int] = []
    decode = StreamedImages._decoded
    monkeypatch.setattr(
        StreamedImages, "_decoded", lambda images, rows: (at_once.append(len(rows)), decode(images, rows))[1]
    )
    told: list[int] = []
    images = stream_images(tmp_path / "files")
    fill_store(store, [key(1), key(2)], images, on_progress=lambda done, total: told.append(done), **SMALL_BLOCKS)
    assert told == [48, 50]
    assert at_once == [2, 8, 8, 2], "two to learn the shapes, then what was missing, a batch at a time"
    for boundary in (1, 2):
        assert torch.equal(all_rows(store, key(boundary)), expected(boundary))


def test_an_image_that_changes_while_its_activations_are_stored_ends_the_pass_and_nothing_is_published(
    store: ActivationStore, tmp_path: Path
) -> None:
    images = stream_images(tmp_path / "files")

    def change(done: int, total: int) -> None:
        (tmp_path / "files" / "40.png").write_bytes(b"something else")

    with pytest.raises(DataError, match=r"1 image changed since .*40\.png: its content has changed"):
        fill_store(store, [key(1)], images, on_progress=change, **SMALL_BLOCKS)
    assert store.open(key(1)) is None


def test_progress_is_kept_after_some_images_however_little_is_stored_of_each(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["thawline.activations.fill"], "_MOST_ROWS", 20)
    told: list[int] = []
    fill_store(store, [key(2)], on_progress=lambda done, total: told.append(done))
    assert told == [16, 32, 48, 50], "whole batches"


def test_small_activations_are_kept_in_memory_and_large_ones_read_from_the_file(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_store(store, [key(1)])
    rows = np.array([1, 5, 9])

    def read(**limits: int) -> tuple[Tensor, bool]:
        opened = store.open(key(1))
        assert opened is not None
        inputs = ActivationInputs([opened], make_images().labels, 1, RUNTIME, **limits)
        monkeypatch.setattr(opened, "_array", None)  # whoever reads the file now fails
        try:
            return inputs.prepare(inputs.read(rows, 0), rows, 0), True
        except TypeError:
            return torch.empty(0), False

    kept, from_memory = read()
    assert from_memory
    assert torch.equal(kept, expected(1)[rows])
    assert torch.equal(read(block=1)[0], kept), "however much is copied at a time"
    assert not read(resident=10)[1]
