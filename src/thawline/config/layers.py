"""Layers of settings: read from a recipe or from assignments, merged, and flattened."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from thawline.exceptions import ConfigError

__all__ = ["flatten", "load_recipe", "merge", "nested", "parse_assignments", "parse_value"]


def load_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file: YAML with the keys of :class:`SearchConfig`, any of them left out.

    Raises:
        ConfigError: if the file is missing, is not YAML or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the recipe {path}: {error}. `thawline recipes` lists shipped ones.") from None
    import yaml  # here: `--help` needs none

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The recipe {path} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"The recipe {path} must be a mapping of keys, but it is a {type(content).__name__}.")
    return content


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Turn ``["train.epochs=3", …]`` into ``{"train": {"epochs": 3}, …}``; values are YAML scalars or lists.

    Raises:
        ConfigError: if an assignment has no ``=``, an empty key or a value that is not YAML.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not separator or not all(parts):
            raise ConfigError(f"--set takes key=value such as train.epochs=3, but got {assignment!r}.")
        merge(result, nested({".".join(parts): parse_value(text)}))
    return result


def parse_value(text: str) -> Any:
    """Parse a value as a recipe would; text that is not YAML is returned unchanged."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``{"train.epochs": 3}`` to ``{"train": {"epochs": 3}}``."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        layer = value
        for part in reversed(key.split(".")):
            layer = {part: layer}
        merge(result, layer)
    return result


def flatten(config: BaseModel, prefix: str = "", *, only_chosen: bool = False) -> dict[str, str]:
    """The configuration as flat ``{"train.epochs": "3", …}``, in the order of declaration.

    Args:
        config: the configuration, or a section of it.
        prefix: before each name.
        only_chosen: leave out settings that have their default value.
    """
    flat: dict[str, str] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            flat |= flatten(value, f"{prefix}{name}.", only_chosen=only_chosen)
        elif not only_chosen or value != field.get_default(call_default_factory=True):
            flat[prefix + name] = str(value)
    return flat


def merge(target: dict[str, Any], layer: Mapping[str, Any], whole: Collection[str] = (), prefix: str = "") -> None:
    """Put a layer over nested mappings; those whose path is in ``whole`` are replaced."""
    for key, value in layer.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and isinstance(target.get(key), dict) and path not in whole:
            merge(target[key], value, whole, f"{path}.")
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value
