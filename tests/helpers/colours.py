"""A small network with known predictions: the colour of a picture."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torchvision.models import get_model

from thawline.backbones import Preprocessing
from thawline.data import decode, resize_and_crop
from thawline.engines import SAMPLE_FILE, write_sample
from thawline.registry import Calibration, MlflowRegistry, PredictionSets, Reference, log_packaged_model, package
from thawline.registry.contents import DIGEST_TAG
from thawline.tracking import MlflowStore

__all__ = [
    "CLASSES",
    "PREPROCESSING",
    "add_engine_files",
    "add_layers",
    "colour_network",
    "features_of",
    "files_of",
    "folder_of",
    "forget_digests",
    "make_package",
    "picture",
    "register",
    "trial_run",
]

CLASSES = ("red", "green", "blue")
PREPROCESSING = Preprocessing(32, 36, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear")


def picture(colour: str, kind: str = "PNG", size: tuple[int, int] = (50, 40)) -> bytes:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., CLASSES.index(colour)] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def colour_network(order: tuple[int, int, int] = (0, 1, 2)) -> torch.nn.Module:
    """An mnasnet0_5 with known predictions: its head detects the dominant colour.

    The layers before the head are random; the head is fitted to them, so that class ``i`` is colour ``order[i]``.
    """
    torch.manual_seed(0)
    network = get_model("mnasnet0_5", weights=None, num_classes=3, dropout=0.0).eval()
    inputs = []
    for colour in CLASSES:
        pixels = np.array(Image.open(io.BytesIO(picture(colour))).resize((32, 32)))
        inputs.append((torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - 0.5) / 0.25)
    with torch.no_grad():
        # Batch statistics of the three pictures, so that a network with random weights can distinguish them.
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        network.train()(torch.stack(inputs))
        network.eval()
        features = network.layers(torch.stack(inputs)).mean((2, 3))
        target = torch.full((3, 3), -5.0)
        for output, colour in enumerate(order):
            target[colour, output] = 5.0
        # numpy's, as torch 2.11's gives zeros for features of such a range.
        solution = np.linalg.lstsq(features.double().numpy(), target.double().numpy(), rcond=None)[0]
        network.classifier[1].weight.copy_(torch.from_numpy(solution.T))
        network.classifier[1].bias.zero_()
    return network


def make_package(
    folder: Path,
    *,
    order: tuple[int, int, int] = (0, 1, 2),
    classes: tuple[str, ...] = CLASSES,
    calibration: Calibration | None = None,
    prediction_sets: PredictionSets | None = None,
    reference: Reference | None = None,
    exports: Sequence[Literal["pt2", "onnx"]] = (),
    sample: Sequence[bytes] = (),
) -> Path:
    network = colour_network(order)
    temperature = calibration.temperature if calibration else 1.0
    return package(
        folder,
        state_dict=network.state_dict(),
        exports=exports,
        network=network,
        sample=[(image, _trained(network, image, temperature)) for image in sample],
        architecture={"builder": "mnasnet0_5", "kwargs": {"num_classes": 3, "dropout": 0.0}},
        classes=classes,
        preprocessing=PREPROCESSING,
        example=picture("red"),
        max_pixels=1_000_000,
        calibration=calibration,
        prediction_sets=prediction_sets,
        reference=reference,
        extra={"study": "birds", "trial": 7},
    )


def features_of(images: Sequence[bytes]) -> np.ndarray:
    """The input of the colour network's head, ``[N, F]``."""
    with torch.inference_mode():
        features = colour_network().layers(torch.cat([_normalised(image) for image in images])).mean((2, 3))
    found: np.ndarray = features.numpy()
    return found


def _normalised(image: bytes) -> torch.Tensor:
    """The network's input, ``[1, 3, 32, 32]``."""
    pixels = resize_and_crop(decode(image), resize_size=36, crop_size=32, interpolation="bilinear")
    return ((torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - 0.5) / 0.25)[None]


