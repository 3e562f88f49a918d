"""Networks that cannot be traced, cut at the inputs of their blocks."""

import copy
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from heads import created_with_random_head
from tiny_networks import TINY
from torch import Tensor, nn

from thawline import backbones
from thawline.backbones import Backbone, Preprocessing, TextPreprocessing, section
from thawline.backbones._costs import group_costs
from thawline.backbones._windows import Window, learn_layout, window
from thawline.exceptions import BackboneError
from thawline.freezing import freeze_to, train_mode

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("windows")]

IMAGE = Preprocessing(4, 4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")


class Block(nn.Module):
    """Hands on its activations in a tuple, as many of Hugging Face's do."""

    runs: ClassVar[Counter[int]] = Counter()
    """How often each has computed, by number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.linear, self.number = nn.Linear(8, 8), number

    def forward(self, hidden: Tensor, scale: Tensor) -> tuple[Tensor, None]:
        self.runs[self.number] += 1
        return hidden + self.linear(hidden).tanh() * scale, None


class Toy(nn.Module):
    """A stem with a batch-norm and dropout, three blocks, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten())
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.blocks = nn.ModuleList(Block(number) for number in range(3))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        hidden, scale = self.stem(images), self.scale.sigmoid()
        for block in self.blocks:
            if images.sum() > 1e9:  # a decision that no trace can record
                break
            hidden = block(hidden, scale)[0]
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class Skipping(Toy):
    """What the first block was given reaches the third past the second."""

    def forward(self, images: Tensor) -> Tensor:
        first = hidden = self.stem(images)
        for i, block in enumerate(self.blocks):
            hidden = block(hidden + first if i == 1 else hidden, self.scale)[0]
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class Dense(Toy):
    """Every block sees the first activations too."""

    def forward(self, images: Tensor) -> Tensor:
        first = hidden = self.stem(images)
        for block in self.blocks:
            hidden = block(hidden, self.scale)[0] + first
        logits: Tensor = self.head(self.norm(hidden))
        return logits


def backbone_of(module: nn.Module) -> Backbone:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    groups, head = learn_layout(module, IMAGE, "toy").groups(module)
    return Backbone("toy", module, groups, head, IMAGE, "", {"library": "transformers", "num_classes": 2})


def images(count: int = 5) -> Tensor:
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def test_groups_are_the_stem_and_the_blocks_and_hold_everything_once() -> None:
    backbone = backbone_of(Toy())
    assert [group.name for group in backbone.layer_groups] == ["stem", "blocks.0", "blocks.1", "blocks.2"]
    assert backbone.head.tensors == ("head.weight", "head.bias")
    assert "scale" in backbone.layer_groups[0].tensors, "what is used by all blocks is trained with the input"
    assert "norm.weight" in backbone.layer_groups[-1].tensors
    groups = [*backbone.layer_groups, backbone.head]
    named = [*backbone.module.named_parameters(), *backbone.module.named_buffers()]
    assert sorted(name for group in groups for name in group.tensors) == sorted(name for name, _ in named)
    modules = sorted(name for group in groups for name in group.modules)
    assert modules == sorted(name for name, _ in backbone.module.named_modules())


def test_parts_one_after_the_other_give_the_very_bits_of_the_whole() -> None:
    backbone = backbone_of(Toy())
    backbone.module.eval()
    with torch.no_grad():
        whole = backbone.module(images())
        for depth in range(1, 5):
            assert torch.equal(section(backbone, depth)(section(backbone, 0, depth)(images())), whole)
        passed = images()
        for start in range(4):
            passed = section(backbone, start, start + 1)(passed)
        assert torch.equal(section(backbone, 4)(passed), whole)


