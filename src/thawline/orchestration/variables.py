"""Environment variables to pass on to runs elsewhere (on a cluster, by a worker)."""

import os

__all__ = ["places", "places_and_credentials"]

_PLACES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_S3_ENDPOINT_URL",
    "AWS_ENDPOINT_URL",
    "THAWLINE_STORAGE",
    "TORCH_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "DO_NOT_TRACK",
)
_PREFIXES = ("MLFLOW_", "AWS_", "THAWLINE_", "HF_")


def places() -> dict[str, str]:
    """Servers, caches and switches, but no credentials (unless in URLs), because others may see them."""
    return {name: os.environ[name] for name in _PLACES if os.environ.get(name)}


def places_and_credentials() -> dict[str, str]:
    """The same plus all other variables of MLflow, AWS, Hugging Face and Thawline, for the user's own cluster."""
    return places() | {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
