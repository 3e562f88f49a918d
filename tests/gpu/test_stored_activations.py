"""Storing frozen activations, and training from them, wait for nothing: counted on a GPU that is pretended."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from pretended_gpu import DEVICE, PretendedGpu
from torch import Tensor

from thawline.activations import ActivationInputs, ActivationKey, ActivationStore, profile
from thawline.activations.fill import _Pass, fill
from thawline.activations.inputs import TextActivationInputs
from thawline.config import TrainConfig
from thawline.training import ImageInputs, batches, evaluation_order, resident, runtime_for

BATCH = 8


@pytest.fixture
def filled(gpu: PretendedGpu, make_backbone: Any, images: Any, tmp_path: Path) -> Any:
    """Fills a store with so many rows; returns it with the keys, and what was waited for."""

    def run(rows: int, *, on_gpu: bool = True, **more: Any) -> tuple[ActivationStore, dict[int, ActivationKey], Any]:
        backbone = make_backbone()
        runtime = gpu.runtime if on_gpu else runtime_for(TrainConfig(device="cpu"))
        store = ActivationStore(tmp_path / f"{rows}-{on_gpu}", budget=10**9)
        keys = {
            boundary: ActivationKey(
                "data", "train", "plain", "tiny", "0", boundary, backbone.preprocessing, "fp32", "float32", ""
            )
            for boundary in (1, 3)
        }

        with gpu.modes():
            inputs = images(rows, runtime)

        def fill_it() -> None:
            refused = fill(store, backbone, inputs, 0, keys, runtime, batch_size=BATCH, **more)
            assert not refused

        if on_gpu:
            with gpu.modes():
                backbone.module.to(runtime.device)
            return store, keys, gpu.counted(fill_it)
        fill_it()
        return store, keys, Counter()

    return run


def test_filling_the_store_waits_for_nothing_and_stores_the_bits_that_a_cpu_would(
    filled: Any, gpu: PretendedGpu
) -> None:
    store, keys, waits = filled(50, exact=True)
    assert not waits, waits
    assert not gpu.behind, gpu.behind
    other, _, _ = filled(50, on_gpu=False)
    for key in keys.values():
        there, here = store.open(key), other.open(key)
        assert there is not None
        assert here is not None
        assert np.array_equal(np.asarray(there._array), np.asarray(here._array))
        assert store.verify(key)


@pytest.mark.parametrize("exact", [True, False])
def test_a_gpu_computes_more_rows_than_training_has_unless_bits_matter(
    filled: Any, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    sizes: list[int] = []
    through = _Pass._through

    def noted(self: Any, rows: np.ndarray, batch: Tensor) -> Any:
        sizes.append(len(rows))
        return through(self, rows, batch)

    monkeypatch.setattr(_Pass, "_through", noted)
    filled(50, exact=exact)
    assert max(sizes) == (BATCH if exact else 50)


def test_where_memory_does_not_suffice_it_computes_fewer(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    through = _Pass._through

    def limited(self: Any, rows: np.ndarray, batch: Tensor) -> Any:
        if len(rows) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(rows))
        return through(self, rows, batch)

    monkeypatch.setattr(_Pass, "_through", limited)
    store, keys, _ = filled(50)
    assert max(sizes) == 16
    assert sum(sizes) == 50 + 2, "two rows to learn the shapes by"
    other, _, _ = filled(50, on_gpu=False)
    opened, reference = store.open(keys[1]), other.open(keys[1])
    assert opened is not None
    assert reference is not None
    assert np.array_equal(np.asarray(opened._array), np.asarray(reference._array))


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(resident, "_cache", resident._Cache())


def read_all(inputs: Any, gpu: PretendedGpu, wanted: Tensor | None = None) -> None:
    for rows, batch in batches(inputs, evaluation_order(inputs, BATCH), 0, gpu.runtime):
        assert gpu.holds(batch)
        if wanted is not None:
            torch.testing.assert_close(batch.cpu(), wanted[rows])


@pytest.mark.parametrize("room", [10**9, 2 * 20 * 16 * 4, 0], ids=["all", "some", "none"])
def test_rows_are_read_without_waiting_whether_the_device_keeps_all_some_or_none(
    filled: Any, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    store, keys, _ = filled(50)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (room, room))
    stored = store.open(keys[3])
    assert stored is not None
    wanted = stored.rows(np.arange(50))
    with gpu.modes():
        inputs = ActivationInputs([stored], np.zeros(50, np.int64), 3, gpu.runtime)
        on_device = gpu.holds(inputs.read(np.arange(3), 0))
        read_all(inputs, gpu, wanted)
    assert on_device == (room > 0)
    assert not gpu.counted(lambda: read_all(inputs, gpu)), gpu.waits
    assert not gpu.behind, gpu.behind


@pytest.mark.parametrize("room", [10**9, 0], ids=["on the device", "on the host"])
def test_texts_of_different_lengths_are_read_without_waiting(
    gpu: PretendedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    lengths = np.array([3, 5, 2, 7, 4, 1], dtype=np.int32)
    tokens = torch.randn(int(lengths.sum()), 4, generator=torch.Generator().manual_seed(0))
    store = ActivationStore(tmp_path / "texts", budget=10**9)
    key = ActivationKey("data", "train", "plain", "tiny", "0", 1, None, "fp32", "float32", "")
    with store.building([key]):
        writer = store.writer(key, tokens, len(tokens))
        writer.write(tokens)
        store.publish(writer)
    stored = store.open(key)
    assert stored is not None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (room, room))
    with gpu.modes():
        inputs = TextActivationInputs(stored, lengths, np.zeros(6, np.int64), 1, gpu.runtime)
    read: list[Tensor] = []

    def run() -> None:
        for _, batch in batches(inputs, [np.array([1, 4]), np.array([2, 3])], 0, gpu.runtime):
            read.append(batch)

    assert not gpu.counted(run), gpu.waits
    assert not gpu.behind, gpu.behind
    starts = np.cumsum(lengths) - lengths
    assert gpu.holds(read[0])
    assert torch.equal(read[0][1, :4, :-1], tokens[starts[4] : starts[4] + 4])
    assert read[1][..., -1].sum(1).tolist() == [2, 7]


def test_the_next_trial_of_a_process_uploads_nothing_again_and_another_file_makes_room(
    filled: Any, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, keys, _ = filled(50)

    def opened(boundary: int) -> Any:
        stored = store.open(keys[boundary])
        assert stored is not None
        return ActivationInputs([stored], np.zeros(50, np.int64), boundary, gpu.runtime)

    def uploads(boundary: int) -> int:
        return gpu.counted(lambda: opened(boundary)).total()

    assert uploads(3) == 1
    assert uploads(3) == 0
    free = 50 * 8 * 6 * 6 * 4
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, free))
    assert uploads(1) == 1
    assert uploads(3) == 1, "it had to go"
    resident.keep_nothing()
    with gpu.modes():
        assert not gpu.holds(opened(3).read(np.arange(3), 0)), "memory ran out once"


def kept_elsewhere(number: int, nbytes: int) -> None:
    """Rows of another GPU, which nobody uses."""
    rows: Any = SimpleNamespace(nbytes=nbytes, device=torch.device("cuda", number))
    resident._cache.kept[("another file", number)] = (rows, WeakSet())


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the GPU's memory, which only cached rows occupy."""

    def of(total: int) -> None:
        def free(device: torch.device = DEVICE) -> tuple[int, int]:
            return total - resident._cache.bytes_on(device), total

        monkeypatch.setattr(torch.cuda, "mem_get_info", free)

    return of


