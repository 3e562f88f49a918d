"""The model card: the exported model, its results, and the origin of its data and weights."""

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
# pixels: float32 [N, 3, S, S] from 0 to 1, resized and cropped according to `preprocessing` in the metadata
(probabilities,) = session.run(None, {"pixels": pixels})
classes = session.get_modelmeta().custom_metadata_map["classes"]""",
    "openvino": """import openvino

model = openvino.Core().compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
# pixels: float32 [N, 3, S, S] from 0 to 1, resized and cropped according to `preprocessing` in rt_info
probabilities = model({"pixels": pixels})["probabilities"]""",
}


def model_card(registry: MlflowRegistry, name: ModelName, exported: Exported, wanted: Format, difference: float) -> str:
    """A page in Markdown, with metadata for the hub at the top.

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
            f"An image classifier, fine-tuned by Thawline and exported for {wanted}. For the same pixels, its "
            f"probabilities differ from those of the registered model by at most {difference:.1e}.",
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
            f"Digest of the data set: `{tags.get('thawline.data_digest', 'not recorded')}`. The content and origin of "
            "the images are not described here: add what a reader must know.",
            "",
            "## Weights",
            "",
            f"Backbone: `{tags.get('thawline.backbone', 'not recorded')}`, pretrained weights: {origin}. "
            + (f"Their licence: {licence}." if licence else "Their licence is not recorded: check their source."),
            "",
            "## Calibration",
            "",
            f"Logits are divided by {exported.temperature:.4g}; this is part of the exported model.",
            "",
        ]
    )


def _quoted(value: object) -> str:
    """JSON without characters that could end the code block or act as markup, whatever the class names."""
    return json.dumps(value, ensure_ascii=False).translate({ord(sign): f"\\u{ord(sign):04x}" for sign in "`<>&"})


def _results(verdict: Mapping[str, Any] | None) -> list[str]:
    if verdict is None:
        return ["Not recorded."]
    metrics, count = verdict["challenger"], int(verdict["images"])
    accuracy = proportion_interval(round(metrics["accuracy"] * count), count)
    others = [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in metrics.items() if name != "accuracy"]
    return [
        f"On {count} test images; the interval is the 95 % Wilson interval.",
        "",
        "| metric | value |",
        "|---|---|",
        f"| accuracy | {accuracy} |",
        *others,
    ]


def _origin(registry: MlflowRegistry, name: ModelName, architecture: Mapping[str, Any]) -> tuple[str, str | None]:
    """The origin and licence of the pretrained weights, as far as they are known."""
    backbone = registry.tags(name.name, str(name.version)).get("thawline.backbone", "")
    try:
        config = config_of_version(registry, name.name, str(name.version))
    except ConfigError:
        config = None
    if config is None:
        return "not recorded", None
    weights = config.backbone.weights_of(backbone)
    if weights == "none":
        return "none, training started from random weights", None
    if weights == "starter":
        return "Thawline's starter weights", "apache-2.0"
    if weights != "default":
        return "a file provided by the user", None
    library = architecture.get("library", "torchvision")
    if library == "timm" and importlib.util.find_spec("timm"):
        import timm

        known = timm.get_pretrained_cfg(architecture["builder"])
        if known is not None and known.hf_hub_id:
            return f"`{known.hf_hub_id}` on the Hugging Face Hub", known.license
    if library == "torchvision":
        return f"torchvision's default weights of {architecture['builder']}, trained on ImageNet", None
    return f"those of `{backbone}`", None
