"""What every backbone promises, whichever library and family it is of; seen by its effect on tensors.

One member of each family, the smallest, at a small image size and with random weights; where even that takes seconds,
one with fewer and narrower blocks of the same classes (TINY_TIMM, TINY_TORCHVISION), while the catalogue is compared
with the whole network. The families are those of the registry: where it has a new one, it is added to FAMILIES and must
pass as it is.
"""

import importlib.util
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torchvision
from heads import created_with_random_head, with_random_head
from tiny_networks import FURTHER, TINY, write_tiny
from tiny_timm import TINY as TINY_TIMM
from tiny_timm import tiny as tiny_of_timm
from tiny_torchvision import TINY as TINY_TORCHVISION
from tiny_torchvision import tiny as tiny_of_torchvision
from torch import Tensor, fx, nn

from thawline import backbones
from thawline.backbones import Backbone, _traced, section, tracing
from thawline.backbones._registry import LIBRARIES, library_of
from thawline.exceptions import BackboneError
from thawline.freezing import freeze_to, train_mode, trainable_parameters
from thawline.testing.backbones import BackboneContract, inputs_for, restore

CLASSES = 5
pytestmark = pytest.mark.usefixtures("one_thread")

TORCHVISION = {
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
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 64,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vgg11_bn": 32,
    "vit_b_32": 64,
}
"""Image sizes by name. RegNets end in one place of an image of 32 x 32: a batch-norm of two values, which 22 blocks
answer with gradients that are infinite in single precision."""
TIMM: dict[str, int] = {
    "timm/cpubone_nano": 32,
    "timm/cs3darknet_focus_s": 32,
    "timm/cspnext_tiny": 32,
    "timm/dla46x_c": 32,
    "timm/mobilevit_xxs": 32,
    "timm/resnest14d": 32,
    "timm/skresnet18": 32,
    "timm/ese_vovnet19b_slim_dw": 32,
    "timm/fasternet_t0": 32,
    "timm/ghostnet_050": 32,
    "timm/hgnetv2_b0": 64,
    "timm/hrnet_w18_small": 32,
    "timm/iformer_t": 32,
    "timm/inception_next_atto": 32,
    "timm/lcnetv2_small": 32,
    "timm/mobilenetv3_small_050": 32,
    "timm/regnetx_002": 32,
    "timm/resnetv2_18": 32,
    "timm/starnet_s050": 32,
    "timm/test_byobnet": 32,
    "timm/test_coatnet": 32,
    "timm/test_convnext": 32,
    "timm/test_efficientnet": 32,
    "timm/test_mambaout": 32,
    "timm/test_nfnet": 32,
    "timm/test_resnet": 32,
    "timm/test_vit": 32,
    "timm/visformer_tiny": 32,
}
TIMM_SLOW: dict[str, int] = {
    "timm/beit_base_patch16_224": 32,
    "timm/cait_xxs24_224": 32,
    "timm/coat_tiny": 32,
    "timm/convit_tiny": 32,
    "timm/convmixer_768_32": 32,
    "timm/crossvit_tiny_240": 240,
    "timm/csatv2": 64,
    "timm/davit_tiny": 32,
    "timm/densenet121": 32,
    "timm/dpn48b": 32,
    "timm/edgenext_xx_small": 32,
    "timm/efficientvit_b0": 32,
    "timm/efficientformer_l1": 224,
    "timm/efficientformerv2_s0": 32,
    "timm/efficientvit_m0": 128,
    "timm/efficientvim_m1": 32,
    "timm/fastvit_t8": 32,
    "timm/deit_tiny_patch16_224": 32,
    "timm/deit_tiny_distilled_patch16_224": 32,
    "timm/gcvit_xxtiny": 32,
    "timm/halonet_h1": 256,
    "timm/hardcorenas_b": 32,
    "timm/res2next50": 32,
    "timm/gmlp_ti16_224": 32,
    "timm/inception_v3": 96,
    "timm/legacy_seresnet18": 32,
    "timm/legacy_xception": 32,
    "timm/levit_128s": 32,
    "timm/lowformer_b0": 32,
    "timm/mvitv2_tiny": 32,
    "timm/nest_tiny": 32,
    "timm/pit_ti_224": 32,
    "timm/poolformerv2_s12": 32,
    "timm/pvt_v2_b0": 32,
    "timm/rdnet_tiny": 32,
    "timm/repghostnet_050": 96,
    "timm/repvit_m0_9": 64,
    "timm/rexnet_100": 32,
    "timm/shvit_s1": 32,
    "timm/swiftformer_xs": 32,
    "timm/swin_tiny_patch4_window7_224": 32,
    "timm/swinv2_tiny_window8_256": 32,
    "timm/test_vit_relpos": 32,
    "timm/tiny_vit_5m_224": 32,
    "timm/tnt_s_legacy_patch16_224": 32,
    "timm/twins_svt_small": 32,
    "timm/vgg11_bn": 32,
    "timm/vit_tiny_patch16_dinov3_qkvb": 32,
    "timm/xcit_nano_12_p8_224": 32,
}
"""Families of which already the smallest network takes more than a few seconds; TINY_TIMM makes most of them tiny."""
TIMM_LARGE = {
    "deepseek_vit",
    "focalnet",
    "hiera",
    "hieradet_sam2",
    "inception_resnet_v2",
    "inception_v4",
    "mobilenetv5",
    "naflexvit",
    "nasnet",
    "nextvit",
    "pnasnet",
    "qwen3_vit",
    "selecsls",
    "sequencer",
    "swin_transformer_v2_cr",
    "tresnet",
    "vision_transformer_hybrid",
    "vision_transformer_sam",
    "vitamin",
    "volo",
    "xception_aligned",
}
"""Families of which the smallest network has more than 25 million parameters: that they are cut, the catalogue says."""
REFUSED = {
    "convbert": "it has no attention mask",
    "flaubert": "they pass on more than one tensor",
    "fnet": "it has no attention mask",
    "layoutlm": "cannot be run on texts with a mask of their tokens",
    "longformer": "they pass on more than one tensor",
    "squeezebert": "cannot be run on texts with a mask of their tokens",
    "swiftformer": "must be the output of a linear layer, but they are not",
    "xlm": "they pass on more than one tensor",
    "yoso": "it has no attention mask",
}
UNTRIED = {
    "cvt": "transformers cannot build it from an own configuration",
    "dinat": "needs a package of its own",
    "imagegpt": "its images are sequences of colours",
    "modernvbert": "takes images beside texts",
    "perceiver": "has several classifiers",
    "pp_lcnet": "its classifier has no logits",
    "reformer": "takes texts of fixed lengths",
    "shieldgemma2": "takes texts beside images",
    "siglip2": "its images are sequences of patches",
    "timm_wrapper": "a network of timm, whose own name is to be given",
    "ultravbert": "takes images beside texts",
}
"""No tiny one is made of these, and why."""
HUGGINGFACE = tuple(f"hf:{kind}" for kind in TINY)
FAMILIES = {**TORCHVISION, **TIMM, **TIMM_SLOW, **dict.fromkeys(HUGGINGFACE)}
SLOW = {"maxvit_t", *TIMM_SLOW}


