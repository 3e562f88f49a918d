"""A network as a graph to look at."""

import functools

import pytest

from thawline import backbones
from thawline.backbones import Graph
from thawline.exceptions import BackboneError

SIZES = {"resnet18": 32, "vit_b_32": 32, "squeezenet1_1": 64, "mobilenet_v3_small": 32, "shufflenet_v2_x0_5": 32}


@functools.cache
def made(name: str) -> backbones.Backbone:
    return backbones.create(name, num_classes=3, weights="none", image_size=SIZES[name])


@pytest.mark.parametrize("name", SIZES)
def test_every_operation_takes_what_was_computed_before_it(name: str) -> None:
    graph = backbones.outline(made(name), 1)
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    for i, node in enumerate(graph.nodes):
        assert set(node.inputs) <= set(names[:i])
    read = {source for node in graph.nodes for source in node.inputs}
    assert [node.shape for node in graph.nodes if node.name not in read] == [(3,)]  # the logits alone are not read
    assert graph.nodes[0].name == graph.nodes[0].operation == "images"
    assert not {"getattr", "eq", "_assert", "size", "floordiv"} & {node.operation for node in graph.nodes}


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32"])
def test_the_frozen_part_is_the_layer_groups_before_the_depth(name: str) -> None:
    backbone = made(name)
    groups = [group.name for group in backbone.layer_groups]

    def frozen_groups(graph: Graph) -> set[str]:
        return {node.name.split("/")[0] for node in graph.nodes if node.frozen and "/" in node.name}

    for depth in (0, 1, len(groups)):
        graph = backbones.outline(backbone, depth)
        assert frozen_groups(graph) == set(groups[:depth])
        thawed = {node.name.split("/")[0] for node in graph.nodes if not node.frozen} - {"images"}
        assert thawed == {*groups[depth:], backbone.head.name}


def test_operations_have_readable_places_kinds_and_shapes() -> None:
    nodes = {node.name: node for node in backbones.outline(made("resnet18"), 2).nodes}
    added = nodes["layer1/0/add"]
    assert (added.operation, added.inputs, added.shape) == ("add", ("layer1/0/bn2", "conv1-bn1/maxpool"), (64, 8, 8))
    assert nodes["layer1/0/relu_1"].inputs == ("layer1/0/add",)  # the module's second run
    assert nodes["fc/fc"].operation == "Linear"
    assert nodes["fc/fc"].shape == (3,)
    assert "features.3-4/3/squeeze" in {node.name for node in backbones.outline(made("squeezenet1_1"), 0).nodes}
    attention = [
        node for node in backbones.outline(made("vit_b_32"), 0).nodes if node.operation == "MultiheadAttention"
    ]
    assert len(attention) == 12
    assert all(node.shape is None and node.inputs for node in attention)  # two results, of which one is used


def test_the_backbone_stays_as_it_is() -> None:
    backbone = backbones.create("resnet18", num_classes=3, weights="none", image_size=32)
    backbone.module.train()
    backbones.outline(backbone, 3)
    assert all(module.training for module in backbone.module.modules())
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in backbone.module.parameters())


@pytest.mark.parametrize("depth", [-1, 6])
def test_a_depth_that_there_is_not_is_refused(depth: int) -> None:
    with pytest.raises(BackboneError, match=f"`0 <= depth <= 5` must hold, but got depth={depth}"):
        backbones.outline(made("resnet18"), depth)
