"""``import thawline`` offers what it says, and costs nothing until it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import thawline
from thawline import api
from thawline.exceptions import ConfigError, DataError

HEAVY = ("torch", "mlflow", "optuna", "prefect", "pydantic", "numpy", "rich")


def test_all_that_is_offered_is_there_and_nothing_else() -> None:
    assert set(thawline.__all__) - {"__version__"} == set(api.__all__)
    for name in thawline.__all__:
        assert getattr(thawline, name) is not None
    assert set(thawline.__all__) <= set(dir(thawline))
    with pytest.raises(AttributeError, match="train_model"):
        thawline.train_model  # noqa: B018
    everything: dict[str, object] = {}
    exec("from thawline import *", everything)  # noqa: S102
    assert set(thawline.__all__) <= everything.keys()


def test_importing_it_loads_no_heavy_library() -> None:
    code = f"import sys, thawline; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    control = code.replace("print", "thawline.SearchConfig; print")
    assert "pydantic" in subprocess.run([sys.executable, "-c", control], capture_output=True, text=True).stdout


def test_the_example_of_the_package_uses_only_what_it_offers() -> None:
    assert thawline.__doc__ is not None
    example = thawline.__doc__.partition("::\n\n")[2].partition("\n\n``import")[0]
    tree = ast.parse("\n".join(line.removeprefix("    ") for line in example.splitlines()))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "thawline"
    }
    assert used == {"run_search", "load_model"}


def test_backbones_are_found_by_pattern_and_built() -> None:
    names = thawline.list_backbones("squeezenet*")
    assert names
    assert all(name.startswith("squeezenet") for name in names)
    backbone = thawline.create_backbone("squeezenet1_0", num_classes=3, weights="none", image_size=64)
    assert backbone.name == "squeezenet1_0"


def test_bad_arguments_are_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THAWLINE_HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match="missing"):
        thawline.check_data(tmp_path / "missing")
    with pytest.raises(DataError, match="missing"):
        thawline.run_search(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"backbone\.image_size"):
        thawline.run_search(tmp_path, image_size=4)
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        thawline.run_search(tmp_path, epochs=-1)
    with pytest.raises(ConfigError, match=r"train\.epoch: unknown key\. Did you mean 'epochs'"):
        thawline.run_search(tmp_path, settings={"train.epoch": 3})
    config = thawline.SearchConfig.build({"data": {"path": str(tmp_path)}})
    with pytest.raises(ConfigError, match="SearchConfig"):
        thawline.run_search(config, trials=3)
    assert not list((tmp_path / "home").glob("studies/*"))
