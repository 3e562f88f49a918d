"""Command-line options for settings of a recipe: name, type, default and help come from the field."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from thawline.config import parse_value
from thawline.config.fields import FIELDS, alternatives, help_of

__all__ = ["OPTIONS", "Setting", "Settings", "takes_settings"]

Settings = Mapping[str, Any]
"""Options given on the command line, by key, such as ``{"train.epochs": 3}``."""
OPTIONS: dict[str, str] = {}
"""The option of each key that has one, as typed; each verb adds its own."""


@dataclass(frozen=True)
class Setting:
    """A setting that has an option of its own."""

    key: str
    """Such as ``train.epochs``."""
    flag: str | None = None
    """Such as ``--cache-budget``; by default the last part of the key."""
    metavar: str | None = None
    """Name of the value in ``--help``; by default its type."""

    @property
    def option(self) -> str:
        """The option as typed."""
        return self.flag or "--" + self.key.rpartition(".")[2].replace("_", "-")

    @property
    def parameter(self) -> inspect.Parameter:
        """The option as a parameter of a verb; ``None`` if it is not given."""
        return inspect.Parameter(
            self.option.removeprefix("--").replace("-", "_"),
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                self._type or str,
                typer.Option(self.option, metavar=self.metavar, help=help_of(self.key), show_default=False),
            ],
        )

    def value(self, given: Any) -> Any:
        """The given value; if the setting may have several types, it is parsed as by ``--set``."""
        return given if self._type is not None else parse_value(given)

    @property
    def _type(self) -> type | None:
        """The type for typer to parse; ``None`` if there are several, none of them text."""
        allowed = alternatives(FIELDS[self.key].annotation)
        if str in allowed:
            return str
        return allowed[0] if len(allowed) == 1 and allowed[0] in (bool, int, float) else None


def takes_settings(*settings: Setting) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb an option for each setting, in place of its parameter ``settings``.

    The verb is called with ``settings``, a mapping from key to value of the given options.
    """
    added = {each.parameter.name: each for each in settings}
    OPTIONS.update({each.key: each.option for each in settings})

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def command(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in added}
            values = {added[name].key: added[name].value(value) for name, value in given.items() if value is not None}
            verb(**arguments, settings=values)

        parameters: list[inspect.Parameter] = []
        for own in inspect.signature(verb, eval_str=True).parameters.values():
            parameters += [each.parameter for each in settings] if own.name == "settings" else [own]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate
