"""Load a packaged model like MLflow's own tools."""

import sys
from pathlib import Path
from typing import Any

__all__ = ["load_pyfunc"]


def load_pyfunc(folder: str | Path) -> Any:
    """Load an MLflow model from its folder, running its code, without leaving bytecode there."""
    import mlflow.pyfunc

    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return mlflow.pyfunc.load_model(str(folder))
    finally:
        sys.dont_write_bytecode = before
