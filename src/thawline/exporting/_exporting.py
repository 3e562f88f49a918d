"""``thawline export``: from a registered model to a folder in another library's format, verified against the model."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from thawline.backbones import Preprocessing
from thawline.data import make_empty_folder
from thawline.exceptions import RegistryError
from thawline.exporting._card import model_card
from thawline.exporting._formats import Exported, Format, Reader, check_installed
from thawline.registry import MlflowRegistry, PackagedModel, check_kind, described, parse_model
from thawline.tracking import open_store

__all__ = ["ExportSummary", "export_model"]

_TOLERANCE = 1e-5
"""Maximum difference of a probability between the export and the model."""
_COMPARED = 4


@dataclass(frozen=True)
class ExportSummary:
    """The result."""

    model: str
    version: str
    format: Format
    out: Path
    difference: float
    """Largest difference of a probability from the model, on the compared images."""

    def __str__(self) -> str:
        return (
            f"Exported {self.model} version {self.version} to {self.out} for {self.format}; its probabilities differ "
            f"by at most {self.difference:.1e}"
        )


def export_model(model: str, wanted: Format, out: Path, *, tracking_uri: str | None, home: Path) -> ExportSummary:
    """Write an image model for another library, read it back, compare, and add a model card (``README.md``).

    Calibration is part of the export: the softmax of its logits equals the model's probabilities. The other library
    resizes and crops, using exported settings; ``onnx`` and ``openvino`` have them as metadata.

    Args:
        model: ``NAME``, ``NAME@alias`` or ``NAME/version``.
        wanted: ``timm`` (for ``timm.create_model("local-dir:OUT", pretrained=True)``), ``transformers`` (for
            ``AutoModelForImageClassification`` and ``pipeline``), ``onnx`` or ``openvino``.
        out: a new or empty folder: nothing is overwritten.
        tracking_uri: URI of the registry; by default as for a search.
        home: Thawline's home.

    Raises:
        ConfigError: if the packages of the format are not installed.
        RegistryError: if there is no such model, it classifies texts, the format lacks its network, or the export gives
            different results.
        DataError: if ``out`` is not empty or cannot be created.
    """
    name = parse_model(model)
    check_installed(wanted)
    registry = MlflowRegistry(open_store(tracking_uri, home))
    check_kind(registry, name, "only image models can be exported, because exports have no tokenizer")
    chosen = registry.with_network(name, "exported")
    packaged = registry.load(chosen)
    make_empty_folder(out)
    exported = _exported(packaged)
    with tempfile.TemporaryDirectory(prefix=".thawline-", dir=out) as name_of_folder:
        folder = Path(name_of_folder)
        reader = _writer(wanted)(exported, folder)
        shown = exported.pixels if wanted in ("onnx", "openvino") else exported.images
        difference = _difference(packaged, exported, reader, shown, wanted)
        card = model_card(registry, chosen, exported, wanted, difference)
        (folder / "README.md").write_text(card, encoding="utf-8")
        for file in folder.iterdir():
            file.replace(out / file.name)
    return ExportSummary(chosen.name, str(chosen.version), wanted, out, difference)


def _exported(packaged: PackagedModel) -> Exported:
    servable = packaged.servable
    servable.to("cpu")
    preprocessing = Preprocessing(**servable.settings["preprocessing"])
    size, random = preprocessing.image_size, np.random.default_rng(0)
    noise = random.integers(0, 256, (_COMPARED - 2, size, size, 3), dtype=np.uint8)
    example = servable.prepare(packaged.example())
    shown = np.stack([example, example[:, ::-1], *noise])
    return Exported(
        name=str(packaged.name),
        network=servable.network.to(memory_format=torch.contiguous_format),
        architecture=servable.settings["architecture"],
        classes=tuple(servable.classes),
        preprocessing=preprocessing,
        temperature=servable.temperature,
        metadata=described(servable.classes, preprocessing, packaged.calibration),
        pixels=torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255,
    )


def _writer(wanted: Format) -> Callable[[Exported, Path], Reader]:
    """The writer of a format; imports its library."""
    if wanted == "timm":
        from thawline.exporting._timm import write_timm

        return write_timm
    if wanted == "transformers":
        from thawline.exporting._transformers import write_transformers

        return write_transformers
    from thawline.exporting._graphs import write_onnx_file, write_openvino

    return write_onnx_file if wanted == "onnx" else write_openvino


def _difference(packaged: PackagedModel, exported: Exported, reader: Reader, shown: Tensor, wanted: Format) -> float:
    """Largest difference of a probability between the export and the model.

    Raises:
        RegistryError: if it is too large.
    """
    images = [(pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy() for pixels in exported.pixels]
    expected = torch.tensor(packaged.servable.probabilities(images))
    with torch.inference_mode():
        answers = reader(shown).double()
    difference = float((answers - expected).abs().max())
    if difference > _TOLERANCE:
        raise RegistryError(
            f"{exported.name} exported for {wanted} gives different results: a probability differs by "
            f"{difference:.1e}, but at most {_TOLERANCE:.0e} is allowed. No files were kept; choose another --format."
        )
    return difference
