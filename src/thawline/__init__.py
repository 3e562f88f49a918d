"""Thawline finds how deep to freeze a pretrained backbone, and how fast to train the rest.

::

    import thawline

    outcome = thawline.run_search("photos", trials=20, backbone="resnet18")
    thawline.load_model("photos@champion").predict(["photos/cat/1.jpg"])

``import thawline`` is light: torch, MLflow, Optuna and Prefect are loaded on demand.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thawline.api import (
        LoadedModel,
        SearchConfig,
        check_data,
        check_labels,
        create_backbone,
        list_backbones,
        load_model,
        run_search,
    )

    __version__: str

__all__ = [
    "LoadedModel",
    "SearchConfig",
    "__version__",
    "check_data",
    "check_labels",
    "create_backbone",
    "list_backbones",
    "load_model",
    "run_search",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'thawline' has no attribute {name!r}")
    if name == "__version__":  # which takes as long as all the rest
        from importlib.metadata import version

        return version("thawline")
    from thawline import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
