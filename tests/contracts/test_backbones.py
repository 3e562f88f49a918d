"""What every backbone promises, whichever family it is of; seen by its effect on parameters, buffers and activations.

One member of each family, the smallest, at a small image size and with random weights. A new family is added to
FAMILIES and must pass as it is.
"""

import json

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thawline import backbones
from thawline.backbones import Backbone, section
from thawline.backbones._graph import build_without_memory
from thawline.freezing import freeze_to, train_mode, trainable_parameters

CLASSES = 5
pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "googlenet": 32,
    "inception_v3": 80,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 64,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vgg11_bn": 32,
    "vit_b_32": 64,
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name == "maxvit_t" else name for name in FAMILIES],
)
def built(request: pytest.FixtureRequest) -> tuple[Backbone, dict[str, Tensor]]:
    """Built once for the tests of one family; with it the numbers that it began with."""
    name: str = request.param
    backbone = backbones.create(name, num_classes=CLASSES, weights="none", image_size=FAMILIES[name], seed=1)
    return backbone, snapshot(backbone.module)


@pytest.fixture
def backbone(built: tuple[Backbone, dict[str, Tensor]]) -> Backbone:
    backbone, start = built
    restore(backbone.module, start)
    return backbone


def restore(module: nn.Module, start: dict[str, Tensor]) -> None:
    state = module.state_dict()  # with the version number that MNASNet insists on
    state.update(start)
    module.load_state_dict(state)
    module.zero_grad()


