"""Names, the catalogue, preprocessing, sizes of images and layer groups."""

import importlib.metadata
import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision import models

from thawline import backbones
from thawline.backbones import _catalogue
from thawline.backbones._graph import build_without_memory, steps_of
from thawline.backbones._groups import layer_groups_of
from thawline.backbones._torchvision import inspect, list_names
from thawline.exceptions import BackboneError


def test_every_classifier_of_torchvision_is_there() -> None:
    assert backbones.names() == models.list_models(module=models)
    assert {"vgg16", "vgg19", "inception_v3", "googlenet", "vit_b_16", "maxvit_t", "swin_t"} <= set(backbones.names())


def test_names_are_found_by_part_and_by_wildcard() -> None:
    assert backbones.names("wide") == ["wide_resnet101_2", "wide_resnet50_2"]
    assert backbones.names("VGG1?") == ["vgg11", "vgg13", "vgg16", "vgg19"]
    assert backbones.names("nothing") == []


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys; from thawline import backbones; "
        "print(len([backbones.describe(name) for name in backbones.names()]), 'torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert answer == ["80", "False"] or not _catalogue.is_of_installed_torchvision()


@pytest.mark.parametrize("call", [backbones.describe, backbones.depth_of, backbones.preprocessing_of])
def test_an_unknown_name_is_answered_with_the_nearest(call: object) -> None:
    assert callable(call)
    with pytest.raises(BackboneError) as caught:
        call("resnt50")
    assert str(caught.value) == "Unknown backbone 'resnt50'. Did you mean 'resnet50'? `thawline backbones` lists all."


def test_a_newer_torchvision_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    known = _catalogue.catalogued()
    monkeypatch.setattr(_catalogue, "is_of_installed_torchvision", lambda: False)
    monkeypatch.setattr(_catalogue, "catalogued", lambda: {k: v for k, v in known.items() if k != "resnet18"})
    assert "resnet18" in backbones.names()
    assert backbones.describe("resnet18") == known["resnet18"]


def test_the_catalogue_belongs_to_a_version_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    written = json.loads(_catalogue.CATALOGUE_FILE.read_text())["torchvision"]
    monkeypatch.setattr(importlib.metadata, "version", lambda _: f"{written}+cpu")
    assert _catalogue.is_of_installed_torchvision()
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "99.0")
    assert not _catalogue.is_of_installed_torchvision()


@pytest.mark.slow
def test_the_catalogue_is_what_the_networks_say_and_none_has_too_few_or_too_many_groups() -> None:
    for name in list_names():
        found = inspect(name)
        assert found == backbones.describe(name)
        assert 4 <= len(found.layer_groups) <= 16
        assert len(set(found.layer_groups)) == len(found.layer_groups)


def test_layer_groups_have_the_names_that_people_know() -> None:
    def groups(name: str) -> tuple[str, ...]:
        return backbones.describe(name).layer_groups

    assert groups("resnet18") == ("conv1-bn1", "layer1", "layer2", "layer3", "layer4")
    assert groups("vgg16")[-2:] == ("features.24-28", "classifier.0-3")
    assert groups("vit_b_16")[1] == "encoder.layers.encoder_layer_0"
    assert groups("inception_v3")[-2:] == ("Mixed_6a-e", "Mixed_7a-c")
    assert groups("resnet152")[3:6] == ("layer3.0-11", "layer3.12-23", "layer3.24-35")


def test_preprocessing_is_that_of_the_weights() -> None:
    assert backbones.preprocessing_of("resnet18") == backbones.Preprocessing(
        224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear"
    )
    assert backbones.preprocessing_of("inception_v3").image_size == 299
    assert backbones.preprocessing_of("swin_v2_t").interpolation == "bicubic"
    assert backbones.preprocessing_of("resnet18", weights="none") == backbones.preprocessing_of("resnet18")


def test_the_resize_before_the_crop_follows_the_image_size() -> None:
    half = backbones.preprocessing_of("resnet18", image_size=112)
    assert (half.image_size, half.resize_size) == (112, 128)


def test_starter_preprocessing_comes_from_its_own_file() -> None:
    starter = backbones.preprocessing_of("mobilenet_v3_small", weights="starter")
    assert starter.image_size < 224
    assert starter.resize_size == starter.image_size
    assert len(starter.mean) == len(starter.std) == 3


