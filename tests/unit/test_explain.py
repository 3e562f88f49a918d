"""Explanations: they lie where the evidence is, depend on what was learnt, and leave the model as it was."""

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from colours import picture, register
from heads import created_with_random_head
from PIL import Image
from torch import Tensor, nn
from torchvision.models import MaxVit, SwinTransformer, VisionTransformer, get_model
from typer.testing import CliRunner

from thawline import backbones
from thawline.backbones.building import build_without_memory
from thawline.cli import app
from thawline.exceptions import ConfigError, DataError, RegistryError
from thawline.explain import Explainer, Method, explain_files, explained_pictures, overlay
from thawline.explain._attribution import _last_maps
from thawline.registry import MlflowRegistry
from thawline.tracking import MlflowStore

SIZE = 32
METHODS: tuple[Method, ...] = ("auto", "integrated-gradients", "occlusion")


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Four spots, one in each quadrant: three of chance, one with the pattern of its class.

    Returns images ``[N, 3, 32, 32]``, classes ``[N]`` and where the class can be seen, ``[N, 32, 32]``.
    """
    random = np.random.default_rng(seed)
    images = random.normal(0, 0.1, (count, SIZE, SIZE)).astype(np.float32)
    down, along = np.indices((16, 16)) // 2
    patterns = [down % 2, along % 2, (down + along) % 2]
    classes, evidence = random.integers(0, 3, count), np.zeros((count, SIZE, SIZE), bool)
    quadrants = [(slice(top, top + 16), slice(left, left + 16)) for top in (0, 16) for left in (0, 16)]
    for image, kind, where in zip(images, classes, evidence, strict=True):
        own = random.integers(0, 4)
        for number, (rows, columns) in enumerate(quadrants):
            spot = patterns[kind] if number == own else random.integers(0, 2, (8, 8)).repeat(2, 0).repeat(2, 1)
            image[rows, columns] += spot * 2 - 1
            where[rows, columns] = number == own
    return torch.from_numpy(images)[:, None].repeat(1, 3, 1, 1), torch.from_numpy(classes), evidence


def convolutional() -> nn.Module:
    layers = [
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)),
    ]
    return nn.Sequential(*layers)


def vision_transformer() -> nn.Module:
    network = VisionTransformer(
        image_size=SIZE, patch_size=4, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=3
    )
    nn.init.trunc_normal_(network.heads[0].weight, std=0.02)  # torchvision's are 0
    return network


def swin_transformer() -> nn.Module:
    return SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0.0, num_classes=3)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "convolutional": convolutional,
    "vision transformer": vision_transformer,
    "swin transformer": swin_transformer,
}


@pytest.fixture(scope="module", params=BUILDERS)
def trained(request: pytest.FixtureRequest) -> nn.Module:
    """A network that tells three patterns apart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = BUILDERS[request.param]()
        optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
        for step in range(200):
            images, classes, _ = pictures(32, step)
            loss = F.cross_entropy(network.train()(images), classes)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if loss < 0.02:
                break
    images, classes, _ = pictures(64, 1000)
    right = (network.eval()(images).argmax(1) == classes).float().mean()
    assert right > 0.9, f"{request.param} learnt too little to be explained: {right}"
    return network


def share(heat: np.ndarray, evidence: np.ndarray) -> float:
    """Of the heat, what lies on the evidence; a quarter does by chance."""
    return float(((heat * evidence).sum((1, 2)) / heat.sum((1, 2)).clip(1e-9)).mean())


def with_random_parameters(network: nn.Module) -> nn.Module:
    """The same network with parameters as large, but of no meaning."""
    changed, random = copy.deepcopy(network), torch.Generator().manual_seed(1)
    for parameter in changed.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random) * parameter.std().clamp(min=0.01)
    return changed


@pytest.mark.parametrize("method", METHODS)
def test_the_evidence_for_a_class_lies_where_the_class_can_be_seen(trained: nn.Module, method: Method) -> None:
    images, classes, evidence = pictures(24, 2000)
    heat = Explainer(trained, SIZE, method)(images, classes.numpy())
    assert heat.shape == (24, SIZE, SIZE)
    assert heat.dtype == np.float32
    assert heat.min() >= 0
    assert (heat.max((1, 2)) == 1).mean() > 0.9  # what a grey picture is taken for may have no evidence for it
    assert share(heat, evidence) > 0.4


