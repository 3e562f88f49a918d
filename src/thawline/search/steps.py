"""Steps of a search that run in a worker: it has loaded what the driver then never needs to load, and may crash.

They share one, so that what a step has loaded the next one finds; no trial runs in it.
"""

from collections.abc import Callable
from typing import TypeVar

from thawline.exceptions import StudyError
from thawline.search.events import Note, emit
from thawline.search.worker import WorkerCrashed, call_with_retries, load_meanwhile

__all__ = ["load_for_last_steps", "run_step", "try_step"]

_T = TypeVar("_T")
_PACKAGING = (
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
)
_ONNX = ("onnxruntime", "onnxscript.function_libs.torch_lib.ops", "torch._inductor.decomposition", "networkx")
_REPORT = ("captum.attr", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "sklearn.linear_model")


def load_for_last_steps(*, onnx: bool, report: bool) -> None:
    """Let the steps' process import, while trials run, what packaging, ONNX and the report need: some seconds."""
    load_meanwhile([*_PACKAGING, *(_ONNX if onnx else ()), *(_REPORT if report else ())])


def run_step(function: Callable[..., _T], *args: object, retries: int, title: str) -> _T:
    """Run ``function(*args)`` in a worker, and again if its process dies.

    Args:
        function: of a module; doing it again repeats nothing.
        args: values that can be pickled.
        retries: how many crashes are followed by another attempt, at least 0.
        title: what it does, for messages: "packaging the best trial".

    Raises:
        StudyError: if its process dies again and again.
        ThawlineError: what ``function`` raised.
    """
    try:
        result: _T = call_with_retries(function, *args, retries=retries, title=title, apart=True)
    except WorkerCrashed as error:
        raise StudyError(
            f"{title}: {error}. If it was killed for memory, free some or take a smaller backbone. The same command "
            "resumes: what is done is kept."
        ) from error
    return result


def try_step(function: Callable[..., _T], *args: object, retries: int, title: str, otherwise: _T) -> _T:
    """As :func:`run_step`, for what a search can do without: if its process dies, a warning and ``otherwise``."""
    try:
        result: _T = call_with_retries(function, *args, retries=retries, title=title, apart=True)
    except WorkerCrashed as error:
        emit(Note(f"{title}: {error}; it is left out", "warning"))
        return otherwise
    return result
