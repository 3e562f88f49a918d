"""`thawline export`: what other libraries load of a model answers as the model does."""

import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import register
from heads import created_with_random_head
from PIL import Image
from tiny_networks import write_tiny
from tiny_timm import tiny

from thawline.backbones import Backbone, Preprocessing
from thawline.exceptions import ConfigError, DataError, RegistryError
from thawline.exporting import Format, export_model
from thawline.registry import LabelledData, MlflowRegistry, ModelName, calibrate, judge, package
from thawline.tracking import MlflowStore

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::DeprecationWarning:onnxscript"),
]

CLASSES = ("a", "b`|<img src=x onerror=alert(1)>", "c")


def photo(seed: int, width: int = 70, height: int = 50) -> Image.Image:
    """Blurred noise, which nothing about resizing leaves as it is."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def registered(store: MlflowStore, folder: Path, backbone: Backbone) -> None:
    """As version 1 of ``m``, calibrated by a temperature that is not 1."""
    backbone.module.eval()
    random = np.random.default_rng(0)
    calibration = calibrate(random.normal(size=(50, 3)), random.integers(0, 3, 50))
    assert calibration.temperature > 1.1
    package(
        folder,
        state_dict=backbone.module.state_dict(),
        architecture=backbone.architecture,
        classes=CLASSES,
        preprocessing=backbone.preprocessing,
        example=encoded(photo(0)),
        calibration=replace(calibration, temperature=1.7),
        network=backbone.module,
    )
    register(store, folder, "m")


def answers_of(store: MlflowStore, images: list[Image.Image]) -> np.ndarray:
    answers = MlflowRegistry(store).load(ModelName("m", None, "1")).predict([encoded(image) for image in images])
    return np.array([list(answer.probabilities.values()) for answer in answers if not isinstance(answer, str)])


def export(store: MlflowStore, wanted: Format, out: Path) -> Path:
    summary = export_model("m/1", wanted, out, tracking_uri=store.uri, home=store.home)
    assert summary.difference < 1e-5
    assert (out / "README.md").is_file()
    assert not list(out.glob(".*"))
    return out


def by_timm(folder: Path, images: list[Image.Image]) -> np.ndarray:
    """Decoded, resized, cropped and classified by timm alone."""
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform: Any = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with torch.inference_mode():
        answers: np.ndarray = model(torch.stack([transform(image) for image in images])).softmax(1).numpy()
    assert json.loads((folder / "config.json").read_text())["label_names"] == list(CLASSES)
    return answers


def by_transformers(folder: Path, images: list[Image.Image]) -> np.ndarray:
    """Classified by its pipeline."""
    from transformers import pipeline

    classify: Any = pipeline("image-classification", model=str(folder), device="cpu")
    found = classify(images, top_k=3)
    return np.array([[{each["label"]: each["score"] for each in one}[name] for name in CLASSES] for one in found])


def check(store: MlflowStore, folder: Path, by: Callable[[Path, list[Image.Image]], np.ndarray], far: float) -> None:
    size = MlflowRegistry(store).load(ModelName("m", None, "1")).servable.settings["preprocessing"]["resize_size"]
    exact = [photo(seed, size, size) for seed in range(4)]  # nothing to resize
    np.testing.assert_allclose(by(folder, exact), answers_of(store, exact), atol=1e-5)
    others = [photo(4), photo(5, 40, 90)]
    theirs, ours = by(folder, others), answers_of(store, others)
    np.testing.assert_allclose(theirs, ours, atol=far)
    assert list(theirs.argmax(1)) == list(ours.argmax(1))
    assert np.ptp(ours, axis=0).max() > 1e-3, "images are told apart, so that equal answers are not all the same one"


@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/deit_tiny_patch16_224", "timm/poolformerv2_s12"])
def test_a_network_of_timm_is_loaded_by_timm_and_by_transformers(store: MlflowStore, tmp_path: Path, name: str) -> None:
    with tiny(name):
        registered(store, tmp_path / "p", created_with_random_head(name, weights="none", image_size=32))
        check(store, export(store, "timm", tmp_path / "timm"), by_timm, 1e-5)
        check(store, export(store, "transformers", tmp_path / "hf"), by_transformers, 1e-2)


def test_a_network_whose_heads_are_one_in_thawline_is_none_of_timm_s(store: MlflowStore, tmp_path: Path) -> None:
    name = "timm/deit_tiny_distilled_patch16_224"
    with tiny(name):
        registered(store, tmp_path / "p", created_with_random_head(name, weights="none", image_size=32))
        with pytest.raises(RegistryError, match=r"single head instead of several.*--format onnx"):
            export(store, "timm", tmp_path / "timm")
    assert not list((tmp_path / "timm").iterdir())


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_a_network_of_torchvision_that_timm_has_too_is_loaded_by_timm(
    store: MlflowStore, tmp_path: Path, name: str
) -> None:
    registered(store, tmp_path / "p", created_with_random_head(name, weights="none", image_size=32))
    check(store, export(store, "timm", tmp_path / "timm"), by_timm, 1e-5)


def test_a_network_of_torchvision_that_timm_builds_otherwise_is_refused_with_what_takes_it(
    store: MlflowStore, tmp_path: Path
) -> None:
    registered(store, tmp_path / "p", created_with_random_head("squeezenet1_1", weights="none", image_size=32))
    formats: tuple[Format, ...] = ("timm", "transformers")
    for wanted in formats:
        with pytest.raises(RegistryError, match=r"m/1 is squeezenet1_1 of torchvision, .*Choose --format onnx"):
            export(store, wanted, tmp_path / wanted)


@pytest.mark.parametrize("kind", ["vit", "resnet", "convnext", "swin", "deit", "dinov2"])
def test_a_network_of_transformers_is_loaded_by_its_auto_classes_and_its_pipeline(
    store: MlflowStore, tmp_path: Path, kind: str
) -> None:
    registered(store, tmp_path / "p", created_with_random_head(f"hf:{write_tiny(kind, tmp_path / kind)}"))
    check(store, export(store, "transformers", tmp_path / "hf"), by_transformers, 1e-2)
    with pytest.raises(RegistryError, match=r"which timm does not have\. Choose --format onnx"):
        export(store, "timm", tmp_path / "timm")


@pytest.mark.parametrize("name", ["squeezenet1_1", "timm/resnet10t", "vit"])
@pytest.mark.parametrize("wanted", ["onnx", "openvino"])
def test_a_network_of_each_library_becomes_a_graph_that_says_what_it_needs(
    store: MlflowStore, tmp_path: Path, name: str, wanted: Format
) -> None:
    if importlib.util.find_spec(wanted) is None:
        pytest.skip(f"needs {wanted}")
    chosen = f"hf:{write_tiny(name, tmp_path / name)}" if name == "vit" else name
    size = None if name == "vit" else 32
    weights = "default" if name == "vit" else "none"
    backbone = created_with_random_head(chosen, weights=weights, image_size=size)
    assert isinstance(backbone.preprocessing, Preprocessing)
    registered(store, tmp_path / "p", backbone)
    out = export(store, wanted, tmp_path / "out")
    side = backbone.preprocessing.image_size
    image = photo(3, backbone.preprocessing.resize_size, backbone.preprocessing.resize_size)
    start = (image.width - side) // 2
    pixels = np.array(image, np.float32)[start : start + side, start : start + side].transpose(2, 0, 1)[None] / 255
    answer, said = BY_GRAPH[wanted](out, pixels)
    np.testing.assert_allclose(answer, answers_of(store, [image]), atol=1e-5)
    assert json.loads(said["classes"]) == list(CLASSES)
    assert json.loads(said["preprocessing"])["image_size"] == side
    assert json.loads(said["calibration"])["temperature"] == 1.7
    assert f"library_name: {wanted}" in (out / "README.md").read_text()


def by_onnx(folder: Path, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": pixels})[0], session.get_modelmeta().custom_metadata_map


def by_openvino(folder: Path, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    import openvino

    model: Any = openvino.Core().read_model(folder / "model.xml")
    compiled: Any = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    said = {
        name: model.get_rt_info(["thawline", name]).astype(str) for name in ("classes", "preprocessing", "calibration")
    }
    return compiled({"pixels": pixels})["probabilities"], said


BY_GRAPH = {"onnx": by_onnx, "openvino": by_openvino}


def test_the_card_tells_results_with_intervals_data_and_origin_and_no_class_is_markup_in_it(
    store: MlflowStore, tmp_path: Path
) -> None:
    registered(store, tmp_path / "p", created_with_random_head("resnet18", weights="none", image_size=32))
    MlflowRegistry(store).set_tags("m", "1", {"thawline.data_digest": "0123abcd", "thawline.backbone": "resnet18"})
    test = LabelledData("test", [encoded(photo(seed)) for seed in range(8)], ["a", "c"] * 4)
    judged = judge(store, name="m", version="1", test=test)
    card = (export(store, "timm", tmp_path / "out") / "README.md").read_text()
    assert f"| accuracy | {judged.challenger.metrics['accuracy']:.3f} (" in card
    assert "On 8 test images; the interval is the 95 % Wilson interval." in card
    for expected in ("0123abcd", "Backbone: `resnet18`", "licence", "divided by 1.7", "library_name: timm"):
        assert expected in card
    assert "<img" not in card
    block = card.partition("```json\n")[2].partition("\n```")[0]
    assert json.loads(block) == list(CLASSES)


def test_nothing_is_overwritten_and_what_is_not_installed_is_named(
    store: MlflowStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(store, folder, "m")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(DataError, match="must be a new or an empty folder"):
        export(store, "onnx", tmp_path / "out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"--format openvino needs openvino, onnx, onnxscript: pip install 'thawline\[openvino\]'"
    ):
        export(store, "openvino", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_of_texts_is_refused_before_anything_is_written(
    store: MlflowStore, text_folder: Path, tmp_path: Path
) -> None:
    register(store, text_folder, "m")
    with pytest.raises(RegistryError, match=r"m/1 classifies texts, but only image models can be exported"):
        export(store, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
