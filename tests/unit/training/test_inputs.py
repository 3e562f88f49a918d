"""Batches come in order, whether they are read ahead or not."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from thawline.config import TrainConfig
from thawline.training import batches, runtime_for
from thawline.training.inputs import batch_order, batch_sizes

RUNTIME = runtime_for(TrainConfig(device="cpu"))


def test_reading_ahead_gives_the_same_batches_in_the_same_order(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = images(20)
    parts = batch_order(20, 6, seed=0, epoch=0)
    plain = list(batches(inputs, parts, 0, RUNTIME, ahead=False))
    readers: set[str] = set()
    original = inputs.read
    monkeypatch.setattr(
        inputs, "read", lambda rows, epoch: (readers.add(threading.current_thread().name), original(rows, epoch))[1]
    )
    ahead = list(batches(inputs, parts, 0, RUNTIME, ahead=True))
    assert all(name.startswith("thawline-read") for name in readers)
    assert readers
    for (rows, tensor), (other_rows, other) in zip(plain, ahead, strict=True):
        assert np.array_equal(rows, other_rows)
        assert torch.equal(tensor, other)


def test_an_error_while_reading_ahead_reaches_whoever_trains(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = images(20)

    def gone(rows: np.ndarray, epoch: int) -> torch.Tensor:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(inputs, "read", gone)
    with pytest.raises(OSError, match="Input/output error"):
        list(batches(inputs, batch_order(20, 6, seed=0, epoch=0), 0, RUNTIME, ahead=True))


def test_every_image_comes_once_an_epoch_and_never_alone_in_a_batch() -> None:
    order = batch_order(13, 4, seed=1, epoch=2)
    assert sorted(np.concatenate(order).tolist()) == list(range(13))
    assert batch_sizes(13, 4) == [4, 4, 5]
    assert all((np.diff(rows) > 0).all() for rows in order)
    assert any(not np.array_equal(a, b) for a, b in zip(order, batch_order(13, 4, seed=1, epoch=3), strict=True))
