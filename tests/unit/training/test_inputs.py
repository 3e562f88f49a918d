"""Batches come in order, whether they are read ahead or not."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from thawline.config import TrainConfig
from thawline.training import batches, runtime_for
from thawline.training.evaluation import logits_of
from thawline.training.inputs import TextInputs, batch_order, batch_sizes, evaluation_order

RUNTIME = runtime_for(TrainConfig(device="cpu"))


def test_reading_ahead_gives_the_same_batches_in_the_same_order(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = images(20)
    parts = batch_order(inputs, 6, seed=0, epoch=0)
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


def test_an_error_while_reading_ahead_reaches_the_training(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = images(20)

    def gone(rows: np.ndarray, epoch: int) -> torch.Tensor:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(inputs, "read", gone)
    with pytest.raises(OSError, match="Input/output error"):
        list(batches(inputs, batch_order(inputs, 6, seed=0, epoch=0), 0, RUNTIME, ahead=True))


def test_every_image_comes_once_an_epoch_and_never_alone_in_a_batch(images: Any) -> None:
    inputs = images(13)
    order = batch_order(inputs, 4, seed=1, epoch=2)
    assert sorted(np.concatenate(order).tolist()) == list(range(13))
    assert batch_sizes(13, 4) == [4, 4, 5]
    assert all((np.diff(rows) > 0).all() for rows in order)
    assert any(not np.array_equal(a, b) for a, b in zip(order, batch_order(inputs, 4, seed=1, epoch=3), strict=True))


class Texts:
    """Texts of given lengths: text ``i`` is so many times the token ``i``."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        return [np.full(self.lengths[i], i, dtype=np.int32) for i in indices]


def some_texts(count: int) -> TextInputs:
    lengths = np.random.default_rng(0).integers(2, 200, count).tolist()
    return TextInputs(Texts(lengths), np.arange(count), RUNTIME)  # type: ignore[arg-type]  # its two methods


def padding_of(inputs: TextInputs, order: list[np.ndarray]) -> float:
    """Share of a padded epoch that is padding."""
    tensors = [inputs.read(rows, 0) for rows in order]
    return sum(int((tokens < 0).sum()) for tokens in tensors) / sum(tokens.numel() for tokens in tensors)


def test_batches_of_texts_hold_texts_of_about_one_length_in_another_order_every_epoch() -> None:
    inputs = some_texts(1000)
    first, second = (batch_order(inputs, 16, seed=1, epoch=epoch) for epoch in (0, 1))
    for order in (first, second):
        assert sorted(np.concatenate(order).tolist()) == list(range(1000))
    at_random = np.split(np.random.default_rng(1).permutation(1000), range(16, 1000, 16))
    assert padding_of(inputs, first) < 0.1 < 0.3 < padding_of(inputs, at_random)
    assert {frozenset(rows.tolist()) for rows in first}.isdisjoint(frozenset(rows.tolist()) for rows in second)
    longest = [max(inputs.lengths[rows]) for rows in first]
    assert longest != sorted(longest), "batches come in no order of length"


def test_texts_are_padded_after_their_end_to_the_longest_of_the_batch() -> None:
    inputs = TextInputs(Texts([2, 4, 3]), np.zeros(3, dtype=np.int64), RUNTIME)  # type: ignore[arg-type]
    assert inputs.read(np.array([0, 2]), 0).tolist() == [[0, 0, -1], [2, 2, 2]]


def test_what_is_measured_in_order_of_length_is_given_in_the_order_of_the_texts() -> None:
    class FirstToken(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens[:, :1]

    inputs = some_texts(50)
    assert [len(rows) for rows in evaluation_order(inputs, 16)] == [16, 16, 16, 2]
    assert logits_of(FirstToken(), inputs, RUNTIME, 16).flatten().tolist() == list(range(50))
