"""What no import contract can say: the private modules of a package are its own."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import thawline

SOURCES = Path(thawline.__file__).parent


def test_no_module_imports_a_private_module_of_another_package() -> None:
    for file in SOURCES.rglob("*.py"):
        module = ".".join(["thawline", *file.relative_to(SOURCES).with_suffix("").parts])
        assert not list(strangers(module, file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "line",
    [
        "from thawline.backbones._windows import Window",
        "from thawline.backbones import _windows",
        "import thawline.backbones._windows",
    ],
)
def test_such_an_import_would_be_found(line: str) -> None:
    assert list(strangers("thawline.training.loop", f"def late():\n    {line}\n")) == ["thawline.backbones._windows"]
    assert not list(strangers("thawline.backbones.networks", line))


def test_a_search_loads_torchvision_in_its_workers_alone_and_never_waits_for_the_compiler_of_torch() -> None:
    """The compiler takes longer to load than the rest of torchvision and torch together, and only workers need it."""
    driver, backbones, report = loaded_by(
        "thawline.flows.search", "thawline.backbones._torchvision", "thawline.explain"
    )
    assert "torchvision" not in driver
    assert "torch._dynamo" not in backbones
    assert "torchvision" in report


@pytest.mark.parametrize("package", ["activations", "registry", "search", "training"])
def test_every_name_that_loads_on_demand_is_there(package: str) -> None:
    module = importlib.import_module(f"thawline.{package}")
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = module.nothing_like_it


def test_what_only_looks_or_begins_does_not_wait_for_torch() -> None:
    """`leaderboard`, `history`, `ui`, `clean`, `doctor`, and the first line of a search."""
    *_, light, trained, search = loaded_by(
        "thawline.terminal",
        "thawline.search.leaderboard, thawline.search.records",
        "thawline.cli.tables.models, thawline.registry.mlflow",
        "thawline.ui, thawline.cleaning, thawline.doctor",
        "thawline.training.loop",
        "thawline.flows.search",
    )
    assert "torch" not in light
    assert "torch" in trained
    assert "sklearn" not in search, "only workers, importances and the report need it"


def loaded_by(*modules: str) -> Iterator[set[str]]:
    """Names of all modules that a process has after importing each."""
    code = "".join(f"import sys, {module}; print(*sys.modules)\n" for module in modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return (set(line.split()) for line in done.stdout.splitlines())


def strangers(module: str, source: str) -> Iterator[str]:
    """The private modules that a module imports of packages that it is not in."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, dot, rest = name.partition("._")
            if dot and package.startswith("thawline") and not module.startswith(f"{package}."):
                yield f"{package}._{rest.partition('.')[0]}"