def _trained(network: torch.nn.Module, image: bytes, temperature: float) -> list[float]:
    """Probabilities from the network itself."""
    with torch.inference_mode():
        logits = network(_normalised(image))
    answer: list[float] = (logits[0].double() / temperature).softmax(0).tolist()
    return answer


def add_engine_files(folder: Path, *, wrong_by: float = 0.0) -> Path:
    """Write an ONNX graph that classifies one-coloured pictures like the package's network, with a sample of them.

    It is built manually, because PyTorch's exporter takes seconds.

    Args:
        folder: folder of a package, which is modified.
        wrong_by: added to the graph's first probability.
    """
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["pixels"], ["colour"], axes=[2, 3], keepdims=0),
            helper.make_node("Mul", ["colour", "ten"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["right"], axis=1),
            helper.make_node("Add", ["right", "wrong"], ["probabilities"]),
        ],
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        [
            helper.make_tensor("ten", TensorProto.FLOAT, [], [10.0]),
            helper.make_tensor("wrong", TensorProto.FLOAT, [3], [wrong_by, 0.0, 0.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    images = [np.full((32, 32, 3), 255 * np.eye(3, dtype=np.uint8)[index]) for index in range(3)]
    sure = np.exp(10) / (np.exp(10) + 2)
    write_sample(folder / SAMPLE_FILE, images, np.where(np.eye(3) == 1, sure, (1 - sure) / 2).tolist())
    settings = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(settings | {"exports": {"onnx": 0.0}}))
    return folder


def add_layers(folder: Path, *, outlier: float = 0.0) -> Path:
    """The same with quantisable layers: two convolutions, the first of which passes on the colours.

    Args:
        folder: folder of a package, which is modified.
        outlier: weight of a fourth channel between them, which the second one ignores. In single precision it changes
            nothing. In int8 it stretches the range of all channels, so that the colours vanish in a step of it.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    first = np.concatenate([np.eye(3), np.full((1, 3), outlier)])[:, :, None, None]
    second = np.concatenate([np.eye(3), np.zeros((3, 1))], axis=1)[:, :, None, None]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pixels", "first"], ["channels"]),
            helper.make_node("Relu", ["channels"], ["positive"]),
            helper.make_node("Conv", ["positive", "second"], ["colours"]),
            helper.make_node("ReduceMean", ["colours"], ["colour"], axes=[2, 3], keepdims=0),
            helper.make_node("Mul", ["colour", "ten"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(first.astype(np.float32), "first"),
            numpy_helper.from_array(second.astype(np.float32), "second"),
            helper.make_tensor("ten", TensorProto.FLOAT, [], [10.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    add_engine_files(folder)
    onnx.save(model, folder / "model.onnx")
    return folder


def trial_run(store: MlflowStore, number: int = 1) -> str:
    return str(store.client.create_run(store.experiment_id, run_name=f"trial-{number:02d}").info.run_id)


def folder_of(store: MlflowStore, uri: str) -> Path:
    """The folder of a logged model."""
    location = store.client.get_logged_model(uri.removeprefix("models:/")).artifact_location
    return Path(location.removeprefix("file://"))


def files_of(store: MlflowStore, name: str = "birds", version: str = "1") -> Path:
    """The folder of a registered version."""
    return Path(store.client.get_model_version_download_uri(name, version).removeprefix("file://"))


def forget_digests(store: MlflowStore, version: str = "1") -> Path:
    """Turn a version of ``birds`` into one of an earlier Thawline without digests; returns its folder."""
    folder = files_of(store, version=version)
    (folder / "digests.json").unlink()
    store.client.delete_model_version_tag("birds", version, DIGEST_TAG)
    return folder


def register(store: MlflowStore, folder: Path, name: str = "birds", study: str = "s") -> str:
    """Register a package as the next version of a model; returns the version."""
    run_id = trial_run(store)
    uri = log_packaged_model(store, run_id, folder, name)
    return MlflowRegistry(store).register(name, uri, run_id=run_id, study=study, tags={})