def images_for(backbone: Backbone, count: int = 2) -> Tensor:
    size = backbone.preprocessing.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def depths_of(backbone: Backbone) -> list[int]:
    deepest = len(backbone.layer_groups)
    return [0, deepest // 2, deepest]


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def train_a_little(backbone: Backbone, depth: int) -> None:
    """Two steps: a head that begins at zero sends no gradient back in the first."""
    torch.manual_seed(0)
    freeze_to(backbone, depth)
    optimizer = torch.optim.SGD(trainable_parameters(backbone).values(), lr=0.05)
    labels = torch.arange(2)
    images = images_for(backbone)
    for _ in range(2):
        train_mode(backbone, depth)
        optimizer.zero_grad()
        nn.functional.cross_entropy(backbone.module(images), labels).backward()
        nn.utils.clip_grad_norm_(trainable_parameters(backbone).values(), 1.0)
        optimizer.step()


def test_images_go_in_and_one_logit_a_class_comes_out(backbone: Backbone) -> None:
    backbone.module.eval()
    with torch.no_grad():
        assert backbone.module(images_for(backbone)).shape == (2, CLASSES)


def test_groups_and_head_hold_every_parameter_and_buffer_exactly_once(backbone: Backbone) -> None:
    held = [name for group in [*backbone.layer_groups, backbone.head] for name in group.tensors]
    everything = [name for name, _ in [*backbone.module.named_parameters(), *backbone.module.named_buffers()]]
    assert sorted(held) == sorted(everything)

    parameters = {name for name, _ in backbone.module.named_parameters()}
    assert all(parameters.intersection(group.tensors) for group in backbone.layer_groups)
    assert f"{backbone.head.name}.weight" in backbone.head.tensors
    assert all(name.rpartition(".")[0] == backbone.head.name for name in backbone.head.tensors)


def test_every_module_belongs_to_one_group_or_the_head(backbone: Backbone) -> None:
    held = [name for group in [*backbone.layer_groups, backbone.head] for name in group.modules]
    assert sorted(held) == sorted(name for name, _ in backbone.module.named_modules())
    assert "" in backbone.head.modules


def test_the_catalogue_tells_the_truth_of_it(backbone: Backbone) -> None:
    assert tuple(group.name for group in backbone.layer_groups) == backbones.describe(backbone.name).layer_groups
    assert backbones.depth_of(backbone.name) == len(backbone.layer_groups)


def test_training_moves_what_is_free_and_nothing_that_is_frozen(backbone: Backbone) -> None:
    parameters = {name for name, _ in backbone.module.named_parameters()}
    for depth in depths_of(backbone):
        before = snapshot(backbone.module)
        train_a_little(backbone, depth)
        moved = {name for name, value in backbone.module.state_dict().items() if not torch.equal(before[name], value)}
        frozen = {name for group in backbone.layer_groups[:depth] for name in group.tensors}
        assert not moved & frozen

        free = [*backbone.layer_groups[depth:], backbone.head]
        assert all(moved & parameters.intersection(group.tensors) for group in free)
        statistics = {name for group in free for name in group.tensors if name.endswith("running_mean")}
        assert statistics <= moved
        reached = {name for name, parameter in backbone.module.named_parameters() if parameter.grad is not None}
        assert reached == parameters - frozen


def test_frozen_batch_norms_are_in_evaluation_mode_and_free_ones_in_training_mode(backbone: Backbone) -> None:
    for depth in depths_of(backbone):
        train_mode(backbone, depth)
        frozen = {name for group in backbone.layer_groups[:depth] for name in group.tensors}
        for path, module in backbone.module.named_modules():
            if isinstance(module, _BatchNorm):
                assert module.training == (f"{path}.weight" not in frozen), path
    assert backbone.module.training


def test_frozen_activations_are_the_same_in_every_pass(backbone: Backbone) -> None:
    images = images_for(backbone)
    depth = len(backbone.layer_groups)
    train_mode(backbone, depth)
    prefix = section(backbone, 0, depth)
    with torch.no_grad():
        assert torch.equal(prefix(images), prefix(images))


def test_every_border_between_groups_cuts_it_in_two_without_a_bit_of_difference(backbone: Backbone) -> None:
    backbone.module.eval()
    images = images_for(backbone, count=1)
    with torch.no_grad():
        whole = backbone.module(images)
        for depth in range(1, len(backbone.layer_groups) + 1):
            stored, tail = section(backbone, 0, depth)(images), section(backbone, depth)
            kept = stored.clone()
            assert torch.equal(tail(stored), whole)
            assert torch.equal(stored, kept), "the tail must not write into stored activations"
            free = {name for group in [*backbone.layer_groups[depth:], backbone.head] for name in group.tensors}
            assert {name for name, _ in tail.named_parameters()} <= free


def test_its_sections_one_after_the_other_are_the_whole(backbone: Backbone) -> None:
    backbone.module.eval()
    images = images_for(backbone, count=1)
    deepest = len(backbone.layer_groups)
    with torch.no_grad():
        passed_on = images
        for start in range(deepest):
            passed_on = section(backbone, start, start + 1)(passed_on)
        assert torch.equal(section(backbone, deepest)(passed_on), backbone.module(images))


def test_a_tail_trains_to_the_very_weights_that_the_whole_does(backbone: Backbone) -> None:
    depth, start = len(backbone.layer_groups) // 2, snapshot(backbone.module)
    images, labels = images_for(backbone), torch.arange(2)

    def after_a_step(from_activations: bool) -> dict[str, Tensor]:
        restore(backbone.module, start)
        freeze_to(backbone, depth)
        train_mode(backbone, depth)
        torch.manual_seed(0)
        if from_activations:
            with torch.no_grad():
                stored = section(backbone, 0, depth)(images)
            logits = section(backbone, depth)(stored)
        else:
            logits = backbone.module(images)
        parameters = trainable_parameters(backbone).values()
        optimizer = torch.optim.SGD(parameters, lr=0.05)
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        return snapshot(backbone.module)

    whole, tail = after_a_step(from_activations=False), after_a_step(from_activations=True)
    assert all(torch.equal(value, tail[name]) for name, value in whole.items())
    assert any(not torch.equal(value, start[name]) for name, value in whole.items())


def test_leaving_out_unread_tokens_changes_the_last_bits_alone(backbone: Backbone) -> None:
    backbone.module.eval()
    images = images_for(backbone)
    with torch.no_grad():
        torch.testing.assert_close(section(backbone, 0, exact=False)(images), backbone.module(images))


def test_its_architecture_rebuilds_it_without_thawline(backbone: Backbone) -> None:
    architecture = json.loads(json.dumps(backbone.architecture))
    rebuilt = build_without_memory(
        lambda: torchvision.models.get_model(architecture["builder"], weights=None, **architecture["kwargs"])
    )
    assert {name: value.shape for name, value in rebuilt.state_dict().items()} == {
        name: value.shape for name, value in backbone.module.state_dict().items()
    }


def test_every_family_of_torchvision_is_tried_here() -> None:
    def family(name: str) -> str:
        module = torchvision.models.get_model_builder(name).__module__
        return module.rpartition(".")[2]

    assert {family(name) for name in FAMILIES} == {family(name) for name in backbones.names()}
