"""The model card: what was exported, how good it is, and where its data and weights come from."""

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

from thawline.exceptions import ConfigError
from thawline.exporting._formats import Exported, Format
from thawline.registry import MlflowRegistry, ModelName
from thawline.reports import proportion_interval
from thawline.search.version_config import config_of_version

__all__ = ["model_card"]

_USE: Mapping[Format, str] = {
    "timm": """import timm
from PIL import Image

model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
probabilities = model(transform(Image.open("image.jpg").convert("RGB"))[None]).softmax(1)""",
    "transformers": """from transformers import pipeline

classify = pipeline("image-classification", model=".")
print(classify("image.jpg"))""",
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
# pixels: float32 [N, 3, S, S] from 0 to 1, resized and cropped as `preprocessing` in the metadata says
(probabilities,) = session.run(None, {"pixels": pixels})
classes = session.get_modelmeta().custom_metadata_map["classes"]""",
    "openvino": """import openvino

model = openvino.Core().compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
# pixels: float32 [N, 3, S, S] from 0 to 1, resized and cropped as `preprocessing` in rt_info says
probabilities = model({"pixels": pixels})["probabilities"]""",
}


def model_card(registry: MlflowRegistry, name: ModelName, exported: Exported, wanted: Format, difference: float) -> str:
    """A page in Markdown, with the metadata that the hub reads at its beginning.

    Raises:
        RegistryError: if the registry fails.
    """
    tags = registry.tags(name.name, str(name.version))
    verdict = registry.verdict(name.name, str(name.version))
    origin, licence = _origin(registry, name, exported.architecture)
    return "\n".join(
        [
            "---",
            *([f"license: {licence}"] if licence else []),
            f"library_name: {wanted}",
            "pipeline_tag: image-classification",
            "tags: [thawline]",
            "---",
            f"# {name.name}, version {name.version}",
            "",
            f"A classifier of images, fine-tuned by Thawline and exported for {wanted}. Its probabilities differ from "
            f"the registered model's by at most {difference:.1e}, given the same pixels.",
            "",
            "## Use",
            "",
            f"```python\n{_USE[wanted]}\n```",
            "",
            f"Classes, in the order of the outputs:\n\n```json\n{_quoted(list(exported.classes))}\n```",
            "",
            "## Results",
            "",
            *_results(verdict),
            "",
            "## Training data",
            "",
            f"Digest of the data set: `{tags.get('thawline.data_digest', 'not recorded')}`. Who made the images, and "
            "what they show, is not described here: add what a reader must know.",
            "",
            "## Weights",
            "",
            f"Backbone: `{tags.get('thawline.backbone', 'not recorded')}`, pretrained weights: {origin}. "
            + (f"Their licence: {licence}." if licence else "Their licence is not recorded: ask where they come from."),
            "",
            "## Calibration",
            "",
            f"Logits are divided by {exported.temperature:.4g}; the exported model does so itself.",
            "",
        ]
    )


def _quoted(value: object) -> str:
    """JSON that ends no block and is no markup, whatever a class is called."""
    return json.dumps(value, ensure_ascii=False).translate({ord(sign): f"\\u{ord(sign):04x}" for sign in "`<>&"})


def _results(verdict: Mapping[str, Any] | None) -> list[str]:
    if verdict is None:
        return ["Not recorded."]
    metrics, count = verdict["challenger"], int(verdict["images"])
    accuracy = proportion_interval(round(metrics["accuracy"] * count), count)
    others = [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in metrics.items() if name != "accuracy"]
    return [
        f"On {count} test images; the interval is Wilson's of 95 %.",
        "",
        "| metric | value |",
        "|---|---|",
        f"| accuracy | {accuracy} |",
        *others,
    ]


def _origin(registry: MlflowRegistry, name: ModelName, architecture: Mapping[str, Any]) -> tuple[str, str | None]:
    """Where the pretrained weights come from, and under which licence, as far as that is known."""
    backbone = registry.tags(name.name, str(name.version)).get("thawline.backbone", "")
    try:
        config = config_of_version(registry, name.name, str(name.version))
    except ConfigError:
        config = None
    if config is None:
        return "not recorded", None
    weights = config.backbone.weights_of(backbone)
    if weights == "none":
        return "none, training began with random weights", None
    if weights == "starter":
        return "Thawline's starter weights", "apache-2.0"
    if weights != "default":
        return "a file of the one who trained it", None
    library = architecture.get("library", "torchvision")
    if library == "timm" and importlib.util.find_spec("timm"):
        import timm

        known = timm.get_pretrained_cfg(architecture["builder"])
        if known is not None and known.hf_hub_id:
            return f"`{known.hf_hub_id}` of the Hugging Face hub", known.license
    if library == "torchvision":
        return f"torchvision's default weights of {architecture['builder']}, trained on ImageNet", None
    return f"those of `{backbone}`", None
