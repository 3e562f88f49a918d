"""The starter weights load as promised and carry something over to images they never saw."""

from importlib.resources import as_file, files
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torchvision.models import mobilenet_v3_small
from torchvision.models.mobilenetv3 import MobileNetV3

LEFT_OUT = {"classifier.3.weight", "classifier.3.bias"}
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


@pytest.fixture(scope="module")
def weights_file() -> Path:
    with as_file(files("thawline.backbones.starter") / "mobilenet_v3_small.safetensors") as path:
        return Path(path)


def random_network(seed: int = 0) -> MobileNetV3:
    torch.manual_seed(seed)
    network: MobileNetV3 = mobilenet_v3_small(weights=None, num_classes=10)
    return network.eval()


def starter_network(path: Path) -> MobileNetV3:
    network = random_network()
    network.load_state_dict({name: value.float() for name, value in load_file(path).items()}, strict=False)
    return network.eval()


@torch.inference_mode()
def pooled(network: MobileNetV3, images: Tensor) -> Tensor:
    return network.avgpool(network.features((images - MEAN) / STD)).flatten(1)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.from_numpy(data.images[:600]).float().unsqueeze(1) / 16.0
    larger = F.interpolate(images, size=(48, 48), mode="bilinear").expand(-1, 3, -1, -1)
    return larger, torch.from_numpy(data.target[:600]).long()


def probe_accuracy(network: MobileNetV3, digits: tuple[Tensor, Tensor]) -> float:
    """Fit logistic regression on 300 digits' features, score it on the 300 others."""
    images, labels = digits
    features = pooled(network, images).numpy()
    scaler = StandardScaler().fit(features[:300])
    classifier = LogisticRegression(C=0.1, max_iter=2000)
    classifier.fit(scaler.transform(features[:300]), labels[:300].numpy())
    return float(classifier.score(scaler.transform(features[300:]), labels[300:].numpy()))


def test_the_file_has_at_most_four_megabytes(weights_file: Path) -> None:
    assert weights_file.stat().st_size <= 4_000_000


def test_every_floating_point_weight_is_in_half_precision(weights_file: Path) -> None:
    kinds = {value.dtype for value in load_file(weights_file).values() if value.is_floating_point()}
    assert kinds == {torch.float16}


def test_only_the_final_layer_is_missing_from_the_weights(weights_file: Path) -> None:
    missing, unexpected = random_network().load_state_dict(load_file(weights_file), strict=False)
    assert set(missing) == LEFT_OUT
    assert unexpected == []


def test_the_header_says_how_to_prepare_images_and_under_which_licence(weights_file: Path) -> None:
    with safe_open(weights_file, framework="pt") as opened:
        header = opened.metadata()
    assert header["architecture"] == "torchvision.models.mobilenet_v3_small"
    assert header["mean"] == "0.485,0.456,0.406"
    assert header["std"] == "0.229,0.224,0.225"
    assert header["licence"] == "Apache-2.0"
    assert {"image_size", "date"} <= header.keys()


@pytest.mark.parametrize("side", [32, 64, 96])
def test_features_are_finite_and_differ_between_images(weights_file: Path, side: int) -> None:
    images = torch.rand((4, 3, side, side), generator=torch.Generator().manual_seed(0))
    features = pooled(starter_network(weights_file), images)
    assert features.shape == (4, 576)
    assert bool(torch.isfinite(features).all())
    assert float(features.std(0).max()) > 0.0


def test_the_starter_tells_digits_apart_better_than_a_random_network(
    weights_file: Path, digits: tuple[Tensor, Tensor]
) -> None:
    random = max(probe_accuracy(random_network(seed), digits) for seed in (0, 1, 2))
    starter = probe_accuracy(starter_network(weights_file), digits)
    assert random > 0.5, "the control: even random features must tell some digits apart"
    assert starter > random + 0.03
