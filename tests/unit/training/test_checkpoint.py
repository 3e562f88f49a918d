"""A checkpoint is whole or not there, and says so when it was changed."""

from pathlib import Path

import pytest
import torch

from thawline import backbones
from thawline.exceptions import CheckpointError
from thawline.training import Checkpoint, CheckpointFolder, load_checkpoint, load_model
from thawline.training.checkpoint import pack_model


def checkpoint(epoch: int, value: float) -> Checkpoint:
    return Checkpoint(
        epoch,
        model={"weight": torch.full((4, 4), float(epoch))},
        optimizer={"0/step": torch.tensor(3.0)},
        random_states={"cpu": torch.get_rng_state()},
        state={"value": value, "freeze_depth": 2},
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_and_the_best_are_kept_and_the_others_removed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=1, maximise=True)
    for epoch, value in enumerate([0.5, 0.9, 0.7, 0.6], 1):
        folder.save(checkpoint(epoch, value))
    assert names(tmp_path) == ["epoch-0002.safetensors", "epoch-0004.safetensors"]
    best, last = folder.best(), folder.last()
    assert best is not None
    assert load_checkpoint(best).epoch == 2
    assert last is not None
    assert last.epoch == 4


def test_the_best_of_a_loss_is_the_smallest(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=1, maximise=False)
    for epoch, value in enumerate([0.5, 0.3, 0.7], 1):
        folder.save(checkpoint(epoch, value))
    best = folder.best()
    assert best is not None
    assert best.name == "epoch-0002.safetensors"


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    original = checkpoint(1, 0.5)
    read = load_checkpoint(CheckpointFolder(tmp_path, keep=1, maximise=True).save(original))
    assert read.state == original.state
    for part in ("model", "optimizer", "random_states"):
        stored, kept = getattr(read, part), getattr(original, part)
        assert stored.keys() == kept.keys()
        assert all(torch.equal(stored[key], kept[key]) for key in kept)


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=3, maximise=True)
    folder.save(checkpoint(1, 0.5))
    torn = folder.save(checkpoint(2, 0.6))
    torn.write_bytes(torn.read_bytes()[:-20])
    last = folder.last()
    assert last is not None
    assert last.epoch == 1
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(torn)


def test_a_checkpoint_with_one_changed_bit_is_refused(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path, keep=1, maximise=True).save(checkpoint(1, 0.5))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "epoch-0001.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of this version"):
        load_checkpoint(path)


def test_a_write_that_fails_leaves_the_older_checkpoint_and_no_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path, keep=2, maximise=True)
    folder.save(checkpoint(1, 0.5))
    monkeypatch.setattr("thawline.training.checkpoint.os.fsync", _disk_full)
    with pytest.raises(OSError, match="No space left"):
        folder.save(checkpoint(2, 0.6))
    assert names(tmp_path) == ["epoch-0001.safetensors"]


def _disk_full(handle: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_checkpoint_of_another_network_or_other_weights_is_refused() -> None:
    # MNASNet refuses a state_dict without a version number.
    network = backbones.create("mnasnet0_5", num_classes=2, weights="none", image_size=32)
    state = {"freeze_depth": 1, "weights_digest": network.weights_digest}
    tensors = {name: torch.ones_like(tensor) for name, tensor in pack_model(network, 1).items()}
    kept = {name: network.module.state_dict()[name].clone() for name in network.layer_groups[0].tensors}

    load_model(Checkpoint(1, tensors, {}, {}, state), network)
    loaded = network.module.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in {**tensors, **kept}.items())
    with pytest.raises(CheckpointError, match="of a different network"):
        load_model(Checkpoint(1, {"other": torch.zeros(1)}, {}, {}, state), network)
    with pytest.raises(CheckpointError, match="trained from the weights 0123"):
        load_model(Checkpoint(1, tensors, {}, {}, {**state, "weights_digest": "0123"}), network)


def test_a_leftover_of_a_killed_write_is_removed(tmp_path: Path) -> None:
    (tmp_path / "epoch-0003.tmp").write_bytes(b"half")
    CheckpointFolder(tmp_path, keep=1, maximise=True)
    assert names(tmp_path) == []


def test_no_checkpoint_holds_a_pickle(tmp_path: Path) -> None:
    content = CheckpointFolder(tmp_path, keep=1, maximise=True).save(checkpoint(1, 0.5)).read_bytes()
    assert not content.startswith(b"PK"), "a zip, as torch.save writes"
    assert b"\x80\x04\x95" not in content, "the start of a pickle"