def test_all_files_of_a_trial_together_get_half_of_the_memory(gpu: PretendedGpu, memory: Callable[[int], None]) -> None:
    memory(8000)
    with gpu.modes():
        views = [
            resident.keep_rows(view, 100, lambda rows: torch.zeros(rows.stop - rows.start, 5), DEVICE)
            for view in range(4)
        ]
    assert [len(view.rows) for view in views] == [100, 100, 0, 0]
    assert resident._cache.bytes_on(DEVICE) == 4000
    del views
    assert resident.room_on(DEVICE) == 4000, "of the next trial, for which they can be evicted"


def test_rows_on_another_gpu_are_no_room_here_and_go_when_the_process_trains_here(
    gpu: PretendedGpu, memory: Callable[[int], None]
) -> None:
    memory(8000)
    kept_elsewhere(1, 40_000)
    assert resident.room_on(DEVICE) == 4000
    with gpu.modes():
        kept = resident.keep_rows("a file", 1000, lambda rows: torch.zeros(rows.stop - rows.start, 5), DEVICE)
    assert len(kept.rows) == 200
    assert [place for _, place in resident._cache.kept] == [0]


def test_memory_that_runs_out_while_activations_are_stored_leaves_the_cache_to_the_trials(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_elsewhere(0, 100)
    through = _Pass._through

    def limited(self: Any, rows: np.ndarray, batch: Tensor) -> Any:
        if len(rows) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return through(self, rows, batch)

    monkeypatch.setattr(_Pass, "_through", limited)
    filled(50)
    assert not resident._cache.kept, "what nobody uses made room"
    assert resident.room_on(DEVICE) > 0


def test_where_memory_does_not_suffice_to_prepare_a_batch_it_prepares_smaller_ones(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, sizes = ImageInputs.prepare, list[int]()

    def limited(self: Any, read: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
        if len(rows) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(rows))
        return prepare(self, read, rows, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(ImageInputs, "prepare", limited)
        store, keys, _ = filled(50)
    assert max(sizes) == 16
    other, _, _ = filled(50, on_gpu=False)
    opened, reference = store.open(keys[1]), other.open(keys[1])
    assert np.array_equal(np.asarray(opened._array), np.asarray(reference._array))


def test_images_are_kept_once_they_are_read_again(gpu: PretendedGpu, images: Any) -> None:
    with gpu.modes():
        inputs = images(40, gpu.runtime, key="these")
        read_all(inputs, gpu)
        assert inputs._resident is None, "reading them once, as filling the store does, is no reason"
        read_all(inputs, gpu)
        assert gpu.holds(inputs.read(np.arange(3), 0))
        again = images(40, gpu.runtime, key="these")
    assert not gpu.counted(lambda: read_all(again, gpu)), gpu.waits
    assert torch.equal(inputs._resident.rows, inputs._from_host(slice(None)))


def test_the_profile_measures_reading_where_the_rows_lie(gpu: PretendedGpu) -> None:
    places: list[bool] = []
    cpu = runtime_for(TrainConfig(device="cpu"))

    def timed(run: Any, runtime: Any) -> float:
        places.append(gpu.holds(run()))
        return 1.0

    with pytest.MonkeyPatch.context() as patch, gpu.modes():
        patch.setattr(profile, "_median", timed)
        batch = gpu.put(torch.ones(4, 3))
        assert profile._resident_speed(batch, gpu.runtime) == profile._read_speed(batch, gpu.runtime) == 48
        assert places == [True, True], "from the host to the device, too"
        assert profile._resident_speed(batch.cpu(), cpu) is None
        profile._read_speed(batch.cpu(), cpu)
    assert places[2:] == [False]
    assert (resident.room_on(gpu.runtime.device), resident.room_on(cpu.device)) == (10**9 // 2, 0)
