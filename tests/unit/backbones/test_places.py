"""Where default weights are available, without downloading them."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torchvision.models import get_model_weights

from thawline.backbones import _places, _timm, weights_place


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Servers that were asked; each answers. Nothing is cached."""
    hosts: list[str] = []

    class Connection:
        def close(self) -> None:
            """Nothing to close."""

    def connect(address: tuple[str, int], timeout: float) -> Connection:
        hosts.append(address[0])
        assert address[1] == 443
        assert timeout <= 5
        return Connection()

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(_timm, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    _places._answers.cache_clear()
    yield hosts
    _places._answers.cache_clear()


def test_weights_of_torchvision_that_lie_in_the_cache_need_no_server(asked: list[str], tmp_path: Path) -> None:
    url = get_model_weights("mobilenet_v3_small").DEFAULT.url  # type: ignore[attr-defined]
    file = tmp_path / "torch" / "hub" / "checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    assert weights_place("mobilenet_v3_small") == "cache"
    assert asked == []
    assert [weights_place("resnet18"), weights_place("resnet50")] == ["network", "network"]
    assert asked == ["download.pytorch.org"], "once"


def test_weights_whose_server_does_not_answer_are_nowhere(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert weights_place("resnet18") == "nowhere"
    _places._answers.cache_clear()
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert weights_place("resnet18") == "network", "the proxy answers for it"
    assert asked == []


def test_weights_of_timm_are_those_of_the_hub(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example:8443/path")
    assert weights_place("timm/resnet18") == "network"
    assert asked == ["hub.example"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights_place("timm/resnet18") == "nowhere"
    wanted: list[str] = []
    monkeypatch.setattr(_timm, "try_to_load_from_cache", lambda *of, **_: wanted.append("/".join(of)) or "file")
    assert weights_place("timm/tf_efficientnet_lite0") == "cache"
    assert wanted == ["timm/tf_efficientnet_lite0.in1k/model.safetensors"]


def test_the_files_of_a_folder_are_where_it_is(asked: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    assert weights_place(f"hf:{folder}") == "cache"
    assert asked == []


def test_weights_of_a_library_that_is_not_installed_are_nowhere(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert weights_place("timm/resnet18") == "nowhere"
    assert asked == []
