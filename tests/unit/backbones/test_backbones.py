"""Names, the catalogue, preprocessing, sizes of images and layer groups."""

import importlib.metadata
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torchvision import models

from thawline import backbones
from thawline.backbones import BackboneInfo, _catalogue, _traced
from thawline.backbones._catalogue import Catalogue, catalogue_of
from thawline.backbones._groups import layer_groups_of
from thawline.backbones._registry import LIBRARIES, Library
from thawline.backbones._torchvision import inspect, list_names
from thawline.backbones.building import build_without_memory
from thawline.backbones.tracing import steps_of, trace
from thawline.cli.tables.backbones import backbones_table
from thawline.exceptions import BackboneError


def test_every_classifier_of_torchvision_is_there() -> None:
    bare = [name for name in backbones.names() if "/" not in name]
    assert bare == models.list_models(module=models)
    assert {"vgg16", "vgg19", "inception_v3", "googlenet", "vit_b_16", "maxvit_t", "swin_t"} <= set(bare)


def test_names_are_found_by_part_and_by_wildcard() -> None:
    assert backbones.names("wide_resnet1") == ["wide_resnet101_2", "timm/wide_resnet101_2"]
    assert backbones.names("VGG1?") == ["vgg11", "vgg13", "vgg16", "vgg19"]
    assert backbones.names("nothing") == []


def test_listing_needs_neither_torch_nor_timm() -> None:
    code = (
        "import sys; from thawline import backbones; "
        "print(len([backbones.describe(name) for name in backbones.names()]), {'torch', 'timm'} & sys.modules.keys())"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert all(_is_current(library) for library in ("torchvision", "timm"))
    assert int(answer[0]) == len(backbones.names()) > 80
    assert answer[1] == "set()"


@pytest.mark.parametrize(
    "call", [backbones.describe, backbones.depth_of, backbones.preprocessing_of, backbones.kind_of]
)
def test_an_unknown_name_is_answered_with_the_nearest(call: object) -> None:
    assert callable(call)
    with pytest.raises(BackboneError) as caught:
        call("resnt50")
    assert str(caught.value) == "Unknown backbone 'resnt50'. Did you mean 'resnet50'? `thawline backbones` lists all."


def test_an_unknown_name_is_answered_with_the_nearest_of_any_library() -> None:
    with pytest.raises(BackboneError, match=r"Unknown backbone 'resnet50d'\. Did you mean 'timm/resnet50d'\?"):
        backbones.describe("resnet50d")
    with pytest.raises(BackboneError, match=r"'torchvision/resnet50'\. Did you mean 'resnet50'\? `thawline"):
        backbones.describe("torchvision/resnet50")
    with pytest.raises(BackboneError, match=r"Unknown backbone 'timm/resnt50'\. Did you mean 'timm/resnet50'\?"):
        backbones.describe("timm/resnt50")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "hf:sentence-transformers/all-MiniLM-L6-v2"),
        ("bert-base-uncased", "hf:bert-base-uncased"),
        ("HF:org/x", "hf:org/x"),
    ],
)
def test_what_may_be_of_huggingface_is_answered_with_its_prefix(name: str, said: str) -> None:
    with pytest.raises(BackboneError, match=rf"For a folder or a Hugging Face model, write '{said}'\. `thawline"):
        backbones.describe(name)
    with pytest.raises(BackboneError) as caught:
        backbones.describe("timm/nothing-like-it")
    assert "Hugging Face" not in str(caught.value)


def test_a_folder_is_answered_with_the_prefix_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "resnet50").mkdir()
    with pytest.raises(BackboneError, match=rf"write 'hf:{tmp_path}/resnet50'\. `thawline"):
        backbones.describe(f"{tmp_path}/resnet50")


def test_what_a_library_has_that_is_not_installed_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Library, "is_installed", lambda library: library.package == "torchvision")
    with pytest.raises(BackboneError, match=r"Did you mean 'timm/resnet50d'\?"):
        backbones.describe("resnet50d")


def test_short_names_are_at_most_sixty_characters_of_few_kinds_and_differ() -> None:
    known = [*backbones.names("timm/*.*"), *backbones.names()]
    assert max(map(len, known)) > 60
    folders = ["hf:/data/a/model", "hf:/data/b/model", "hf:org/" + 80 * "x", "hf:org/" + 81 * "x"]
    short = [backbones.short_name(name) for name in [*known, *folders]]
    assert len(set(short)) == len(short)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,60}", name) for name in short)
    assert backbones.short_name("resnet18") == "resnet18"
    assert backbones.short_name("timm/resnet50.a1_in1k") == "timm-resnet50.a1_in1k"


def _is_current(package: str) -> bool:
    return catalogue_of(package).version == importlib.metadata.version(package).partition("+")[0]