def is_tiny(name: str) -> bool:
    return name in TINY_TORCHVISION or (name.startswith("timm/") and name.removeprefix("timm/") in TINY_TIMM)


@contextmanager
def tiny(name: str) -> Iterator[None]:
    """Until the block ends, the tiny network of the name is built, if there is one."""
    with tiny_of_timm(name), tiny_of_torchvision(name):
        yield


def case(name: str) -> object:
    package = library_of(name).package
    missing = pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")
    together = pytest.mark.xdist_group(f"backbone-{name}")  # or several workers would build it
    return pytest.param(
        name, marks=[missing, together, *([pytest.mark.slow] if name in SLOW and not is_tiny(name) else [])]
    )


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Hugging Face's networks are written, each once."""
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(scope="module", params=[case(name) for name in FAMILIES])
def built(request: pytest.FixtureRequest, files: Path) -> tuple[Backbone, dict[str, Tensor]]:
    """Built once for the tests of one family; with it the numbers that it begins with, the head's drawn at random: what
    comes through a head of zeros is the same, whatever goes in."""
    backbone = with_random_head(created(request.param, CLASSES, files))
    return backbone, {name: value.detach().clone() for name, value in backbone.module.state_dict().items()}


@pytest.fixture(scope="module")
def traced_once(built: tuple[Backbone, dict[str, Tensor]]) -> Callable[[nn.Module], fx.Graph]:
    """What traces the network of a family: once in each mode, since a trace takes longer than the rest of a section."""
    graphs: dict[tuple[bool, ...], fx.Graph] = {}

    def trace(module: nn.Module) -> fx.Graph:
        assert module is built[0].module
        mode = tuple(part.training for part in module.modules())
        if mode not in graphs:
            graphs[mode] = tracing.trace(module)
        return graphs[mode]

    return trace


def created(family: str, num_classes: int, folder: Path) -> Backbone:
    name = family
    if family in HUGGINGFACE:
        kind = family.removeprefix("hf:")
        name = f"hf:{folder / kind}"
        if not (folder / kind).exists():
            TINY[kind](folder / kind)
    with tiny(name):
        return backbones.create(name, num_classes=num_classes, weights="none", image_size=FAMILIES[family], seed=1)


