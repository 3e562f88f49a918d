"""The server follows the alias: a good version is swapped in, a bad one refused, a silent registry waited for."""

from pathlib import Path

import pytest
from colours import picture, register

from thawline.exceptions import RegistryError
from thawline.registry import MlflowRegistry, ModelName
from thawline.serving.follower import Follower
from thawline.tracking import MlflowStore


@pytest.fixture
def registry(store: MlflowStore) -> MlflowRegistry:
    return MlflowRegistry(store)


@pytest.fixture
def follower(store: MlflowStore, registry: MlflowRegistry, folder: Path) -> Follower:
    registry.set_alias("birds", "champion", register(store, folder))
    follower = Follower(registry, ModelName("birds"), poll_seconds=60)
    follower.load_first()
    return follower


def label(follower: Follower, colour: str) -> str:
    model = follower.model
    (answer,) = model.answers([model.prepare(picture(colour))])
    name: str = model.row(answer)["class"]
    return name


def test_a_moved_alias_is_followed_and_a_request_that_began_with_the_old_version_ends_with_it(
    follower: Follower, store: MlflowStore, registry: MlflowRegistry, other_folder: Path
) -> None:
    before = follower.model
    registry.set_alias("birds", "champion", register(store, other_folder, study="t"))
    follower._look()
    assert (before.version, follower.model.version) == ("1", "2")
    assert label(follower, "green") == "blue"
    assert before.answers([before.prepare(picture("green"))])[0].probabilities[1] > 0.99


def test_a_version_that_does_not_load_is_refused_and_the_old_one_stays_until_a_good_one_comes(
    follower: Follower, store: MlflowStore, registry: MlflowRegistry, other_folder: Path
) -> None:
    broken = register(store, other_folder, study="t")
    path = Path(store.client.get_model_version_download_uri("birds", broken).removeprefix("file://"))
    (path / "artifacts" / "model.safetensors").write_bytes(b"torn")
    registry.set_alias("birds", "champion", broken)
    follower._look()
    assert follower.model.version == "1"
    assert follower.refused is not None
    assert follower.refused["version"] == broken
    assert "birds/2 is not what was registered: artifacts/model.safetensors has changed" in follower.refused["reason"]
    registry.set_alias("birds", "champion", register(store, other_folder, study="u"))
    follower._look()
    assert (follower.model.version, follower.refused) == ("3", None)


def test_while_the_registry_is_down_the_last_version_is_served_and_the_reason_told(
    follower: Follower, registry: MlflowRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(self: MlflowRegistry, name: ModelName) -> str:
        raise RegistryError("The model registry failed: connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowRegistry, "resolve", down)
        follower._look()
    assert follower.registry_error == "The model registry failed: connection refused"
    assert label(follower, "red") == "red"
    follower._look()
    assert follower.registry_error is None


def test_a_model_named_by_its_version_is_not_followed(
    registry: MlflowRegistry, store: MlflowStore, folder: Path
) -> None:
    register(store, folder)
    follower = Follower(registry, ModelName("birds", None, "1"), poll_seconds=0.01)
    follower.load_first()
    follower.start()
    assert not follower._thread.is_alive()
    follower.stop()
