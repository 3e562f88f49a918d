"""The settings behind a registered version, as its study recorded them: perhaps with another version of Thawline."""

import yaml

from thawline.config import SearchConfig
from thawline.exceptions import ConfigError
from thawline.registry import MlflowRegistry

__all__ = ["config_of_version"]


def config_of_version(registry: MlflowRegistry, model: str, version: str) -> SearchConfig | None:
    """The settings of the study that trained a version; ``None`` if they were not recorded.

    Raises:
        ConfigError: if this version of Thawline has other settings, naming those that it does not know.
        RegistryError: if there is no such version, or the registry fails.
    """
    text = registry.study_file(model, version, "config.yaml")
    if text is None:
        return None
    try:
        settings = yaml.safe_load(text)
        return SearchConfig.build(settings if isinstance(settings, dict) else {})
    except (yaml.YAMLError, ConfigError) as error:
        raise ConfigError(
            f"The study that trained {model}/{version} was run with settings that this version of Thawline does not "
            f"read. {error}"
        ) from None