@pytest.mark.parametrize("method", METHODS)
def test_an_explanation_depends_on_what_was_learnt(trained: nn.Module, method: Method) -> None:
    """The model parameter randomisation test of Adebayo and others, *Sanity Checks for Saliency Maps*, 2018."""
    images, classes, evidence = pictures(24, 2000)
    learnt = Explainer(trained, SIZE, method)(images, classes.numpy())
    random = Explainer(with_random_parameters(trained), SIZE, method)(images, classes.numpy())
    alike = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(learnt, random, strict=True) if a.any() and b.any()
    ]
    assert share(random, evidence) < 0.36
    assert np.mean(alike) < 0.4


def test_another_class_has_another_explanation(trained: nn.Module) -> None:
    images, classes, evidence = pictures(24, 2000)
    others = Explainer(trained, SIZE)(images, (classes.numpy() + 1) % 3)
    assert share(others, evidence) < 0.3


@pytest.mark.parametrize("method", METHODS)
def test_explaining_leaves_the_network_as_it_was_and_gives_the_same_numbers_again(method: Method) -> None:
    network = created_with_random_head("mobilenet_v3_small", weights="starter").module.train()
    network.features[0].eval()  # type: ignore[index, union-attr]
    for parameter in network.features[0].parameters():  # type: ignore[index, union-attr]
        parameter.requires_grad_(False)
    images = pictures(2, 0)[0].repeat(1, 1, 2, 2)
    before, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    state = torch.get_rng_state()
    explainer = Explainer(network, 64, method)
    first = explainer(images, [0, 1])
    assert first.tobytes() == explainer(images, [0, 1]).tobytes()
    assert first.any()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not images.requires_grad


def test_more_images_than_are_computed_at_once_are_explained_in_order() -> None:
    network, (images, classes, _) = convolutional(), pictures(35, 0)
    explainer = Explainer(network, SIZE)
    together = explainer(images, classes.numpy())
    assert len(together) == 35
    assert np.allclose(together[33:34], explainer(images[33:34], classes[33:34].numpy()), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("alexnet", 224, "features_11"),
        ("convnext_tiny", 224, "add_17"),
        ("densenet121", 224, "relu"),
        ("efficientnet_b0", 224, "features_8_2"),
        ("googlenet", 224, "cat_9"),
        ("inception_v3", 299, "cat_15"),
        ("mnasnet0_5", 224, "layers_16"),
        ("mobilenet_v2", 224, "features_18_2"),
        ("mobilenet_v3_small", 224, "features_12_2"),
        ("mobilenet_v3_small", 64, "features_9_block_0_2"),
        ("regnet_y_400mf", 224, "trunk_output_block4_block4_5_activation"),
        ("resnet18", 224, "layer4_1_relu_1"),
        ("resnet18", 96, "layer3_1_relu_1"),
        ("shufflenet_v2_x0_5", 224, "conv5_2"),
        ("squeezenet1_0", 224, "classifier_0"),
        ("vgg11", 224, "features_19"),
    ],
)
def test_the_last_maps_of_every_family_of_convolutional_networks_are_found(name: str, size: int, expected: str) -> None:
    """Those after the last activation and before pooling, or earlier ones where the last are too coarse."""
    inception = {"transform_input": True, "aux_logits": False, "init_weights": False}
    arguments = inception if name in ("googlenet", "inception_v3") else {}
    network = build_without_memory(lambda: get_model(name, weights=None, num_classes=3, **arguments))
    assert _last_maps(network, size) == expected


@pytest.mark.parametrize(
    "name", ["convnext_tiny", "densenet121", "googlenet", "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_1"]
)
def test_networks_of_all_kinds_are_explained_by_grad_cam(name: str) -> None:
    network = created_with_random_head(name, weights="none", image_size=64).module
    network.requires_grad_(False)
    explainer = Explainer(network, 64)
    heat = explainer(pictures(1, 0)[0].repeat(3, 1, 2, 2), [0, 1, 2])
    assert explainer.method == "grad-cam"
    assert heat.shape == (3, 64, 64)
    assert 0.01 < heat[heat.any((1, 2))].mean() < 0.99


