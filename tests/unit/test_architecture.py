"""The picture of the packages is that of the imports as they are."""

from types import ModuleType

import pytest
from project_tools import load_tool


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("architecture")


def test_the_picture_in_contributing_is_up_to_date(tool: ModuleType) -> None:
    assert tool.main(["--check"]) == 0, "python tools/architecture.py"


def test_an_import_more_changes_the_picture(tool: ModuleType) -> None:
    """The positive control of the test above."""
    rows = [["cli"], ["search", "serving"], ["config"]]
    imported = {"cli": {"search"}, "search": {"config"}, "serving": {"config"}, "config": set()}
    assert tool.picture(rows, imported) != tool.picture(rows, imported | {"cli": {"search", "serving"}})
    assert tool.picture(rows, imported).count("<path") == 3


def test_arrows_that_follow_from_others_are_left_out(tool: ModuleType) -> None:
    imported = {"cli": {"search", "config"}, "search": {"config"}, "config": set()}
    assert tool.shortest(imported) == {"cli": ["search"], "config": [], "search": ["config"]}


def test_every_package_of_the_contracts_is_drawn(tool: ModuleType) -> None:
    drawn = tool.drawn()
    names = [name for row in tool.layers() for name in row]
    assert {"cli", "search", "registry", "exceptions"} <= set(names)
    assert [name for name in names if f">{name}</text>" not in drawn] == []