def test_blocks_outside_of_a_window_are_not_computed() -> None:
    backbone = backbone_of(Toy())
    backbone.module.eval()
    hooked: Counter[str] = Counter()
    for name in ("blocks.0", "blocks.1.linear", "head"):
        part = backbone.module.get_submodule(name)
        part.register_forward_hook(lambda *_, name=name: hooked.update([name]))

    def counted(network: nn.Module, inputs: Tensor) -> tuple[Tensor, Counter[int], Counter[str]]:
        Block.runs.clear()
        hooked.clear()
        return network(inputs), Block.runs.copy(), hooked.copy()

    stored, runs, hooks = counted(section(backbone, 0, 2), images())
    assert (runs, hooks) == ({0: 1}, {"blocks.0": 1})
    _, runs, hooks = counted(section(backbone, 2), stored)
    assert (runs, hooks) == ({1: 1, 2: 1}, {"blocks.1.linear": 1, "head": 1})
    features, runs, hooks = counted(section(backbone, 2, 4), stored)
    assert (runs, hooks) == ({1: 1, 2: 1}, {"blocks.1.linear": 1})
    _, runs, hooks = counted(section(backbone, 4), features)
    assert (runs, hooks) == ({}, {"head": 1})


def test_what_lies_before_a_window_neither_learns_nor_changes_nor_draws_random_numbers() -> None:
    backbone = backbone_of(Toy())
    stored = section(backbone, 0, 1)(images()).detach()
    backbone.module.train()  # all of it, the batch-norm and the dropout of the stem too
    tail = section(backbone, 1).train()
    before = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    state = torch.get_rng_state()
    tail(stored).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in backbone.module.state_dict().items())
    reached = {name for name, parameter in backbone.module.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in tail.named_parameters()}
    assert not reached & set(backbone.layer_groups[0].tensors)

    section(backbone, 0)(images())  # the positive control: the whole does all three
    assert not torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(backbone.module.get_buffer("stem.1.running_mean"), before["stem.1.running_mean"])


def test_a_window_holds_what_lies_in_it_under_the_names_of_the_network() -> None:
    backbone = backbone_of(Toy())
    named = dict(backbone.module.named_parameters())
    for start, stop in ((0, 1), (1, 3), (2, None), (4, None), (0, None)):
        part = section(backbone, start, stop)
        groups = [*backbone.layer_groups, backbone.head][start : stop if stop is not None else 5]
        inside = {name for group in groups for name in group.tensors}
        assert {name for name, _ in part.named_parameters()} == inside & named.keys()
        assert {name for name, _ in part.named_buffers()} == inside - named.keys()
        assert all(parameter is named[name] for name, parameter in part.named_parameters())


def test_where_more_than_one_tensor_crosses_there_is_no_boundary() -> None:
    backbone = backbone_of(Skipping())
    assert [group.name for group in backbone.layer_groups] == ["stem-blocks.0", "blocks.1", "blocks.2"]


def test_a_network_without_a_boundary_is_refused() -> None:
    with pytest.raises(
        BackboneError, match="'toy' cannot be cut between its blocks: they pass on more than one tensor"
    ):
        backbone_of(Dense())


def test_a_network_without_a_list_of_blocks_is_refused() -> None:
    class Plain(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 8, 4), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 2))

    with pytest.raises(BackboneError, match=r"'toy' has no list of blocks .* timm also has many networks"):
        backbone_of(Plain())


def test_a_network_whose_logits_are_no_linear_layers_is_refused() -> None:
    class Averaging(Toy):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) / 2

    with pytest.raises(BackboneError, match="The logits of 'toy' must be the output of a linear layer"):
        backbone_of(Averaging())


def test_a_network_whose_blocks_take_turns_is_refused() -> None:
    class Recurrent(Toy):
        def forward(self, images: Tensor) -> Tensor:
            hidden = self.stem(images)
            for block in (*self.blocks, *self.blocks):
                hidden = block(hidden, self.scale)[0]
            logits: Tensor = self.head(self.norm(hidden))
            return logits

    with pytest.raises(BackboneError, match="The blocks of 'toy' must be called in sequence"):
        backbone_of(Recurrent())


