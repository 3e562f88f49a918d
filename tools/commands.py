"""Write docs/cli.md, the command line reference, from the commands themselves.

python tools/commands.py            # write it
python tools/commands.py --check    # exit code 1 if it is out of date
"""

import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command

from thawline.cli import app

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cli.md"
_HEAD = """# Command line

<!-- Written by `make reference` from the commands in src/thawline/cli/. -->

Every command and its options, as `thawline COMMAND --help` shows them. [All commands by example](how-to/verbs.md)
shows them in use.

Every command that prints results takes `--json`. An error prints one message and exits with code 2; Ctrl-C exits with
code 130, SIGTERM with 143.

## `thawline`

{description}

These options come before the command: `thawline --debug search photos`.

{options}"""
_COLUMNS = "| {kind} | value | default | |\n|---|---|---|---|\n"
_NUMBERS = {int: "whole number", float: "number"}
_NAMES = {str: "text", Path: "path"}


def page() -> str:
    """The reference as Markdown: a section for each command, in alphabetical order."""
    whole = get_command(app)
    parts = [_HEAD.format(description=_markdown(whole.help), options=_options(whole))]
    parts += [_section(name, command) for name, command in sorted(commands())]
    return "".join(parts)


def commands() -> Iterator[tuple[str, Any]]:
    """Each command with its full name, such as ``recipes copy``."""
    return _below(get_command(app), "")


def main(arguments: list[str]) -> int:
    """Write the page or, with ``--check``, report whether it is out of date; returns the exit code."""
    if "--check" not in arguments:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE.relative_to(ROOT)} is out of date: run `make reference`")
        return 1
    return 0


def _below(group: Any, before: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if not command.hidden:
            yield before + name, command
            if hasattr(command, "commands"):
                yield from _below(command, f"{before}{name} ")


def _section(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    usage = " ".join(["thawline", name, *map(_usage, arguments), "[OPTIONS]"])
    text = f"\n## `thawline {name}`\n\n{_markdown(command.help)}\n\n```\n{usage}\n```\n"
    if arguments:
        text += "\n" + _COLUMNS.format(kind="argument") + "".join(map(_row, arguments))
    options = _options(command)
    return text + (f"\n{options}" if options else "")


def _options(command: Any) -> str:
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    return _COLUMNS.format(kind="option") + "".join(map(_row, options)) if options else ""


def _usage(argument: Any) -> str:
    shown = (argument.metavar or argument.name.upper()).removesuffix("...") + ("…" if argument.nargs == -1 else "")
    return shown if argument.required else f"[{shown}]"


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{_usage(parameter)}`"
    else:
        name = ", ".join(f"`{each}`" for each in (*parameter.opts, *parameter.secondary_opts))
    cells = (name, _value(parameter), _default(parameter), _help(parameter))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _value(parameter: Any) -> str:
    """The value of an option: its name as in ``--help``, its choices, or its type with bounds."""
    if getattr(parameter, "is_flag", False):
        return ""
    kind = parameter.type_descriptor.annotation
    if get_origin(kind) in (list, tuple):
        kind = get_args(kind)[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{each.value}`" for each in kind)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{each}`" for each in get_args(kind))
    shown = f"`{parameter.metavar.removesuffix('...')}`" if parameter.metavar else (_NAMES | _NUMBERS)[kind]
    least, most = parameter.min, parameter.max
    bounds = [f"{sign} {bound:g}" for sign, bound in (("≥", least), ("≤", most)) if bound is not None]
    return " ".join([shown, ", ".join(bounds)]).strip()


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "required"
    if value is None or value is False or value in ("", (), []) or not parameter.show_default:
        return ""
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _help(parameter: Any) -> str:
    variable = f" Environment variable: `{parameter.envvar}`." if parameter.envvar else ""
    return _markdown(parameter.help) + variable


def _markdown(text: str | None) -> str:
    return " ".join((text or "").split()).replace("``", "`")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
