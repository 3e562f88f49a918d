"""Networks rebuilt from plain JSON, as a packaged model does."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_networks import IMAGES, TEXTS
from torch import Tensor, nn

from thawline.backbones import networks


def test_it_imports_nothing_of_thawline_so_that_a_package_may_hold_a_copy() -> None:
    tree = ast.parse(Path(networks.__file__).read_text())
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "torch" in imported
    assert not [name for name in imported if name.startswith((".", "thawline"))]


def test_a_package_of_the_first_versions_names_no_library_and_means_torchvision() -> None:
    architecture = {"builder": "squeezenet1_1", "kwargs": {"num_classes": 3}}
    assert "classifier.1.weight" in networks.build(architecture).state_dict()
    assert networks.build(architecture | {"library": "torchvision"}).state_dict().keys() == (
        networks.build(architecture).state_dict().keys()
    )


def test_a_library_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="`library` must be one of torchvision, timm, transformers, entry-point, but"):
        networks.build({"library": "keras", "builder": "resnet", "kwargs": {}})


def test_a_task_that_there_is_not_is_refused() -> None:
    architecture = {"library": "transformers", "task": "translation", "config": text_config(), "num_classes": 2}
    with pytest.raises(ValueError, match="`task` must be text-classification or image-classification, but got 'trans"):
        networks.build(architecture)


def text_config() -> dict[str, object]:
    return {"model_type": "bert", **TEXTS["bert"]}


def test_transformers_networks_come_from_json_alone_the_same_for_the_same_seed() -> None:
    text = {"library": "transformers", "task": "text-classification", "config": text_config(), "num_classes": 4}
    config = {"model_type": "vit", **IMAGES["vit"]}
    image = {"library": "transformers", "task": "image-classification", "config": config, "num_classes": 4}
    for architecture, inputs in ((text, torch.tensor([[2, 7, 3]])), (image, torch.zeros(1, 3, 32, 32))):

        def answer(architecture: dict[str, object] = architecture, inputs: Tensor = inputs) -> Tensor:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.default_generator.manual_seed(3)
                logits: Tensor = networks.build(json.loads(json.dumps(architecture))).eval()(inputs)
            return logits

        assert answer().shape == (1, 4)
        assert torch.equal(answer(), answer())


def test_a_config_in_half_precision_is_built_in_single_precision() -> None:
    config = {**text_config(), "dtype": "float16"}
    module = networks.build(
        {"library": "transformers", "task": "text-classification", "config": config, "num_classes": 2}
    )
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


class Numbers(nn.Module):
    """An encoder whose features are the ids themselves, and remembers its mask."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        self.ids, self.mask = input_ids, attention_mask
        return SimpleNamespace(last_hidden_state=input_ids.unsqueeze(2).float())


def test_a_text_is_the_mean_over_its_tokens_and_padding_is_masked() -> None:
    classifier = networks.TextClassifier(encoder := Numbers(), 1, 1, padding_id=50)
    nn.init.ones_(classifier.head.weight)
    nn.init.zeros_(classifier.head.bias)
    logits = classifier(torch.tensor([[2, 4, -1, -1], [1, 2, 3, 4]]))
    assert logits.squeeze(1).tolist() == [3.0, 2.5]
    assert encoder.ids.tolist() == [[2, 4, 50, 50], [1, 2, 3, 4]]
    assert encoder.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_a_network_trained_on_blue_green_red_is_given_that() -> None:
    class Red(nn.Module):
        def forward(self, pixel_values: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=pixel_values[:, :1].mean((2, 3)))

    images = torch.zeros(1, 3, 2, 2)
    images[:, 2] = 1.0  # blue
    assert networks.ImageClassifier(Red())(images).item() == 0.0
    assert networks.ImageClassifier(Red(), is_bgr=True)(images).item() == 1.0
