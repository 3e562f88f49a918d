"""What freezing means beyond gradients. That it holds for every family is in tests/contracts."""

import pytest
import torch
from torch import nn

from thawline import backbones
from thawline.backbones import Backbone
from thawline.exceptions import BackboneError
from thawline.freezing import freeze_to, train_mode, trainable_parameters


@pytest.fixture
def backbone() -> Backbone:
    """Has batch-norms, dropout and stochastic depth."""
    return backbones.create("efficientnet_b0", num_classes=3, weights="none", image_size=32)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def statistics(backbone: Backbone) -> list[torch.Tensor]:
    names = [name for name in backbone.layer_groups[0].tensors if name.endswith("running_mean")]
    assert names
    return [backbone.module.get_buffer(name).clone() for name in names]


def test_without_gradients_alone_batch_norms_still_move_and_train_mode_stops_them(
    backbone: Backbone, images: torch.Tensor
) -> None:
    freeze_to(backbone, 5, batch_norm="train_all")
    before = statistics(backbone)
    train_mode(backbone, 5, batch_norm="train_all")
    backbone.module(images)
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(backbone), strict=True))

    backbone.module.train()  # the trap
    backbone.module(images)
    assert not any(torch.equal(a, b) for a, b in zip(before, statistics(backbone), strict=True))


def frozen_activations(backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
    """What the last frozen convolution gives to the pooling."""
    kept: list[torch.Tensor] = []
    handle = backbone.module.get_submodule("features").register_forward_hook(lambda _, __, out: kept.append(out))
    with torch.no_grad():
        backbone.module(images)
    handle.remove()
    return kept[0]


def test_stochastic_depth_and_batch_mates_do_not_reach_frozen_activations(
    backbone: Backbone, images: torch.Tensor
) -> None:
    train_mode(backbone, 5, batch_norm="train_all")
    together = frozen_activations(backbone, images)
    assert torch.equal(together, frozen_activations(backbone, images))
    torch.testing.assert_close(frozen_activations(backbone, images[:2]), together[:2])

    backbone.module.train()  # the trap
    assert not torch.equal(frozen_activations(backbone, images), frozen_activations(backbone, images))


def test_dropout_before_the_head_stays_on_when_all_groups_are_frozen(backbone: Backbone) -> None:
    train_mode(backbone, len(backbone.layer_groups), batch_norm="train_all")
    dropout = backbone.module.get_submodule("classifier.0")
    assert isinstance(dropout, nn.Dropout)
    assert dropout.training


def test_thawing_again_gives_everything_back(backbone: Backbone) -> None:
    freeze_to(backbone, 5, batch_norm="train_all")
    train_mode(backbone, 5, batch_norm="train_all")
    head = list(trainable_parameters(backbone))
    freeze_to(backbone, 0, batch_norm="train_all")
    train_mode(backbone, 0, batch_norm="train_all")
    assert head == ["classifier.1.weight", "classifier.1.bias"]
    assert list(trainable_parameters(backbone)) == [name for name, _ in backbone.module.named_parameters()]
    assert all(module.training for module in backbone.module.modules())


@pytest.mark.parametrize("depth", [0, 2])
def test_batch_norms_of_thawed_groups_normalise_by_their_statistics_unless_all_of_them_is_trained(
    backbone: Backbone, images: torch.Tensor, depth: int
) -> None:
    norms = {name for name, module in backbone.module.named_modules() if isinstance(module, nn.BatchNorm2d)}
    buffers = {name: tensor.clone() for name, tensor in backbone.module.named_buffers()}
    free = {}
    for batch_norm in ("frozen_eval", "train_affine", "train_all"):
        freeze_to(backbone, depth, batch_norm=batch_norm)
        train_mode(backbone, depth, batch_norm=batch_norm)
        free[batch_norm] = set(trainable_parameters(backbone))
        backbone.module(images)
        moved = {name for name, tensor in backbone.module.named_buffers() if not torch.equal(tensor, buffers[name])}
        assert bool(moved) == (batch_norm == "train_all")
        assert backbone.module.get_submodule("classifier.0").training, "dropout is on"
    frozen = {name for group in backbone.layer_groups[:depth] for name in group.tensors}
    affine = {f"{norm}.{name}" for norm in norms for name in ("weight", "bias")}
    assert free["train_affine"] == free["train_all"]
    assert free["train_all"] - free["frozen_eval"] == affine - frozen != set()


def test_an_old_gradient_does_not_outlive_freezing(backbone: Backbone, images: torch.Tensor) -> None:
    backbone.module(images).sum().backward()
    freeze_to(backbone, 2, batch_norm="train_all")
    frozen = {name for group in backbone.layer_groups[:2] for name in group.tensors}
    assert all((parameter.grad is None) == (name in frozen) for name, parameter in backbone.module.named_parameters())


@pytest.mark.parametrize("depth", [-1, 6])
def test_a_depth_that_the_backbone_does_not_have_is_refused(backbone: Backbone, depth: int) -> None:
    for change in (freeze_to, train_mode):
        with pytest.raises(BackboneError) as caught:
            change(backbone, depth, batch_norm="frozen_eval")
        assert str(caught.value) == f"`0 <= depth <= 5` must hold, but got depth={depth}."
