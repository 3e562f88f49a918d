"""What every backbone promises, whichever family it is of; seen by its effect on parameters, buffers and activations.

One member of each family, the smallest, at a small image size and with random weights. A new family is added to
FAMILIES and must pass as it is.
"""

import json
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thawline import backbones
from thawline.backbones import Backbone
from thawline.backbones._graph import Step, build_without_memory, steps_of, trace
from thawline.freezing import freeze_to, train_mode, trainable_parameters

CLASSES = 5
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


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny operations wait longer for a second thread than it saves, and the more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name == "maxvit_t" else name for name in FAMILIES],
)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """Shared by the tests of one family; each sets what it needs and relies on no numbers that another left."""
    name: str = request.param
    return backbones.create(name, num_classes=CLASSES, weights="none", image_size=FAMILIES[name], seed=1)


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


def steps_without_memory(backbone: Backbone) -> list[Step]:
    builder, arguments = backbone.architecture["builder"], backbone.architecture["kwargs"]
    module = build_without_memory(lambda: torchvision.models.get_model(builder, weights=None, **arguments))
    return steps_of(module, backbone.preprocessing.image_size)


def border(backbone: Backbone, steps: list[Step], depth: int) -> str:
    """Name of the operation after which the network can be cut between the first ``depth`` groups and the others."""
    before = {name for group in backbone.layer_groups[:depth] for name in group.tensors}
    last = max(i for i, step in enumerate(steps) if before.intersection(step.tensors))
    first_after = min(i for i, step in enumerate(steps) if set(step.tensors) - before)
    assert last < first_after, "a later group is used before this one"
    cuts = [step for step in steps[last:first_after] if step.is_cut]
    assert cuts, f"no single tensor is passed on after {backbone.layer_groups[depth - 1].name}"
    return cuts[0].node.name


def split(module: nn.Module, graph: fx.Graph, cut: fx.Node) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The two parts of ``module`` before and after ``cut``; both share its parameters, buffers and submodules.

    Each part follows the mode that the graph was traced in, where the code reads ``self.training`` itself.
    """
    nodes = list(graph.nodes)
    position = nodes.index(cut)
    prefix, tail = fx.Graph(), fx.Graph()
    before: dict[fx.Node, fx.Node] = {}
    after: dict[fx.Node, fx.Node] = {cut: tail.placeholder("activations")}
    for i, node in enumerate(nodes):
        if node.op == "get_attr":  # both parts may use it; dropped below where one does not
            before[node] = prefix.node_copy(node)
            after[node] = tail.node_copy(node)
        elif i <= position:
            before[node] = prefix.node_copy(node, before.__getitem__)
        else:
            after[node] = tail.node_copy(node, after.__getitem__)
    prefix.output(before[cut])
    for part in (prefix, tail):
        for node in [n for n in part.nodes if n.op == "get_attr" and not n.users]:
            part.erase_node(node)
    return fx.GraphModule(module, prefix), fx.GraphModule(module, tail)


def cut_at(backbone: Backbone, name: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    graph = trace(backbone.module)
    return split(backbone.module, graph, next(node for node in graph.nodes if node.name == name))


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
    steps = steps_without_memory(backbone)
    images = images_for(backbone)
    depth = len(backbone.layer_groups)
    train_mode(backbone, depth)
    prefix, _ = cut_at(backbone, border(backbone, steps, depth))
    with torch.no_grad():
        assert torch.equal(prefix(images), prefix(images))


def test_every_border_between_groups_cuts_it_in_two_without_a_bit_of_difference(backbone: Backbone) -> None:
    steps = steps_without_memory(backbone)
    backbone.module.eval()
    images = images_for(backbone, count=1)
    with torch.no_grad():
        whole = backbone.module(images)
        for depth in range(1, len(backbone.layer_groups) + 1):
            prefix, tail = cut_at(backbone, border(backbone, steps, depth))
            stored = prefix(images)
            kept = stored.clone()
            assert torch.equal(tail(stored), whole)
            assert torch.equal(stored, kept), "the tail must not write into stored activations"
            free = {name for group in [*backbone.layer_groups[depth:], backbone.head] for name in group.tensors}
            assert {name for name, _ in tail.named_parameters()} <= free


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