class TestEveryFamily(BackboneContract):
    """Built once for the tests of one family; the first loss needs networks of its own."""

    classes = CLASSES

    @pytest.fixture(autouse=True)
    def of_family(
        self,
        request: pytest.FixtureRequest,
        built: tuple[Backbone, dict[str, Tensor]],
        files: Path,
        traced_once: Callable[[nn.Module], fx.Graph],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.built, self.files = built, files
        monkeypatch.setattr(_traced, "trace", traced_once)
        self.family: str = request.node.callspec.params["built"]
        self.numbers_of_classes = (10,) if self.family in SLOW else (2, 10, 200)

    def make(self, num_classes: int) -> Backbone:
        return created(self.family, num_classes, self.files)

    def backbone(self) -> Backbone:
        backbone, start = self.built
        restore(backbone.module, start)
        return backbone

    def test_the_catalogue_tells_the_truth_of_it(self) -> None:
        if not is_tiny(self.family):
            super().test_the_catalogue_tells_the_truth_of_it()
            return
        described = backbones.describe(self.family)  # of the whole network, which is built here without memory
        assert library_of(self.family).networks().inspect(self.family) == described
        assert backbones.depth_of(self.family) == len(described.layer_groups)

    def test_its_architecture_rebuilds_it_without_thawline(self) -> None:
        with tiny(self.family):
            super().test_its_architecture_rebuilds_it_without_thawline()


def test_every_library_of_the_registry_is_tried_here() -> None:
    assert {library_of(name) for name in FAMILIES} == set(LIBRARIES)


def test_every_network_of_huggingface_that_may_be_a_backbone_is_tried_here() -> None:
    """Classifiers of images, and encoders that fill in masked words and take the numbers of tokens."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.auto import modeling_auto as auto

    assert not UNTRIED.keys() & (TINY.keys() | FURTHER.keys())
    known = set(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    for kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        config = transformers.AutoConfig.for_model(kind)
        network = transformers.MODEL_MAPPING.get(type(config), None)
        if getattr(network, "main_input_name", "") == "input_ids" and not config.is_encoder_decoder:
            known.add(kind)
    assert TINY.keys() | FURTHER.keys() | UNTRIED.keys() == known


@pytest.mark.slow
@pytest.mark.parametrize("kind", FURTHER)
def test_further_networks_of_huggingface_are_cut_without_a_bit_of_difference_or_refused(
    kind: str, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    name = f"hf:{write_tiny(kind, tmp_path / 'network')}"
    if kind in REFUSED:
        with pytest.raises(BackboneError, match=REFUSED[kind]):
            backbones.create(name, num_classes=3)
        return
    backbone = created_with_random_head(name)
    deepest = len(backbone.layer_groups)
    inputs = inputs_for(backbone)
    backbone.module.eval()
    with torch.no_grad():
        whole = backbone.module(inputs)
        for border in range(1, deepest + 1):
            assert torch.equal(section(backbone, border)(section(backbone, 0, border)(inputs)), whole)
    freeze_to(backbone, deepest - 1, batch_norm="frozen_eval")
    train_mode(backbone, deepest - 1, batch_norm="frozen_eval")
    backbone.module(inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in trainable_parameters(backbone).values())


def test_every_family_of_torchvision_is_tried_here() -> None:
    def family(name: str) -> str:
        module = torchvision.models.get_model_builder(name).__module__
        return module.rpartition(".")[2]

    assert {family(name) for name in TORCHVISION} == {family(name) for name in backbones.names() if "/" not in name}


def test_every_family_of_timm_is_tried_here() -> None:
    timm = pytest.importorskip("timm")

    def family(name: str) -> str:
        module: str = timm.models.model_entrypoint(name.removeprefix("timm/")).__module__
        return module.rpartition(".")[2]

    tried = {family(name) for name in TIMM | TIMM_SLOW}
    assert not tried & TIMM_LARGE
    assert tried | TIMM_LARGE == {family(name) for name in backbones.names("timm/")}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_every_network_of_timm_is_cut_as_the_catalogue_says_or_refused_as_it_says(part: int) -> None:
    """Of all that the registry of timm holds, those whose name's checksum is in this part's share.

    All of them take a quarter of an hour: a part looks at one in 128, and the eight together at one in sixteen.
    """
    pytest.importorskip("timm")
    from thawline.backbones import _timm
    from thawline.backbones._catalogue import catalogue_of

    catalogue = catalogue_of("timm")
    names = [name for name in _timm.list_names() if zlib.crc32(name.encode()) % 128 == part]
    assert len(names) > 3
    for name in names:
        if name in catalogue.refused:
            with pytest.raises(BackboneError, match=re.escape(catalogue.refused[name])):
                _timm.inspect(name)
        else:
            assert _timm.inspect(name) == catalogue.infos[name]
