"""What is known of a training step before anything is trained: work and memory of every freeze depth."""

import json
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from tiny_torchvision import tiny as smaller
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from thawline import backbones
from thawline.backbones import Backbone, LayerGroup, Preprocessing
from thawline.backbones.summary import depth_costs, summary_json, summary_text
from thawline.exceptions import BackboneError
from thawline.freezing import freeze_to, train_mode

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = {
    "convnext_tiny": 32,
    "googlenet": 32,
    "mobilenet_v3_small": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 64,
    "swin_t": 32,
}


class Tiny(nn.Module):
    """Small enough to count by hand: 3 x 8 x 8 to 4 x 6 x 6 to 2 x 4 x 4 to 5."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, bias=False)
        self.second = nn.Conv2d(4, 2, 3, bias=False)
        self.head = nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images)).flatten(1))  # type: ignore[no-any-return]


@pytest.fixture
def tiny() -> Backbone:
    return Backbone(
        name="tiny",
        module=Tiny(),
        layer_groups=(
            LayerGroup("first", ("first.weight",), ("first",), "first"),
            LayerGroup("second", ("second.weight",), ("second",), "second"),
        ),
        head=LayerGroup("head", ("head.weight", "head.bias"), ("", "head"), "head"),
        preprocessing=Preprocessing(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear"),
        weights_digest="",
        architecture={},
    )


def create(name: str, size: int) -> Backbone:
    """The network, or a tiny one of its classes."""
    with smaller(name):
        return backbones.create(name, num_classes=5, weights="none", image_size=size)


def measured(backbone: Backbone, depth: int, batch: int = 2) -> tuple[int, int]:
    """Operations of a real step, and bytes that it really keeps for its backward pass, per image."""
    freeze_to(backbone, depth, batch_norm="train_all")
    train_mode(backbone, depth, batch_norm="train_all")
    own = {tensor.untyped_storage().data_ptr() for tensor in backbone.module.state_dict(keep_vars=True).values()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    size = backbone.preprocessing.image_size
    counter = FlopCounterMode(display=False)
    with counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = backbone.module(torch.rand(batch, 3, size, size))
        logits.backward(torch.ones_like(logits))
    return counter.get_total_flops() // batch, sum(t.untyped_storage().nbytes() for t in kept.values()) // batch


def test_a_network_counted_by_hand(tiny: Backbone) -> None:
    first, second, head = 2 * 36 * 4 * 27, 2 * 16 * 2 * 36, 2 * 32 * 5  # operations forward
    forward = first + second + head
    images, middle, last = 4 * 3 * 64, 4 * 4 * 36, 4 * 2 * 16  # bytes of what each layer is given
    weights, trained = 4 * (108 + 72 + 165), [4 * (108 + 72 + 165), 4 * (72 + 165), 4 * 165]
    costs = depth_costs(tiny, batch_size=10)
    # The first trained layer needs the gradient of its weights, later ones that of their inputs too.
    assert [cost.flops for cost in costs] == [
        forward + first + 2 * second + 2 * head,
        forward + second + 2 * head,
        forward + head,
    ]
    assert [cost.flops - cost.flops_from_store for cost in costs] == [0, first, first + second]
    assert [cost.activation_bytes for cost in costs] == [images + middle + last, middle + last, last]
    assert [cost.state_bytes for cost in costs] == [weights + 3 * each for each in trained]
    assert [cost.memory_bytes for cost in costs] == [c.state_bytes + 10 * c.activation_bytes for c in costs]
    assert [cost.trainable for cost in costs] == [each // 4 for each in trained]
    assert [cost.freeze_depth for cost in costs] == [0, 1, 2]


@pytest.fixture
def no_fast_path() -> Iterator[None]:
    """A frozen attention layer runs as one operation, which PyTorch's counter of operations does not know."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.usefixtures("no_fast_path")
@pytest.mark.parametrize(("name", "size"), [("resnet18", 32), ("vit_b_32", 64)])
def test_it_is_what_a_real_step_takes_and_keeps(name: str, size: int) -> None:
    backbone = create(name, size)
    costs = depth_costs(backbone)
    for depth in (0, 2, len(backbone.layer_groups)):
        flops, kept = measured(backbone, depth)
        assert costs[depth].flops == flops
        assert costs[depth].activation_bytes == pytest.approx(kept, abs=100)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_more_is_frozen_the_less_there_is_to_do_and_to_keep(name: str) -> None:
    backbone = create(name, FAMILIES[name])
    costs = depth_costs(backbone)
    assert len(costs) == len(backbone.layer_groups) + 1
    for less, more in pairwise(costs):
        assert less.trainable > more.trainable
        assert less.flops > more.flops
        assert less.flops_from_store > more.flops_from_store
        assert less.activation_bytes > more.activation_bytes
        assert less.memory_bytes > more.memory_bytes
    assert costs[0].flops == costs[0].flops_from_store
    assert costs[-1].flops_from_store < 0.05 * costs[-1].flops


def test_a_step_of_grouped_convolutions_costs_three_forward_passes() -> None:
    backbone = create("mobilenet_v3_small", 32)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        backbone.module.eval()(torch.rand(1, 3, 32, 32))
    first_convolution = 2 * 16 * 16 * 16 * 27  # nobody asks for the gradient of the images
    assert depth_costs(backbone)[0].flops == 3 * counter.get_total_flops() - first_convolution


def test_neither_numbers_nor_modes_are_touched(tiny: Backbone) -> None:
    before = {name: value.clone() for name, value in tiny.module.state_dict().items()}
    tiny.module.eval()
    freeze_to(tiny, 1, batch_norm="train_all")
    depth_costs(tiny)
    assert all(torch.equal(value, before[name]) for name, value in tiny.module.state_dict().items())
    assert not tiny.module.training
    assert [parameter.requires_grad for parameter in tiny.module.parameters()] == [False, True, True, True]
    assert all(parameter.grad is None for parameter in tiny.module.parameters())


def test_the_text_has_layers_groups_and_a_row_for_every_depth(tiny: Backbone) -> None:
    text = summary_text(tiny, 1, batch_size=1000)
    assert "Conv2d (first)" in text
    assert "tiny at freeze depth 1 of 2" in text
    assert "GB at batch size 1000" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["0", "345", "0.000", "0.000", "0.00", "0.00"] in rows
    assert ["2", "165", "0.000", "0.000", "0.00", "0.00"] in rows


def test_the_json_has_the_same(tiny: Backbone) -> None:
    answer = json.loads(json.dumps(summary_json(tiny, 1, batch_size=10)))
    assert answer["batch_size"] == 10
    assert [row["freeze_depth"] for row in answer["freeze_depths"]] == [0, 1, 2]
    assert [row["memory_bytes"] for row in answer["freeze_depths"]] == [
        cost.memory_bytes for cost in depth_costs(tiny, batch_size=10)
    ]
    assert answer["trainable"] == answer["freeze_depths"][1]["trainable"]


def test_a_batch_without_images_is_refused(tiny: Backbone) -> None:
    with pytest.raises(BackboneError, match="`batch_size >= 1` must hold, but got batch_size=0"):
        depth_costs(tiny, batch_size=0)