@pytest.mark.parametrize(
    ("name", "size", "rule"),
    [
        ("inception_v3", 64, "at least 75 x 75"),
        ("alexnet", 32, "at least 63 x 63"),
        ("vit_b_16", 100, "multiple of its patch size, 16"),
        ("maxvit_t", 128, "multiple of 224"),
    ],
)
def test_a_size_that_it_does_not_take_is_refused_by_rule_before_weights_are_looked_for(
    name: str, size: int, rule: str
) -> None:
    with pytest.raises(BackboneError, match=f"{name} does not take images of {size} x {size} pixels. .*{rule}"):
        backbones.create(name, num_classes=2, weights="no-such-file", image_size=size)


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(BackboneError, match="`num_classes >= 1` must hold, but got num_classes=0"):
        backbones.create("resnet18", num_classes=0, weights="none")
    with pytest.raises(BackboneError, match="`image_size >= 1` must hold, but got image_size=0"):
        backbones.create("resnet18", num_classes=2, weights="none", image_size=0)


@pytest.mark.parametrize("size", [32, 96])
def test_groups_do_not_depend_on_the_size_of_the_images(size: int) -> None:
    made = backbones.create("mobilenet_v3_small", num_classes=2, weights="none", image_size=size)
    assert tuple(group.name for group in made.layer_groups) == backbones.describe("mobilenet_v3_small").layer_groups


class InPlaceBehindView(nn.Module):
    """The only tensor after ``first`` is later overwritten through a view of it; after ``second`` it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images)
        x.transpose(2, 3).relu_()
        x = self.second(x)
        return self.head(x.mean((2, 3)))


def test_a_result_that_is_overwritten_later_is_no_cut_even_through_a_view() -> None:
    steps = {step.node.name: step for step in steps_of(build_without_memory(InPlaceBehindView), 16)}
    assert not steps["first"].is_cut
    assert steps["second"].is_cut


class Tangled(nn.Module):
    """Everything reaches the head, so there is no cut before it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(6, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.mean((2, 3))
        return self.head(torch.cat([x, self.body(x)], 1)) + x.sum()


def test_a_network_without_a_cut_before_its_head_is_refused() -> None:
    with pytest.raises(BackboneError, match="one single tensor is passed on"):
        layer_groups_of(build_without_memory(Tangled), "head", 16)


class Unused(InPlaceBehindView):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


def test_a_parameter_that_is_never_used_is_named() -> None:
    with pytest.raises(BackboneError, match=r"spare\.bias.*spare\.weight"):
        layer_groups_of(build_without_memory(Unused), "head", 16)


def test_building_without_memory_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    module = build_without_memory(lambda: models.get_model("regnet_x_400mf", weights=None))
    assert torch.equal(torch.get_rng_state(), before)
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}


def test_the_summary_says_what_is_frozen_and_what_is_trainable() -> None:
    backbone = backbones.create("resnet18", num_classes=3, weights="none", image_size=32)
    text = backbones.summary_text(backbone, 2)
    assert "layer1.0.conv1" in text or "BasicBlock" in text
    table = {line.split()[0]: line.split()[-1] for line in text.split("now\n")[1].split("\n\n")[0].splitlines()}
    assert table == {
        "conv1-bn1": "frozen",
        "layer1": "frozen",
        "layer2": "trainable",
        "layer3": "trainable",
        "layer4": "trainable",
        "fc": "trainable",
    }
    values = backbones.summary_json(backbone, 2)
    json.dumps(values)
    assert values["parameters"] == sum(parameter.numel() for parameter in backbone.module.parameters())
    frozen = sum(group["parameters"] for group in values["layer_groups"] if group["frozen"])
    assert values["trainable"] == values["parameters"] - frozen
    with pytest.raises(BackboneError, match="`0 <= depth <= 5` must hold, but got depth=6"):
        backbones.summary_json(backbone, 6)


def test_the_listing_shows_every_backbone_asked_for() -> None:
    infos = [backbones.describe(name) for name in backbones.names("vgg")]
    assert backbones.listing(infos).row_count == len(infos) == 8
    assert json.loads(json.dumps(backbones.info_json(infos[0])))["layer_groups"][0] == "features.0"


def test_the_last_block_of_a_transformer_computes_its_class_token_alone_unless_told_to_be_exact() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    backbone = backbones.create("vit_b_32", num_classes=3, weights="none", image_size=128)
    backbone.module.eval()
    last = len(backbone.layer_groups) - 1
    tokens = torch.randn(1, 17, 768)

    def operations(exact: bool) -> int:
        with FlopCounterMode(display=False) as counter:  # with gradients: else attention is one operation, not counted
            backbones.section(backbone, last, exact=exact)(tokens)
        return counter.get_total_flops()

    assert operations(exact=False) < operations(exact=True) / 4


def test_a_section_between_borders_that_are_not_there_is_refused() -> None:
    backbone = backbones.create("squeezenet1_1", num_classes=3, weights="none", image_size=64)
    with pytest.raises(BackboneError, match=r"`0 <= start < stop <= \d+` must hold, but got start=3, stop=2"):
        backbones.section(backbone, 3, 2)
