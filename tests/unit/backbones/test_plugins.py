"""Backbones of other packages: listed, described, created, refused and packaged."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_backbones
from typer.testing import CliRunner

from thawline import backbones
from thawline.backbones import Backbone, _registry, networks
from thawline.cli import app
from thawline.exceptions import BackboneError, WeightsError
from thawline.registry.packaging import _requirements
from thawline.testing import BackboneContract

pytestmark = pytest.mark.usefixtures("one_thread")

Installed = Callable[..., Path]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    def install(**options: str) -> Path:
        monkeypatch.syspath_prepend(str(toy_backbones.install(tmp_path, **options)))
        _registry.libraries.cache_clear()
        return tmp_path

    yield install
    monkeypatch.undo()
    _registry.libraries.cache_clear()


class TestToy(BackboneContract):
    @pytest.fixture(autouse=True)
    def toy(self, installed: Installed) -> None:
        installed()

    def make(self, num_classes: int) -> Backbone:
        return backbones.create("toy/small", num_classes=num_classes, weights="none", seed=1)


def test_they_are_listed_with_their_layer_groups_and_weights(installed: Installed) -> None:
    assert not backbones.names("toy/")
    installed()
    assert backbones.names("toy/") == ["toy/small", "toy/wide"]
    listed = CliRunner().invoke(app, ["backbones", "toy/", "--json"])
    found = {info["name"]: info for info in json.loads(listed.stdout)}
    assert found["toy/small"]["weights"] == ["default"]
    assert found["toy/wide"]["weights"] == []
    assert found["toy/small"]["image_size"] == 32
    assert len(found["toy/small"]["layer_groups"]) == 2
    assert backbones.library_version("toy/small") == "toy-backbones 1.2"


def test_pretrained_weights_are_loaded_and_the_head_is_not(installed: Installed) -> None:
    installed()
    backbone = backbones.create("toy/small", num_classes=3, image_size=48)
    expected = toy_backbones.LIBRARY.weights("small")
    state = backbone.module.state_dict()
    assert torch.equal(state["0.0.weight"], expected["0.0.weight"])
    assert state["3.weight"].shape == (3, 8)
    with pytest.raises(WeightsError, match="'toy/wide' has no pretrained weights"):
        backbones.create("toy/wide", num_classes=3)


def test_a_wrong_name_is_answered_with_the_nearest(installed: Installed) -> None:
    installed()
    with pytest.raises(BackboneError, match="Did you mean 'toy/small'"):
        backbones.create("toy/smal", num_classes=3)


@pytest.mark.parametrize("prefix", ["timm", "torchvision", "a-b"])
def test_a_name_that_another_library_has_or_that_is_none_is_refused(installed: Installed, prefix: str) -> None:
    installed(prefix=prefix)
    with pytest.raises(BackboneError, match=f"must be a Python identifier .*got '{prefix}' of the package toy"):
        backbones.names()


def test_a_package_that_cannot_be_imported_is_named(installed: Installed) -> None:
    installed(value="no_such_module:LIBRARY")
    with pytest.raises(BackboneError, match="toy/… of the package toy-backbones cannot be imported"):
        backbones.names()


def test_another_process_has_them_too(installed: Installed) -> None:
    """A search trains in processes of their own."""
    path = os.pathsep.join(
        [str(installed()), str(Path(toy_backbones.__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    code = "from thawline import backbones; print(backbones.create('toy/small', num_classes=2).weights_digest)"
    environment = os.environ | {"PYTHONPATH": path}
    answered = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert answered.stdout.strip() == backbones.create("toy/small", num_classes=2).weights_digest


def test_a_package_of_a_model_names_what_it_needs(installed: Installed) -> None:
    installed()
    architecture = backbones.create("toy/small", num_classes=2).architecture
    assert "toy-backbones==1.2" in _requirements({"architecture": architecture, "kind": "images"})


def test_a_network_whose_package_is_missing_says_so(installed: Installed) -> None:
    installed()
    architecture: dict[str, Any] = dict(backbones.create("toy/small", num_classes=2).architecture)
    assert networks.build(architecture)(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    architecture["object"] = "no_such_module:LIBRARY"
    with pytest.raises(ImportError, match=r"'small' needs the package toy-backbones.*pip install toy-backbones"):
        networks.build(architecture)
