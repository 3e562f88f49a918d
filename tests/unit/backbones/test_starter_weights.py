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

pytestmark = pytest.mark.xdist_group("starter-weights")

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
def centred_digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.from_numpy(data.images[:600]).float().unsqueeze(1) / 16.0
    larger = F.interpolate(images, size=(48, 48), mode="bilinear").expand(-1, 3, -1, -1)
    return larger, torch.from_numpy(data.target[:600]).long()


@pytest.fixture(scope="module")
def scattered_digits() -> tuple[Tensor, Tensor]:
    """Six hundred digits in any place, in any two grey levels, dark on light or light on dark."""
    data = load_digits()
    chance = torch.Generator().manual_seed(0)
    images = torch.empty(600, 3, 48, 48)
    for number, pixels in enumerate(torch.from_numpy(data.images[:600]).float() / 16.0):
        ink = F.interpolate(pixels[None, None], size=(32, 32), mode="bilinear")[0]
        top, left = (int(torch.randint(0, 17, (1,), generator=chance)) for _ in range(2))
        front = float(torch.rand(1, generator=chance))
        back = (front + 0.35 + 0.3 * float(torch.rand(1, generator=chance))) % 1.0
        images[number] = back + (front - back) * F.pad(ink, (left, 16 - left, top, 16 - top))
    return images, torch.from_numpy(data.target[:600]).long()


def probe_accuracy(network: MobileNetV3, digits: tuple[Tensor, Tensor]) -> float:
    """Fit logistic regression on 400 digits' features, score it on the 200 others."""
    images, labels = digits
    features = pooled(network, images).numpy()
    scaler = StandardScaler().fit(features[:400])
    classifier = LogisticRegression(C=0.1, max_iter=2000)
    classifier.fit(scaler.transform(features[:400]), labels[:400].numpy())
    return float(classifier.score(scaler.transform(features[400:]), labels[400:].numpy()))


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


def test_the_starter_tells_scattered_digits_apart_and_a_random_network_does_not(
    weights_file: Path, scattered_digits: tuple[Tensor, Tensor]
) -> None:
    random = max(probe_accuracy(random_network(seed), scattered_digits) for seed in (0, 1))
    assert probe_accuracy(starter_network(weights_file), scattered_digits) > random + 0.3


def test_control_a_random_network_tells_centred_digits_apart(centred_digits: tuple[Tensor, Tensor]) -> None:
    assert probe_accuracy(random_network(), centred_digits) > 0.6  # chance is 0.1