def test_a_maxvit_is_explained_by_integrated_gradients_and_refuses_grad_cam() -> None:
    network = MaxVit((32, 32), 8, 2, [8, 16], [1, 1], 4, 0.0, num_classes=3)
    explainer = Explainer(network, SIZE)
    assert explainer.method == "integrated-gradients"
    assert explainer(pictures(1, 0)[0], [0]).max() == 1
    with pytest.raises(ConfigError, match=r"MaxVit has attention.*--method integrated-gradients or occlusion"):
        Explainer(network, SIZE, "grad-cam")


class Deciding(nn.Module):
    """Inspects its images before the forward pass, as Hugging Face's networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = convolutional()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.mean() > 100:
            return images.flatten(1)[:, :3]
        answer: torch.Tensor = self.layers(images)
        return answer


def test_a_network_that_cannot_be_traced_is_explained_by_integrated_gradients_and_refuses_grad_cam() -> None:
    torch.manual_seed(0)
    network = Deciding()
    explainer = Explainer(network, SIZE)
    assert explainer.method == "integrated-gradients"
    assert explainer(pictures(2, 0)[0], [0, 1]).max() == 1
    with pytest.raises(ConfigError, match=r"its last maps cannot be found\. Use --method integrated-gradients"):
        Explainer(network, SIZE, "grad-cam")


def test_pictures_of_a_backbone_of_texts_are_refused() -> None:
    backbone = SimpleNamespace(name="hf:encoder", preprocessing=backbones.TextPreprocessing("{}", 16))
    with pytest.raises(ConfigError, match=r"^hf:encoder reads texts, but explanations are drawn on images"):
        explained_pictures(backbone, np.zeros((1, 8, 8, 3), np.uint8), [0])  # type: ignore[arg-type]


def test_a_class_that_nothing_speaks_for_has_an_empty_map() -> None:
    network = convolutional()
    nn.init.zeros_(network[-1].weight)  # type: ignore[index]
    assert not Explainer(network, SIZE)(pictures(2, 0)[0], [0, 1]).any()


def test_an_overlay_shows_the_picture_in_grey_under_colours_that_get_lighter() -> None:
    image = np.zeros((1, 256, 3), np.uint8)
    lightness = overlay(image, np.linspace(0, 1, 256)[None]) @ (0.299, 0.587, 0.114)
    assert (np.diff(lightness[0]) > -1).all()
    assert lightness[0, -1] - lightness[0, 0] > 80
    image[..., 0] = 255
    assert (overlay(image, np.zeros((1, 256))) - overlay(np.zeros_like(image), np.zeros((1, 256))) == 30).all()


def test_pictures_for_a_report_show_the_picture_beside_its_explanation() -> None:
    backbone = created_with_random_head("mobilenet_v3_small", weights="starter")
    shown = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    shown[:] = shown.mean((1, 2), keepdims=True)
    files = explained_pictures(backbone, shown, np.array([0, 1]))
    drawn = [np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in files]
    assert [page.shape for page in drawn] == [(64, 136, 3)] * 2
    for page, original in zip(drawn, shown, strict=True):
        assert np.abs(page[:, :56] - original[:, :56]).mean() < 4
        assert page[:, 72:].std((0, 1)).max() > 4  # the explanation of a plain picture is not plain


@pytest.fixture
def with_champion(store: MlflowStore, folder: Path) -> MlflowStore:
    MlflowRegistry(store).set_alias("birds", "champion", register(store, folder))
    return store


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    for name, colour in (("a/one.png", "red"), ("b/one.png", "red"), ("b/ONE.jpg", "red"), ("b/two.png", "blue")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(colour, "JPEG" if name.endswith("jpg") else "PNG"))
    (folder / "b" / "broken.jpg").write_bytes(picture("red", "JPEG")[:200])
    return folder


def explained(store: MlflowStore, paths: list[Path], out: Path, model: str = "birds", **more: Any) -> list[Any]:
    return explain_files(model, paths, out, tracking_uri=store.uri, home=store.home, **more)


def test_every_file_has_a_picture_of_its_own_and_a_bad_one_a_reason(
    with_champion: MlflowStore, photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "out"
    rows = explained(with_champion, [photographs / "a" / "one.png", photographs / "b"], out)
    assert json.loads((out / "explanations.json").read_text()) == rows
    assert [row.get("file") for row in rows] == ["one-red.png", "ONE-red-2.png", None, "one-red-3.png", "two-blue.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["explanations.json", *(row["file"] for row in rows if "file" in row)]
    )
    bad = rows[2]
    assert bad["path"] == str(photographs / "b" / "broken.jpg")
    assert "truncated" in bad["error"]
    last = rows[-1]
    assert {name: last[name] for name in ("path", "model", "predicted", "target", "method")} == {
        "path": str(photographs / "b" / "two.png"),
        "model": "birds/1",
        "predicted": "blue",
        "target": "blue",
        "method": "grad-cam",
    }
    assert last["probability"] == last["target_probability"] > 0.5
    drawn = np.asarray(Image.open(out / "two-blue.png"))
    assert (drawn[20:300, 20:300] == (0, 0, 255)).all()  # the picture itself
    assert (drawn[20:300, 350:600] != (0, 0, 255)).any()


def test_the_same_files_give_the_same_bytes(with_champion: MlflowStore, photographs: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        explained(with_champion, [photographs], tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert len(files) == 5
    assert all((tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes() for name in files)


def test_another_class_than_the_predicted_one_is_explained(
    with_champion: MlflowStore, photographs: Path, tmp_path: Path
) -> None:
    paths = [photographs / "a" / "one.png"]
    (row,) = explained(with_champion, paths, tmp_path / "out", class_name="green", method="occlusion")
    assert (row["predicted"], row["target"], row["file"]) == ("red", "green", "one-green.png")
    assert row["target_probability"] < 0.5 < row["probability"]
    assert row["method"] == "occlusion"


def test_what_cannot_be_explained_is_reported_and_nothing_is_overwritten(
    with_champion: MlflowStore, photographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "one-red.png").write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    errors: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (DataError, "must be a new or an empty folder", {"out": tmp_path / "used"}),
        (DataError, "cannot be used: ", {"out": tmp_path / "file"}),
        (DataError, "does not exist", {"paths": [tmp_path / "nowhere.png"]}),
        (DataError, "contains no image", {"paths": [tmp_path / "empty"]}),
        (RegistryError, "No model 'cats'", {"model": "cats"}),
        (ConfigError, "has no class 'gren'. Did you mean 'green'. Its classes: red, green", {"class_name": "gren"}),
        (ConfigError, "cannot be used", {"device": "toaster"}),
    ]
    for error, sentence, changed in errors:
        with pytest.raises(error, match=sentence):
            explained(with_champion, **{"paths": [photographs], "out": tmp_path / "out", **changed})
    assert [path.read_bytes() for path in (tmp_path / "used").iterdir()] == [b"mine"]
    assert not list((tmp_path / "out").iterdir())


def test_the_command_prints_rows_and_ends_with_1_if_a_file_is_bad(
    with_champion: MlflowStore, photographs: Path, tmp_path: Path
) -> None:
    def explain(*arguments: Path | str) -> Any:
        options = ["--tracking-uri", with_champion.uri]
        return CliRunner().invoke(app, ["explain", "birds", *map(str, arguments), *options], env={"COLUMNS": "300"})

    bad = explain(photographs, "--out", tmp_path / "all", "--json")
    assert bad.exit_code == 1
    assert json.loads(bad.stdout) == json.loads((tmp_path / "all" / "explanations.json").read_text())
    good = explain(photographs / "a", "--out", tmp_path / "one", "--class", "blue", "--method", "integrated-gradients")
    assert good.exit_code == 0
    (line,) = [line for line in good.stdout.splitlines() if "one.png" in line]
    assert line.split()[1] == "red"
    assert line.split()[3:] == ["blue", "integrated-gradients", "one-blue.png"]


def test_long_names_and_names_that_steer_a_terminal_are_drawn(
    with_champion: MlflowStore, photographs: Path, tmp_path: Path
) -> None:
    file = photographs / f"{'ö' * 100}\x1b[31m.png"
    file.write_bytes(picture("green"))
    (row,) = explained(with_champion, [file], tmp_path / "out")
    assert row["file"] == f"{'ö' * 50}-green.png"
    assert (tmp_path / "out" / row["file"]).is_file()