def test_a_newer_torchvision_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    known = catalogue_of("torchvision")
    older = Catalogue("0.1", {name: info for name, info in known.infos.items() if name != "resnet18"}, {})
    monkeypatch.setattr(_catalogue, "catalogue_of", lambda library: older if library == "torchvision" else known)
    assert "resnet18" in backbones.names()
    assert backbones.describe("resnet18") == known.infos["resnet18"]


def test_the_catalogue_belongs_to_a_version_of_torchvision_whatever_it_was_built_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (torchvision,) = (library for library in LIBRARIES if library.package == "torchvision")
    written = catalogue_of("torchvision").version
    monkeypatch.setattr(importlib.metadata, "version", lambda _: f"{written}+cpu")
    assert torchvision.version() == written
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "99.0")
    assert torchvision.version() != written


def test_a_catalogue_is_read_as_it_was_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared = ("stem", "body")
    infos = {
        "a": BackboneInfo("a", 10, shared, ("default",), 32),
        "b": BackboneInfo("b", 20, shared, (), 64, {"in1k": 64, "in22k": 96}),
        "c": BackboneInfo("c", 30, ("all",), ("default", "starter"), 64),
    }
    written = Catalogue("1.2", infos, {"d": "'d' cannot be used."})
    monkeypatch.setattr(_catalogue, "file_of", lambda _: tmp_path / "catalogue.json")
    _catalogue.write("any", written)
    assert catalogue_of.__wrapped__("any") == written


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
    with pytest.raises(BackboneError, match=f"{name} does not support images of {size} x {size} pixels. .*{rule}"):
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
    with pytest.raises(BackboneError, match="must pass on a single tensor somewhere before its head"):
        layer_groups_of(build_without_memory(Tangled), "head", 16)


