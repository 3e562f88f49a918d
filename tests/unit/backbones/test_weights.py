"""Pretrained tensors come from where the user said, complete and unharmed, or not at all."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models
from torchvision.models import Weights, WeightsEnum

from thawline import backbones
from thawline.backbones._weights import load_into, read_weights
from thawline.exceptions import BackboneError, WeightsError

NAME = "shufflenet_v2_x0_5"
SIZE = 32


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    """A state_dict with the 1000 classes of pretraining and numbers that no initialisation would give."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = models.get_model(NAME, weights=None).state_dict()
        return {name: value + 0.125 if value.is_floating_point() else value + 7 for name, value in state.items()}


def make(file: Path | str, num_classes: int = 3, **options: int) -> backbones.Backbone:
    return backbones.create(NAME, num_classes=num_classes, weights=str(file), image_size=SIZE, **options)


def holds(backbone: backbones.Backbone, state: dict[str, Tensor]) -> bool:
    own = backbone.module.state_dict()
    return all(torch.equal(own[name], value) for name, value in state.items() if not name.startswith("fc."))


def test_the_real_squeezenet_weights_are_the_same_in_both_formats(shared: Path) -> None:
    made = [
        backbones.create(
            "squeezenet1_0",
            num_classes=4,
            weights=str(shared / "weights" / f"squeezenet1_0_imagenet.{suffix}"),
            image_size=64,
        )
        for suffix in ("pth", "safetensors")
    ]
    assert made[0].weights_digest == made[1].weights_digest
    random = backbones.create("squeezenet1_0", num_classes=4, weights="none", image_size=64)
    assert random.weights_digest != made[0].weights_digest


