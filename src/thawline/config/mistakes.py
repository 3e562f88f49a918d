"""The mistakes of a configuration, in words."""

import difflib

from pydantic import BaseModel, ValidationError

__all__ = ["describe"]


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Every mistake of a configuration, a line each: the key, the rule, the value."""
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "configuration"
        if item["type"] == "extra_forbidden":
            lines.append(f"{key}: there is no such key.{_suggest(item['loc'], model)}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            value = "" if item["type"] in {"missing", "value_error"} else f" (got {item['input']!r})"
            lines.append(f"{key}: {message}{value}")
    return "The configuration is wrong:\n" + "\n".join(f"  {line}" for line in lines)


def _suggest(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        model = annotation
    close = difflib.get_close_matches(str(location[-1]), list(model.model_fields), n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known keys: {', '.join(model.model_fields)}."
