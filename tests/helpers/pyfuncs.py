"""A packaged model as MLflow's own tools load it."""

import sys
from pathlib import Path
from typing import Any

__all__ = ["load_pyfunc"]


def load_pyfunc(folder: str | Path) -> Any:
    """An MLflow model from its folder, whose code is run; no bytecode is left in the folder."""
    import mlflow.pyfunc

    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return mlflow.pyfunc.load_model(str(folder))
    finally:
        sys.dont_write_bytecode = before
