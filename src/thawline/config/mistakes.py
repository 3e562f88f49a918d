"""Messages about mistakes in a configuration."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

__all__ = ["describe", "settings_meant"]

_MEANT = {
    "space.learning_rate": ("lr", "lr0", "learning_rates", "base_lr", "max_lr", "rate"),
    "space.freeze_depth": ("freeze", "frozen", "depth", "freeze_layers", "unfreeze"),
    "train.batch_size": ("bs", "batchsize", "batch_size_train", "per_device_train_batch_size"),
    "train.weight_decay": ("wd", "l2", "decay"),
    "train.epochs": ("n_epochs", "num_epochs", "max_epochs", "num_train_epochs", "ep"),
    "train.optimizer": ("opt", "optim", "optimiser"),
    "train.label_smoothing": ("smoothing",),
    "train.gradient_clip": ("clip", "clip_grad", "grad_clip", "max_grad_norm"),
    "train.early_stopping": ("patience", "early_stop"),
    "train.augmentation": ("aug", "augment", "augmentations", "transforms"),
    "train.precision": ("amp", "fp16", "bf16", "mixed_precision"),
    "train.warmup_fraction": ("warmup", "warmup_ratio", "warmup_epochs"),
    "backbone.name": ("arch", "architecture", "network", "model_name"),
    "backbone.weights": ("pretrained", "checkpoint"),
    "backbone.image_size": ("size", "imgsz", "img_size", "input_size", "resolution"),
    "study.trials": ("n_trials", "num_trials", "max_trials"),
    "study.timeout_minutes": ("timeout", "time_limit", "max_time"),
    "study.seed": ("random_seed", "random_state"),
    "study.workers": ("n_jobs", "num_workers", "jobs"),
    "data.validation_fraction": ("val_fraction", "val_split", "val_size", "validation_split", "valid_pct"),
    "data.test_fraction": ("test_split", "test_size"),
}
"""Settings by key, and their names in other libraries."""
_MOST_NAMED = 3
"""Maximum number of keys in a suggestion."""


def describe(error: ValidationError, model: type[BaseModel], typed_as: Mapping[str, str]) -> str:
    """Describe every mistake in a configuration on a line of its own: the key, the rule, the value.

    Args:
        error: pydantic's error.
        model: the configuration.
        typed_as: command-line options by the keys that they set, to name them beside the key.
    """
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "configuration"
        named = f"{typed_as[key]} ({key})" if key in typed_as else key
        if item["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key.{_suggest(item['loc'], item['input'], model)}")
        elif item["type"] == "tuple_type" and _is_number(item["input"]) and _takes_range(item["loc"], model):
            lines.append(f"{named}: must be {_range_of(item['input'])}, but got {item['input']!r}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            value = "" if item["type"] in {"missing", "value_error"} else f" (got {item['input']!r})"
            lines.append(f"{named}: {message}{value}")
    return "Invalid configuration:\n" + "\n".join(f"  {line}" for line in lines)


def settings_meant(name: str, value: str | None, model: type[BaseModel]) -> dict[str, str]:
    """The settings that were probably meant by an option that does not exist, such as ``--freeze-depth 3``.

    Args:
        name: the option as typed, without leading dashes.
        value: as typed; ``None`` if there was none.
        model: the configuration.

    Returns:
        Their values by key, in the syntax of ``--set``: a single number becomes a range where one is needed.
    """
    number = value is not None and re.fullmatch(r"[\d.]+(e-?\d+)?", value) is not None
    keys = _elsewhere(name, list(_keys(model)))
    ranges = {key: number and _takes_range(tuple(key.split(".")), model) for key in keys}
    return {key: f"[{value},{value}]" if ranges[key] else value or "VALUE" for key in keys}


def _suggest(location: tuple[int | str, ...], given: Any, model: type[BaseModel]) -> str:
    section = _section(location, model)
    if section is None:
        return ""
    unknown = str(location[-1])
    if not isinstance(given, Mapping) and (meant := _elsewhere(unknown, list(_keys(model)))):
        hint = f", {_range_of(given)}" if meant == ["space.learning_rate"] and _is_number(given) else ""
        return f" Did you mean {' or '.join(map(repr, meant))}{hint}?"
    close = difflib.get_close_matches(unknown, list(section.model_fields), n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known keys: {', '.join(section.model_fields)}."


def _section(location: tuple[int | str, ...], model: type[BaseModel]) -> type[BaseModel] | None:
    """The section that a key belongs to; ``None`` if it is part of a value."""
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        model = annotation
    return model


def _takes_range(location: tuple[int | str, ...], model: type[BaseModel]) -> bool:
    section = _section(location, model)
    annotation = section.model_fields[str(location[-1])].annotation if section is not None else None
    allowed = [each for each in (annotation, *get_args(annotation)) if get_origin(each) is tuple]
    return any(get_args(each) in ((int, int), (float, float)) for each in allowed)


def _elsewhere(unknown: str, keys: list[str]) -> list[str]:
    """Keys of that name in any section, or of that name in other libraries; empty if there are none."""
    plain = unknown.lower().replace("-", "_")
    called = [key for key in keys if key.rpartition(".")[2] == plain]
    return called[:_MOST_NAMED] or [key for key, names in _MEANT.items() if plain in names]


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range_of(value: float) -> str:
    return f"a range such as [{value}, {value}]"
