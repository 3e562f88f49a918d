"""Steps of a search that run in a worker, which may crash, and which loads their libraries instead of the driver.

They share a worker, so each step finds what the previous one has loaded; no trial runs in it.
"""

from collections.abc import Callable
from typing import TypeVar

from thawline.exceptions import StudyError
from thawline.search.events import Note, emit
from thawline.search.worker import WorkerCrashed, call_with_retries, load_meanwhile

__all__ = ["load_for_last_steps", "run_step", "try_step"]

_T = TypeVar("_T")
_PACKAGING = (
    "sklearn.metrics",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
)
_ONNX = ("onnxruntime", "onnxscript.function_libs.torch_lib.ops", "torch._inductor.decomposition", "networkx")
_REPORT = ("captum.attr", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "sklearn.linear_model")


def load_for_last_steps(*, onnx: bool, report: bool) -> None:
    """While trials run, import in the steps' process what packaging, ONNX and the report need; takes some seconds."""
    load_meanwhile([*_PACKAGING, *(_ONNX if onnx else ()), *(_REPORT if report else ())])


def run_step(function: Callable[..., _T], *args: object, retries: int, title: str) -> _T:
    """Run ``function(*args)`` in a worker, and retry if its process dies.

    Args:
        function: a module-level function; must be idempotent.
        args: values that can be pickled.
        retries: number of retries after crashes, at least 0.
        title: description for messages: "packaging the best trial".

    Raises:
        StudyError: if its process dies repeatedly.
        ThawlineError: what ``function`` raised.
    """
    try:
        result: _T = call_with_retries(function, *args, retries=retries, title=title, apart=True)
    except WorkerCrashed as error:
        raise StudyError(
            f"{title}: {error}. If it was killed for memory, free some or use a smaller backbone. The same command "
            "resumes; completed work is kept."
        ) from error
    return result


def try_step(function: Callable[..., _T], *args: object, retries: int, title: str, otherwise: _T) -> _T:
    """As :func:`run_step`, for optional steps: if the process dies, log a warning and return ``otherwise``."""
    try:
        result: _T = call_with_retries(function, *args, retries=retries, title=title, apart=True)
    except WorkerCrashed as error:
        emit(Note(f"{title}: {error}; skipped", "warning"))
        return otherwise
    return result