class SharedLayer(nn.Module):
    """``body`` works twice: a boundary between its two runs would split what can only be frozen as one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.body = nn.Conv2d(4, 4, 3)
        self.other = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.other(self.body(self.stem(images)))
        return self.head(self.body(x).mean((2, 3)))


def test_there_is_no_cut_between_two_runs_of_one_layer() -> None:
    steps = {step.node.name: step for step in steps_of(build_without_memory(SharedLayer), 16)}
    assert steps["stem"].is_cut
    assert not steps["body"].is_cut
    assert not steps["other"].is_cut
    assert steps["body_1"].is_cut


class Windows(nn.Module):
    """After ``first`` the batch holds four windows of each image, so that a row is no longer an image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.head = nn.Linear(3, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        n, c, h, w = images.shape
        x = self.first(images).reshape(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5)
        x = self.second(x.reshape(4 * n, c, h // 2, w // 2))
        return self.head(self.third(x.reshape(n, 4, c, h // 2, w // 2).mean(1)).mean((2, 3)))


def test_a_result_whose_rows_are_no_images_is_no_cut() -> None:
    steps = {step.node.name: step for step in steps_of(build_without_memory(Windows), 16)}
    assert steps["first"].is_cut
    assert not steps["second"].is_cut
    assert steps["third"].is_cut


class SizesAndTables(nn.Module):
    """Its last layers read what was found out at the beginning: a height, the number of images, a table by size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.register_buffer("frequencies", torch.arange(16.0))
        self.head = nn.Linear(4, 7)

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        count, _, height, _ = images.shape
        table = self.frequencies[: height - 2].sin()
        x = self.body(self.stem(images)) * table
        x = x.reshape(count, 4, (height - 2) ** 2)
        return self.head(x.sum(2) / height)


def test_sizes_and_tables_need_not_cross_a_boundary_and_the_tail_takes_any_number_of_images() -> None:
    module = SizesAndTables().eval()
    groups, head = layer_groups_of(
        build_without_memory(SizesAndTables),
        "head",
        16,
        {"stem.weight": 0, "stem.bias": 0, "body.weight": 1, "body.bias": 1},
    )
    assert [group.name for group in groups] == ["stem", "body"]
    assert set(dict(groups[0].sizes).values()) == {"count", 16, 14}
    preprocessing = backbones.Preprocessing(16, 16, (0.5,) * 3, (0.5,) * 3, "bilinear")
    backbone = backbones.Backbone("mine", module, groups, head, preprocessing, "0" * 16, {})
    for count in (1, 3):
        images = torch.randn(count, 3, 16, 16)
        with torch.no_grad():
            for depth in (1, 2):
                stored = backbones.section(backbone, 0, depth)(images)
                assert torch.equal(backbones.section(backbone, depth)(stored), module(images))


class LateToken(nn.Module):
    """By its library's order ``token`` is of the stem, but it is used after the first block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.norm = nn.LayerNorm(4)
        self.token = nn.Parameter(torch.zeros(4, 4))
        self.head = nn.Linear(4, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.blocks[0](self.stem(images.mean((2, 3))))
        return self.head(self.norm(self.blocks[1](x @ self.token)))


def test_a_library_s_own_order_makes_the_groups_and_what_is_used_late_goes_with_what_is_there() -> None:
    module = build_without_memory(LateToken)
    numbers = {"stem": 0, "token": 0, "blocks.0": 1, "blocks.1": 2, "norm": 3, "head": 3}
    order = {
        name: next(n for path, n in numbers.items() if name.startswith(path)) for name, _ in module.named_parameters()
    }
    groups, _ = layer_groups_of(module, "head", 16, order)
    assert [(group.name, len(group.tensors)) for group in groups] == [
        ("stem", 2),
        ("blocks.0-token", 3),
        ("blocks.1-norm", 4),
    ]


class TwoHeads(InPlaceBehindView):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(4, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(images)).mean((2, 3))
        return (self.head(x) + self.teacher(x)) / 2


def test_logits_that_come_from_two_layers_are_refused() -> None:
    with pytest.raises(BackboneError, match=r"a single layer, but 'head' cannot be separated from .*teacher"):
        layer_groups_of(build_without_memory(TwoHeads), "head", 16)


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
    infos = [backbones.describe(name) for name in backbones.names("vgg*")]
    assert backbones_table(infos).row_count == len(infos) == 8
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


def test_a_section_between_boundaries_that_do_not_exist_is_refused() -> None:
    backbone = backbones.create("squeezenet1_1", num_classes=3, weights="none", image_size=64)
    with pytest.raises(BackboneError, match=r"`0 <= start < stop <= \d+` must hold, but got start=3, stop=2"):
        backbones.section(backbone, 3, 2)


def test_sections_taken_together_are_those_taken_one_by_one_and_the_network_is_traced_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = backbones.create("mobilenet_v3_small", num_classes=3, weights="none", image_size=32)
    backbone.module.eval()
    deepest = len(backbone.layer_groups)
    spans = [(0, 2), (1, 2), (2, deepest), (deepest, None)]
    alone = [backbones.section(backbone, *span) for span in spans]
    traced: list[nn.Module] = []

    def counted(module: nn.Module) -> fx.Graph:
        traced.append(module)
        return trace(module)

    monkeypatch.setattr(_traced, "trace", counted)
    together = backbones.sections(backbone, spans)
    assert traced == [backbone.module]
    assert [list(part.state_dict()) for part in together] == [list(part.state_dict()) for part in alone]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, _, middle, tail = together
        assert torch.equal(tail(middle(first(images))), backbone.module(images))
    with pytest.raises(BackboneError, match=r"got start=3, stop=2"):
        backbones.sections(backbone, [(0, 1), (3, 2)])


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_a_probe_sees_and_may_change_what_crosses_a_boundary(name: str, exact: bool) -> None:
    backbone = backbones.create(name, num_classes=3, weights="none", image_size=32)
    backbone.module.eval()
    nn.init.normal_(backbone.module.get_parameter(f"{backbone.head.name}.weight"))
    deepest = len(backbone.layer_groups)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen: dict[int, torch.Tensor] = {}
    tail = backbones.section(backbone, deepest - 2, exact=exact)
    with torch.no_grad():  # as below: with gradients, attention may be computed by other operations
        stored = backbones.section(backbone, 0, deepest - 2)(images)
        expected = tail(stored)
    for border in (deepest - 1, deepest, deepest + 1):
        probe = nn.Identity()
        probe.register_forward_hook(lambda _, inputs, output, border=border: seen.update({border: output}))
        tail.probe(border, probe)
    with torch.no_grad():
        assert torch.equal(tail(stored), expected)
        assert torch.equal(seen[deepest - 1], backbones.section(backbone, 0, deepest - 1)(images))
        assert torch.equal(seen[deepest + 1], expected)
        head = backbone.module.get_submodule(backbone.head.name)
        assert torch.equal(head(seen[deepest]).flatten(1), expected)

    other = backbones.section(backbone, deepest - 2, exact=exact)
    other.probe(deepest, nn.Threshold(float("inf"), 0.0))
    assert not torch.equal(other(stored), expected)


def test_the_modules_to_load_ahead_for_backbones_are_those_of_their_libraries_once() -> None:
    names = ["timm/resnet18", "resnet18", "timm/resnet50", "hf:org/encoder"]
    found = backbones.modules_of(names)
    assert found == [
        *("timm", "thawline.backbones._timm"),
        *("torchvision", "thawline.backbones._torchvision"),
        *("transformers", "thawline.backbones._huggingface"),
    ]
    assert all(find_spec(module) is not None for module in found)
