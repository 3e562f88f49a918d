"""timm's networks: names and tags, weights from files and from the hub, sizes, and what is refused."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads import with_random_head
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from thawline import backbones
from thawline.backbones import Backbone, _catalogue, section
from thawline.backbones._catalogue import Catalogue, catalogue_of
from thawline.cli import app
from thawline.data import resize_and_crop
from thawline.exceptions import BackboneError, WeightsError

timm = pytest.importorskip("timm")

from thawline.backbones import _timm  # noqa: E402  it imports timm

pytestmark = pytest.mark.usefixtures("one_thread")

RESNET, VIT = "timm/test_resnet", "timm/test_vit"
"""Networks of a few hundred thousand parameters, which timm has for its own tests; the second is of a fixed size."""


def made(name: str = RESNET, **settings: Any) -> Backbone:
    return backbones.create(name, **{"num_classes": 3, "weights": "none", "image_size": 32} | settings)


def saved(backbone: Backbone, file: Path) -> Path:
    save_file({name: value.contiguous() for name, value in backbone.module.state_dict().items()}, file)
    return file


def body(backbone: Backbone) -> dict[str, torch.Tensor]:
    head = backbone.head.name + "."
    return {name: value for name, value in backbone.module.state_dict().items() if not name.startswith(head)}


def test_its_names_stand_beside_torchvision_s_of_the_same_name() -> None:
    assert {"resnet50", "timm/resnet50"} <= set(backbones.names("resnet50"))
    assert backbones.describe("timm/resnet50").layer_groups == ("conv1-bn1", "layer1", "layer2", "layer3", "layer4")
    assert backbones.describe("timm/vit_base_patch16_224").layer_groups[1:3] == ("blocks.0", "blocks.1")


def test_a_tag_chooses_among_the_pretrained_weights_of_an_architecture() -> None:
    tags = backbones.describe("timm/resnet50").tags
    assert next(iter(tags)) == timm.get_pretrained_cfg("resnet50").tag
    assert backbones.names("timm/resnet50.") == [f"timm/resnet50.{tag}" for tag in tags]
    tagged = backbones.describe("timm/resnet50.fb_swsl_ig1b_ft_in1k")
    assert (tagged.layer_groups, tagged.image_size) == (backbones.describe("timm/resnet50").layer_groups, 224)
    assert backbones.preprocessing_of("timm/resnet50.fb_swsl_ig1b_ft_in1k").interpolation == "bilinear"
    with pytest.raises(BackboneError, match=r"Unknown backbone 'timm/resnet50\.a1_in2k'\. Did you mean '.*\.a1_in1k'"):
        backbones.describe("timm/resnet50.a1_in2k")


def test_the_catalogue_has_the_image_size_of_every_tag() -> None:
    tags = {f"{name}.{tag}": size for name in backbones.names("timm/mobilenetv4*") for tag, size in _tags(name)}
    assert len(set(tags.values())) > 2
    for name, size in tags.items():
        assert backbones.describe(name).image_size == backbones.preprocessing_of(name).image_size == size


def _tags(name: str) -> list[tuple[str, int]]:
    return list(backbones.describe(name).tags.items())


def test_without_the_package_it_is_said_how_to_get_it_and_nothing_of_it_is_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "timm" else find(name, *args))
    for call in (backbones.describe, backbones.preprocessing_of, made):
        with pytest.raises(BackboneError, match=r"needs the package timm: pip install 'thawline\[timm\]'"):
            call(RESNET)
    assert backbones.names("timm/") == []
    assert "resnet18" in backbones.names()


def test_a_newer_timm_is_asked_itself_and_what_cannot_be_used_ends_no_listing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known, refused, newly_refused = (
        catalogue_of("timm"),
        "timm/mobilenetv5_300m_enc",
        "timm/qwen3_vit_88m_enc",
    )
    info = known.infos[RESNET]
    older = Catalogue("0.1", {RESNET: replace(info, layer_groups=("of", "old"))}, {refused: known.refused[refused]})
    tables = {"timm": older}
    monkeypatch.setattr(_catalogue, "catalogue_of", lambda library: tables.get(library) or catalogue_of(library))
    monkeypatch.setattr(_timm, "list_names", lambda: [refused, newly_refused, RESNET])
    assert backbones.names("timm/") == [newly_refused, RESNET]
    assert backbones.describe(RESNET) == info
    assert backbones.depth_of(RESNET) == len(info.layer_groups) != 2
    for name in (refused, newly_refused):
        with pytest.raises(BackboneError, match=f"'{name}' cannot be used"):
            backbones.describe(name)

    listed = CliRunner().invoke(app, ["backbones", "timm/", "--json"], catch_exceptions=False)
    assert [row["name"] for row in json.loads(listed.output)] == [RESNET]
    with pytest.raises(BackboneError, match="cannot be used"):
        CliRunner().invoke(app, ["backbones", newly_refused], catch_exceptions=False)


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = made(seed=1), made(seed=1), made(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.weights_digest == again.weights_digest != other.weights_digest


def test_a_file_fills_all_but_the_head_whatever_its_head(tmp_path: Path) -> None:
    source = made(num_classes=7, seed=1)
    file = saved(source, tmp_path / "weights.safetensors")
    loaded = made(num_classes=3, weights=str(file), seed=2)
    assert loaded.weights_digest == source.weights_digest
    assert loaded.module.get_classifier().out_features == 3

    headless = {name: value for name, value in load_file(file).items() if not name.startswith("fc.")}
    torch.save(headless, tmp_path / "headless.pt")
    assert made(weights=str(tmp_path / "headless.pt"), seed=3).weights_digest == source.weights_digest


def test_a_folder_as_on_the_hub_fills_it_and_says_how_images_are_prepared(tmp_path: Path) -> None:
    source = made(num_classes=7, seed=1)
    saved(source, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"must have the config\.json and model\.safetensors"):
        backbones.check_weights(RESNET, str(tmp_path))

    prepared = {"input_size": [3, 48, 48], "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "crop_pct": 0.75}
    described = {"architecture": "test_resnet", "num_classes": 7, "pretrained_cfg": prepared}
    (tmp_path / "config.json").write_text(json.dumps(described))
    backbones.check_weights(RESNET, str(tmp_path))
    loaded = made(weights=str(tmp_path), image_size=None, seed=2)
    assert loaded.weights_digest == source.weights_digest
    assert loaded.preprocessing == backbones.Preprocessing(48, 64, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), "bicubic")
    with pytest.raises(WeightsError, match="are for 'timm/test_resnet', but the backbone is 'timm/test_vit'"):
        backbones.check_weights(VIT, str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"there is no file .*model\.safetensors"):
        backbones.check_weights(RESNET, str(tmp_path))


@pytest.mark.parametrize(
    ("name", "crop_mode"),
    [
        ("dm_nfnet_f0", "squash"),  # both sides to 213 pixels, of which 192 are cut out
        ("tf_efficientnetv2_m", "squash"),
        ("vit_base_patch32_clip_384.openai_ft_in12k_in1k", "squash"),
        ("eva02_base_patch14_448", "squash"),
        ("maxvit_tiny_tf_384", "squash"),
        ("resnet50", "center"),
        ("vit_base_patch16_224", "center"),
        ("tf_efficientnet_lite0", "center"),
    ],
)
def test_an_image_is_resized_and_cut_as_timm_does_it(name: str, crop_mode: str) -> None:
    """To the bit, since both call Pillow; but strips longer than 16 to 1, where timm crops, are cut before."""
    settings = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    assert settings["crop_mode"] == crop_mode
    prepare = timm.data.create_transform(**settings, normalize=False)
    ours = backbones.preprocessing_of(f"timm/{name}")
    assert isinstance(ours, backbones.Preprocessing)
    view: dict[str, Any] = {
        "resize_size": ours.resize_size, "crop_size": ours.image_size, "interpolation": ours.interpolation
    }  # fmt: skip
    other_mode = "center" if crop_mode == "squash" else "squash"
    strips = [(1, 300), (300, 1)] if crop_mode == "squash" else [(1, 16), (16, 1)]
    for size in [(37, 211), (500, 333), (224, 225), (300, 300), *strips]:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        theirs = prepare(image).permute(1, 2, 0).numpy()
        assert np.array_equal(resize_and_crop(image, **view, crop_mode=ours.crop_mode), theirs), size
        if max(size) > 1.2 * min(size):
            assert not np.array_equal(resize_and_crop(image, **view, crop_mode=other_mode), theirs), size


def test_only_two_usable_networks_of_timm_ask_for_a_way_of_resizing_that_is_not_known_here() -> None:
    """``border`` pads the shorter side; the docs of ``preprocessing_of`` name those who see the centre instead."""
    asking = {name for name in backbones.names("timm/*") if _timm._config(name).crop_mode not in ("center", "squash")}
    assert asking == {"timm/deepseek_vit_412m", "timm/deepseek_vit_412m_align"}


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_file_that_does_not_fit_is_refused_by_the_name_of_the_tensor(change: str, tmp_path: Path) -> None:
    tensors = load_file(saved(made(), tmp_path / "weights.safetensors"))
    if change == "missing":
        del tensors["layer1.0.conv1.weight"]
    else:
        tensors["layer9.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "changed.safetensors")
    with pytest.raises(WeightsError, match=r"changed\.safetensors' do not match 'timm/test_resnet'(.|\n)*layer[19]"):
        made(weights=str(tmp_path / "changed.safetensors"))


def test_position_embeddings_are_resized_to_another_image_size(tmp_path: Path) -> None:
    source = made(VIT, image_size=64)
    larger = made(VIT, image_size=96, weights=str(saved(source, tmp_path / "weights.safetensors")))
    assert larger.architecture["kwargs"]["img_size"] == 96
    shapes = [backbone.module.get_parameter("pos_embed").shape[1] for backbone in (source, larger)]
    assert shapes == [4 * 4 + 1, 6 * 6 + 1]
    key = "blocks.0.attn.qkv.weight"
    assert torch.equal(body(source)[key], body(larger)[key])


def test_default_weights_are_a_safetensors_file_of_the_hub_and_the_cache_is_asked_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = made(num_classes=timm.get_pretrained_cfg("test_resnet").num_classes)
    file = saved(source, tmp_path / "model.safetensors")
    asked: list[tuple[str, str, bool]] = []

    def download(repository: str, name: str, *, local_files_only: bool = False, **_: object) -> str:
        asked.append((repository, name, local_files_only))
        if local_files_only:
            raise LocalEntryNotFoundError("not there")
        return str(file)

    monkeypatch.setattr(_timm, "hf_hub_download", download)
    assert made(weights="default", seed=5).weights_digest == source.weights_digest
    repository = timm.get_pretrained_cfg("test_resnet").hf_hub_id
    assert asked == [(repository, "model.safetensors", True), (repository, "model.safetensors", False)]


def test_unavailable_default_weights_are_not_replaced_by_random_ones_and_the_ways_out_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("The hub cannot be reached.\nMore lines.")

    monkeypatch.setattr(_timm, "hf_hub_download", unreachable)
    with pytest.raises(WeightsError) as caught:
        made(weights="default")
    for part in ("The hub cannot be reached.\n", "model.safetensors", "HF_HOME", "--weights FILE", "--weights none"):
        assert part in str(caught.value)


def test_weights_that_are_not_there_are_refused_without_looking_at_the_network(tmp_path: Path) -> None:
    pickled = next(name for name in backbones.names("timm/gcvit*") if not backbones.describe(name).weights)
    with pytest.raises(WeightsError, match="as a pickle, which could run code: download it yourself"):
        backbones.check_weights(pickled, "default")
    with pytest.raises(WeightsError, match="Starter weights are shipped for 'mobilenet_v3_small' only"):
        backbones.check_weights(RESNET, "starter")
    with pytest.raises(WeightsError, match="there is no file"):
        backbones.check_weights(RESNET, str(tmp_path / "none.pt"))
    backbones.check_weights(RESNET, "default")
    backbones.check_weights(RESNET, "none")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("timm/mobilenetv5_300m_enc", "it is not a classifier"),
        ("timm/vit_base_patch16_sapiens2", "1024 x 768 pixels"),
    ],
)
def test_a_network_that_cannot_be_used_is_not_listed_and_says_why(name: str, why: str) -> None:
    assert name not in backbones.names()
    with pytest.raises(BackboneError, match=f"'{name}' cannot be used: .*{why}.*thawline backbones timm/"):
        backbones.describe(name)
    with pytest.raises(BackboneError, match=why):
        _timm.inspect(name)


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "efficientvim_m1_dist", "levit_128s", "repvit_m0_9"]
)
def test_a_network_of_several_heads_gets_a_single_one_that_reads_what_they_read(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sized = {"img_size": 32} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    theirs = timm.create_model(name, num_classes=7, **sized).eval()
    file = tmp_path / "weights.safetensors"
    save_file({path: value.contiguous() for path, value in theirs.state_dict().items()}, file)
    ours = with_random_head(made(f"timm/{name}", weights=str(file), seed=3))
    ours.module.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        assert torch.equal(ours.module.get_submodule("head")(features), ours.module(images))
    assert ours.head.tensors == ("head.weight", "head.bias")
    assert ours.module.get_parameter("head.weight").shape == (3, features.shape[1])
    assert ours.weights_digest == made(f"timm/{name}", weights=str(file), num_classes=2, seed=4).weights_digest
    assert ours.weights_digest != made(f"timm/{name}", seed=3).weights_digest


def test_a_size_that_it_does_not_take_is_refused_before_weights_are_looked_for() -> None:
    with pytest.raises(BackboneError, match=r"timm/test_vit does not support images of 8 x 8 pixels: .*160 x 160"):
        made(VIT, image_size=8, weights="no-such-file")
    with pytest.raises(BackboneError, match="`image_size >= 1` must hold, but got image_size=0"):
        made(image_size=0)
    with pytest.raises(BackboneError, match="takes images, so max_length does not apply, but got max_length=9"):
        made(max_length=9)
    with pytest.raises(BackboneError, match="`num_classes >= 1` must hold, but got num_classes=0"):
        made(num_classes=0)


def test_biases_that_levit_keeps_in_evaluation_mode_are_numbers_after_it_was_cut() -> None:
    backbone = with_random_head(made("timm/levit_256d", image_size=224))
    backbone.module.eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        before = backbone.module(images)
        stored = section(backbone, 0, 2)(images)
        assert torch.equal(section(backbone, 2)(stored), before)
        assert torch.equal(backbone.module(images), before)
