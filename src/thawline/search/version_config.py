"""The recorded settings of a study or a registered version, possibly written by another version of Thawline."""

import yaml

from thawline.config import PromotionConfig, SearchConfig
from thawline.exceptions import ConfigError
from thawline.registry import MlflowRegistry
from thawline.tracking import MlflowStore, fetch_study_file

__all__ = ["config_of_study", "config_of_version", "promotion_of_version"]

_FILE = "config.yaml"


def config_of_version(registry: MlflowRegistry, model: str, version: str) -> SearchConfig | None:
    """The settings of the study that trained a version; ``None`` if they were not recorded.

    Raises:
        ConfigError: with the settings that this version of Thawline does not know.
        RegistryError: if there is no such version, or the registry fails.
    """
    return _read(registry.study_file(model, version, _FILE), f"The study that trained {model}/{version}")


def promotion_of_version(registry: MlflowRegistry, model: str, version: str) -> PromotionConfig | None:
    """Only the thresholds of the study that trained a version; ``None`` if they cannot be used or were not recorded.

    Raises:
        RegistryError: as :func:`config_of_version`.
    """
    text = registry.study_file(model, version, _FILE)
    try:
        settings = yaml.safe_load(text or "")["promotion"]
        return SearchConfig.build({"data": {"path": "unknown"}, "promotion": settings}).promotion
    except (yaml.YAMLError, ConfigError, TypeError, KeyError):
        return None


def config_of_study(store: MlflowStore, study: str) -> SearchConfig | None:
    """The settings of a study; ``None`` if they were not recorded, or the store does not respond.

    Raises:
        ConfigError: with the settings that this version of Thawline does not know.
    """
    return _read(fetch_study_file(store, study, _FILE), f"The study {study}")


def _read(text: str | None, study: str) -> SearchConfig | None:
    if text is None:
        return None
    try:
        settings = yaml.safe_load(text)
        return SearchConfig.build(settings if isinstance(settings, dict) else {})
    except (yaml.YAMLError, ConfigError) as error:
        raise ConfigError(
            f"{study} was run with settings that this version of Thawline does not support. {error}"
        ) from None