@pytest.mark.parametrize("form", ["pth", "safetensors", "wrapped", "parallel"])
def test_a_file_is_loaded_whole_in_every_usual_form(form: str, trained: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / f"weights.{'safetensors' if form == 'safetensors' else 'pth'}"
    match form:
        case "safetensors":
            save_file(trained, file)
        case "pth":
            torch.save(trained, file)
        case "wrapped":
            torch.save({"epoch": 3, "state_dict": trained}, file)
        case _:
            torch.save({f"module.{name}": value for name, value in trained.items()}, file)
    assert holds(make(file), trained)
    assert not holds(make("none"), trained)


def test_half_precision_is_cast_to_single(trained: dict[str, Tensor], tmp_path: Path) -> None:
    halved = {name: value.half() if value.is_floating_point() else value for name, value in trained.items()}
    save_file(halved, tmp_path / "half.safetensors")
    backbone = make(tmp_path / "half.safetensors")
    assert {value.dtype for value in backbone.module.parameters()} == {torch.float32}
    assert holds(backbone, {name: value.to(trained[name].dtype) for name, value in halved.items()})


def test_the_head_is_new_even_for_as_many_classes_as_the_file_has(trained: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(trained, tmp_path / "weights.pth")
    backbone = make(tmp_path / "weights.pth", num_classes=1000)
    assert not torch.equal(backbone.module.get_parameter("fc.weight"), trained["fc.weight"])


def test_the_same_seed_gives_the_same_random_weights_and_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    made = [make("none", seed=seed).module.state_dict() for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())
    assert not torch.equal(made[0]["conv1.0.weight"], made[2]["conv1.0.weight"])


def test_pretrained_weights_begin_the_same_whatever_the_seed(trained: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(trained, tmp_path / "weights.pth")
    one, other = (make(tmp_path / "weights.pth", seed=seed).module.state_dict() for seed in (3, 4))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not one["fc.weight"].any()


def test_the_digest_is_of_the_backbone_without_its_head(trained: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(trained, tmp_path / "weights.pth")
    changed = dict(trained)
    changed["stage4.0.branch2.1.running_mean"] = trained["stage4.0.branch2.1.running_mean"] + 1
    torch.save(changed, tmp_path / "changed.pth")
    digest = make(tmp_path / "weights.pth").weights_digest
    assert len(digest) == 16
    assert make(tmp_path / "weights.pth", num_classes=8, seed=9).weights_digest == digest
    assert make(tmp_path / "changed.pth").weights_digest != digest


def test_what_does_not_fit_is_named_tensor_by_tensor(trained: dict[str, Tensor], tmp_path: Path) -> None:
    wrong = {name: value for name, value in trained.items() if name != "conv5.0.weight"}
    wrong["extra.weight"] = torch.zeros(2)
    wrong["conv1.0.weight"] = torch.zeros(24, 3, 5, 5)
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(WeightsError) as caught:
        make(tmp_path / "wrong.pth")
    text = str(caught.value)
    assert "missing (1): conv5.0.weight" in text
    assert "unexpected (1): extra.weight" in text
    assert "conv1.0.weight: [24, 3, 5, 5] instead of [24, 3, 3, 3]" in text


def test_a_file_that_holds_only_part_of_the_tensors_is_refused(trained: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({"fc.weight": trained["fc.weight"]}, tmp_path / "head.safetensors")
    with pytest.raises(WeightsError, match="missing"):
        make(tmp_path / "head.safetensors")


def test_a_missing_file_is_named_with_what_else_can_be_given() -> None:
    with pytest.raises(WeightsError, match=r"'default', 'starter', 'none' or a file.*'nowhere\.pth'"):
        make("nowhere.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", ["cut", "empty", "text"])
def test_a_broken_file_is_refused(suffix: str, content: str, trained: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(trained, file)
    else:
        save_file(trained, file)
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not weights at all\n"}[content])
    with pytest.raises(WeightsError, match=r"weights\.\w+ must be \.safetensors or a state_dict"):
        make(file)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save(models.get_model(NAME, weights=None), tmp_path / "module.pth")
    with pytest.raises(WeightsError, match="could run any code"):
        make(tmp_path / "module.pth")


def test_a_file_without_named_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="has a list"):
        make(tmp_path / "list.pth")


def default_weights(file_name: str) -> WeightsEnum:
    """Weights of torchvision's own kind, at an address where nobody answers."""

    class Tiny(WeightsEnum):
        DEFAULT = Weights(url=f"http://127.0.0.1:9/{file_name}", transforms=torch.nn.Identity, meta={})

    return Tiny.DEFAULT


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_a_file_put_where_torch_looks_is_used_without_a_network(trained: dict[str, Tensor], checkpoints: Path) -> None:
    torch.save(trained, checkpoints / "tiny.pth")
    name = f"tiny-{hashlib.sha256((checkpoints / 'tiny.pth').read_bytes()).hexdigest()[:8]}.pth"
    (checkpoints / "tiny.pth").rename(checkpoints / name)
    state = read_weights(NAME, "default", default_weights(name))
    assert all(torch.equal(state[key], value) for key, value in trained.items())


def test_a_file_there_that_is_not_what_its_name_says_is_refused(trained: dict[str, Tensor], checkpoints: Path) -> None:
    torch.save(trained, checkpoints / "tiny-0123abcd.pth")
    with pytest.raises(WeightsError, match=r"SHA-256 of .*tiny-0123abcd\.pth must start with 0123abcd"):
        read_weights(NAME, "default", default_weights("tiny-0123abcd.pth"))


def test_without_a_network_the_error_says_which_file_to_put_where(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WeightsError) as caught:
        read_weights(NAME, "default", default_weights("tiny-0123abcd.pth"))
    text = str(caught.value)
    assert "tiny-0123abcd.pth" in text
    assert str(checkpoints) in text
    assert "--weights starter" in text
    assert capsys.readouterr().out == ""  # stdout belongs to --json


def test_starter_weights_are_of_one_architecture_only() -> None:
    with pytest.raises(WeightsError, match="'mobilenet_v3_small' only, but the backbone is 'resnet18'"):
        backbones.create("resnet18", num_classes=2, weights="starter")


def test_weights_that_do_not_fit_are_known_as_a_backbone_error_too() -> None:
    assert issubclass(WeightsError, BackboneError)


def old_names(name: str) -> str:
    return (
        name.replace(".norm1.", ".norm.1.")
        .replace(".norm2.", ".norm.2.")
        .replace(".conv1.", ".conv.1.")
        .replace(".conv2.", ".conv.2.")
    )


def test_densenets_with_the_names_of_2017_are_loaded() -> None:
    module = models.get_model("densenet121", weights=None)
    given = {
        old_names(name) if "denselayer" in name else name: value + 1
        for name, value in module.state_dict().items()
        if not name.endswith("num_batches_tracked")  # younger than those files
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in given
    load_into(module, "classifier", given, "old")
    assert torch.equal(
        module.state_dict()["features.denseblock1.denselayer1.norm1.weight"],
        given["features.denseblock1.denselayer1.norm.1.weight"],
    )


@pytest.mark.parametrize("name", ["mnasnet0_5", "vit_b_32"])
def test_networks_that_ask_for_a_version_of_the_file_are_loaded_from_one_without(name: str) -> None:
    module = models.get_model(name, weights=None)
    given = {key: value + 1 for key, value in module.state_dict().items()}
    load_into(module, "classifier.1" if name == "mnasnet0_5" else "heads.head", dict(given), "safetensors")
    key = "layers.0.weight" if name == "mnasnet0_5" else "encoder.layers.encoder_layer_3.mlp.3.weight"
    assert torch.equal(module.state_dict()[key], given[key])


def test_position_embeddings_are_interpolated_to_the_size_of_the_images(tmp_path: Path) -> None:
    module = models.get_model("vit_b_32", weights=None, image_size=128)
    state = module.state_dict()
    # A slope from left to right: interpolation keeps its ends and fills in between.
    slope = torch.linspace(0, 1, 4).repeat(4).reshape(1, 16, 1).expand(1, 16, 768)
    state["encoder.pos_embedding"] = torch.cat([torch.full((1, 1, 768), 9.0), slope], dim=1)
    save_file(state, tmp_path / "vit.safetensors")
    backbone = backbones.create("vit_b_32", num_classes=2, weights=str(tmp_path / "vit.safetensors"), image_size=64)
    positions = backbone.module.get_parameter("encoder.pos_embedding")
    assert positions.shape == (1, 1 + 4, 768)
    assert positions[0, :, 0].tolist() == pytest.approx([9.0, 0.0, 1.0, 0.0, 1.0])