def test_a_copy_of_the_network_is_cut_at_the_same_places() -> None:
    backbone = backbone_of(Skipping())
    backbone.module.eval()
    other = replace(backbone, module=copy.deepcopy(backbone.module))
    with torch.no_grad():
        other.module.get_parameter("blocks.2.linear.weight").mul_(2)
        for depth in range(1, 4):
            stored = section(other, 0, depth)(images())
            assert torch.equal(section(other, depth)(stored), other.module(images()))
        assert not torch.equal(section(other, 2)(stored), section(backbone, 2)(stored))


def test_learning_the_layout_leaves_the_network_as_it_is() -> None:
    module = Toy().train()
    module.blocks[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    learn_layout(module, IMAGE, "toy")
    assert [part.training for part in module.blocks] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in module.modules())


def test_probes_see_and_may_change_what_crosses_the_boundaries() -> None:
    backbone = backbone_of(Toy())
    backbone.module.eval()
    seen: dict[int, Tensor] = {}

    def look(border: int, activations: Tensor) -> Tensor:
        seen[border] = activations
        return activations

    tail = window(backbone, 1, None)
    for border in (2, 3, 4, 5):
        tail.probe(border, partial(look, border))
    stored = section(backbone, 0, 1)(images())
    logits = tail(stored)
    assert all(torch.equal(seen[border], section(backbone, 0, border)(images())) for border in (2, 3, 4))
    assert torch.equal(seen[5], logits)
    tail.probe(3, torch.zeros_like)
    assert not torch.equal(tail(stored), logits)


def test_an_error_in_a_block_is_told_and_the_window_can_be_used_again() -> None:
    backbone = backbone_of(Toy())
    backbone.module.eval()
    tail = section(backbone, 1)
    stored = section(backbone, 0, 1)(images())
    expected = tail(stored)
    with pytest.raises(RuntimeError, match="shape"):
        tail(stored[:, :3])
    assert torch.is_grad_enabled()
    assert torch.equal(tail(stored), expected)


FAMILIES = ("albert", "bert", "deberta-v2", "modernbert", "clip", "pvt", "segformer", "swin")


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = TINY[request.param](tmp_path_factory.mktemp(request.param))
    return created_with_random_head(f"hf:{folder}", seed=1)


def inputs_for(backbone: Backbone) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if isinstance(backbone.preprocessing, Preprocessing):
        side = backbone.preprocessing.image_size
        return torch.randn(3, 3, side, side, generator=generator)
    tokens = torch.randint(5, 30, (3, 9), generator=generator)
    tokens[0, 4:] = -1
    tokens[1, 8:] = -1
    return tokens


def test_real_families_are_cut_without_a_bit_of_difference(backbone: Backbone) -> None:
    backbone.module.eval()
    inputs = inputs_for(backbone)
    with torch.inference_mode():
        whole = backbone.module(inputs)
        passed = inputs
        for start in range(len(backbone.layer_groups)):
            passed = section(backbone, start, start + 1)(passed)
            assert torch.equal(section(backbone, start + 1)(passed), whole)


def test_a_tail_of_a_real_family_has_the_gradients_of_the_whole(backbone: Backbone) -> None:
    depth, inputs, labels = 1, inputs_for(backbone), torch.arange(3)
    freeze_to(backbone, depth, batch_norm="train_all")
    train_mode(backbone, depth, batch_norm="train_all")

    def gradients(network: nn.Module, given: Tensor) -> dict[str, Tensor]:
        torch.manual_seed(0)  # of the dropout
        backbone.module.zero_grad()
        nn.functional.cross_entropy(network(given), labels).backward()  # type: ignore[no-untyped-call]
        named = backbone.module.named_parameters()
        return {name: parameter.grad for name, parameter in named if parameter.grad is not None}

    whole = gradients(backbone.module, inputs)
    with torch.no_grad():
        stored = section(backbone, 0, depth)(inputs)
    tail = gradients(section(backbone, depth), stored)
    frozen = set(backbone.layer_groups[0].tensors)
    assert whole.keys() == tail.keys() == {name for name, _ in backbone.module.named_parameters()} - frozen
    assert all(torch.equal(value, tail[name]) for name, value in whole.items())


