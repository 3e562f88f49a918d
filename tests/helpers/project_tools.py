"""The programs in tools/, which is not a package."""

import importlib.util
from pathlib import Path
from types import ModuleType

__all__ = ["load_tool"]

TOOLS = Path(__file__).parents[2] / "tools"


def load_tool(name: str) -> ModuleType:
    """Load one of them as a module by its file name."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
