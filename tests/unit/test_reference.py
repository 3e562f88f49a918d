"""What is generated from the fields of the configuration is up to date, and says what the configuration takes."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from project_tools import load_tool

from thawline.config import SearchConfig, flatten, load_recipe
from thawline.recipes import SCHEMA, copy, recipe_path, shipped_recipes


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("reference")


@pytest.fixture(scope="module")
def schema(tool: ModuleType) -> Any:
    return json.loads(tool.SCHEMA.read_text(encoding="utf-8"))


def test_the_reference_and_the_schema_are_up_to_date(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--check"]) == 0, capsys.readouterr().out


def test_one_that_is_out_of_date_is_named_and_rewritten(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, schema = tmp_path / "configuration.md", tmp_path / SCHEMA
    page.write_text(tool.page().replace("passes over the training images", "rounds over the training images"))
    schema.write_text(tool.schema())
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "PAGE", page)
    monkeypatch.setattr(tool, "SCHEMA", schema)
    assert tool.main(["--check"]) == 1
    assert capsys.readouterr().out == "configuration.md is out of date: run `make reference`\n"
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0


def test_the_reference_has_every_key_below_its_section_with_its_option(tool: ModuleType) -> None:
    sections = tool.page().split("\n## ")
    keys = flatten(SearchConfig.build({"data": {"path": "photos"}}))
    for section, name in (key.split(".") for key in keys):
        rows = [row for part in sections if part.startswith(f"`{section}`") for row in part.splitlines()]
        assert any(row.startswith((f"| `{name}` |", f"| `{name}`<br>")) for row in rows), f"{section}.{name}"
    assert "\n| `epochs`<br>`--epochs` | whole number ≥ 1 | `8` | Maximum number of passes over" in tool.page()
    assert "\n| `budget`<br>`--cache-budget` | text | `null` |" in tool.page()


@pytest.mark.parametrize("name", [recipe.name for recipe in shipped_recipes()])
def test_an_editor_finds_no_mistake_in_a_shipped_recipe(name: str, schema: Any) -> None:
    jsonschema.validate(load_recipe(recipe_path(name)), schema)
    assert f"# yaml-language-server: $schema={SCHEMA}\n" in recipe_path(name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"space": {"backbone": ["resnet18", "resnet34"]}},
        {"space": {"backbone": {"resnet18": [2, 5], "resnet34": None}}},
        {"data": {"text_column": 2}},
        {"tracking": {"wandb": False}},  # as YAML 1.1 reads the word off
        {"study": {"workers": 2}, "train": {"channels_last": True}},
    ],
)
def test_the_schema_takes_what_a_recipe_may_say(recipe: dict[str, Any], schema: Any) -> None:
    jsonschema.validate(recipe, schema)
    SearchConfig.build({"data": {"path": "photos"}}, recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        {"train": {"epoch": 3}},
        {"train": {"epochs": 0}},
        {"train": {"optimizer": "adam"}},
        {"space": {"backbone": "resnet18"}},
        {"studdy": {}},
    ],
)
def test_the_schema_refuses_what_a_recipe_may_not_say(recipe: dict[str, Any], schema: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(recipe, schema)


def test_a_copied_recipe_has_the_schema_of_this_version_beside_it(tmp_path: Path, tool: ModuleType) -> None:
    (tmp_path / SCHEMA).write_text("of a former version")
    copy("fast", tmp_path)
    assert (tmp_path / SCHEMA).read_text(encoding="utf-8") == tool.schema()