def test_its_outline_is_the_chain_of_its_blocks_and_costs_are_found(backbone: Backbone) -> None:
    nodes = backbones.outline(backbone, 1).nodes
    assert [node.inputs for node in nodes[1:]] == [(node.name,) for node in nodes[:-1]]
    names = {node.name.partition("/")[0]: node.frozen for node in nodes[1:]}
    assert names == {group.name: group is backbone.layer_groups[0] for group in backbone.layer_groups} | {
        backbone.head.name: False
    }
    costs = backbones.depth_costs(backbone, 4)
    assert len(costs) == len(backbone.layer_groups) + 1
    assert all(deeper.flops_from_store < cost.flops_from_store for cost, deeper in pairwise(costs))
    assert all(deeper.memory_bytes < cost.memory_bytes for cost, deeper in pairwise(costs))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return created_with_random_head(f"hf:{TINY['bert'](tmp_path_factory.mktemp('bert'))}")


def test_texts_cross_with_a_channel_that_says_where_there_are_tokens(bert: Backbone) -> None:
    bert.module.eval()
    tokens = inputs_for(bert)
    with torch.no_grad():
        passed = section(bert, 0, 2)(tokens)
        features = section(bert, 0, 4)(tokens)
    assert passed.shape == (3, 9, 33)
    assert torch.equal(passed[..., -1] == 1, tokens >= 0)
    assert features.shape == (3, 32), "after the last group they are pooled"


def test_more_padding_hardly_changes_what_a_tail_answers(bert: Backbone) -> None:
    bert.module.eval()
    tokens = inputs_for(bert)
    with torch.no_grad():
        stored = section(bert, 0, 2)(tokens)
        longer = nn.functional.pad(stored, (0, 0, 0, 6))
        torch.testing.assert_close(section(bert, 2)(longer), bert.module(tokens), rtol=1e-4, atol=1e-5)
        unmasked = longer.clone()
        unmasked[..., -1] = 1
        assert not torch.allclose(section(bert, 2)(unmasked), bert.module(tokens), rtol=1e-2)


def test_a_block_costs_what_its_matrices_do(bert: Backbone) -> None:
    assert isinstance(bert.preprocessing, TextPreprocessing)
    tokens, width, inner = bert.preprocessing.max_length, 32, 48
    products = 4 * width * width + 2 * width * inner  # query, key, value, output; both feed-forward layers
    attention = 2 * tokens * width  # scores, and the sum that they weigh
    embeddings, *blocks, head = group_costs(bert)
    assert embeddings.forward == 0
    assert [block.forward for block in blocks] == [2 * tokens * (products + attention)] * 3
    assert all(block.backward_first < block.backward for block in blocks)
    assert head.forward == 2 * width * 3


def test_a_block_that_is_called_many_times_is_one_group(tmp_path: Path) -> None:
    backbone = backbones.create(f"hf:{TINY['albert'](tmp_path)}", num_classes=3)
    backbone.module.eval()
    assert [group.name for group in backbone.layer_groups] == ["embeddings", "albert_layer_groups.0"]
    calls: Counter[bool] = Counter()
    shared = backbone.module.get_submodule("encoder.encoder.albert_layer_groups.0.albert_layers.0")
    shared.register_forward_hook(lambda *_: calls.update([True]))
    with torch.no_grad():
        stored = section(backbone, 0, 1)(inputs_for(backbone))
        assert calls.total() == 0
        section(backbone, 1, 2)(stored)
    assert calls.total() == 3


def test_a_network_that_looks_at_the_size_of_its_batch_is_cut_all_the_same(tmp_path: Path) -> None:
    blocks = ("block.0.0", "block.1.0", "block.1.1", "block.2.0", "block.3.0")
    info = backbones.describe(f"hf:{TINY['pvt'](tmp_path)}")
    assert info.layer_groups == ("patch_embeddings", *blocks)


def test_sections_of_such_a_network_are_windows(bert: Backbone) -> None:
    assert isinstance(section(bert, 1), Window)
    with pytest.raises(BackboneError, match="`0 <= start < stop <= 4` must hold, but got start=3, stop=3"):
        section(bert, 3, 3)
