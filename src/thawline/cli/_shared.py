"""Options and output shared by several verbs."""

import json
import logging
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from thawline import environment, logs
from thawline.cli._fitting import fit
from thawline.cli._settings import OPTIONS
from thawline.config.fields import help_of

if TYPE_CHECKING:
    from thawline.config import SearchConfig

__all__ = [
    "DATA_HELP",
    "DATA_KINDS",
    "Data",
    "Json",
    "Model",
    "PresetOption",
    "Recipe",
    "SetOption",
    "Storage",
    "TrackingUri",
    "config_of",
    "console",
    "fail",
    "next_steps",
    "print_json",
    "program",
    "progress",
    "say",
    "short",
    "show",
    "show_table",
    "tell",
    "typed",
]

DATA_KINDS = (
    "Folder of images, `DATA/<class>/…`, also below train/, validation/ and test/; table of labelled images or texts "
    "(.csv, .tsv, .jsonl, .json, .parquet, .xlsx), or a folder of tables, as on the Hugging Face Hub; WebDataset "
    "shards; or an archive of any of these (.zip, .tar, …)"
)
"""Accepted kinds of labelled data, for every ``--help``."""
DATA_HELP = f"{DATA_KINDS}. A folder may be on object storage: `s3://bucket/DATA`."
"""The same for verbs that also accept URLs."""

Data = Annotated[str, typer.Argument(metavar="FOLDER|FILE|URL", help=DATA_HELP)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Recipe = Annotated[Path | None, typer.Option(help="Recipe file, or name of a shipped recipe; see `thawline recipes`.")]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="fast|balanced|best",
        help="Shipped recipe, adapted to the data and the available weights; --recipe and other options override it.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any recipe key, such as train.optimizer=sgd; repeatable."),
]
Storage = Annotated[str | None, typer.Option(metavar="URL", help=help_of("study.storage"))]
TrackingUri = Annotated[str | None, typer.Option(metavar="URI", help=help_of("tracking.uri"))]
Model = Annotated[str, typer.Argument(metavar="MODEL[@ALIAS]", help="Registered model; default alias: champion.")]


def console() -> Console:
    """Standard output at its current width.

    A pipe has no width, and rich's 80 columns would truncate ids and break sentences.
    """
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def config_of(
    data: str,
    recipe: Path | None,
    options: Mapping[str, Any],
    assignments: list[str] | None,
    *,
    preset: str | None = None,
    quiet: bool = False,
) -> "SearchConfig":
    """Build the configuration: preset, then recipe, then options and assignments, each overriding those before.

    Notes on the choices of a preset are printed on standard error, unless ``quiet``.

    Raises:
        ConfigError: naming every wrong key and value, or a backbone that would be ignored.
    """
    from thawline.config import SearchConfig, load_recipe, nested, parse_assignments
    from thawline.data import data_location
    from thawline.exceptions import ConfigError
    from thawline.recipes import find_recipe

    layers = [
        load_recipe(find_recipe(recipe)) if recipe else {},
        {"data": data_location(data, environment.home())},
        nested({key: value for key, value in options.items() if value is not None}),
        parse_assignments(assignments or []),
    ]
    if preset is not None:
        from thawline.presets import fitted

        chosen = fitted(preset, *layers)
        layers.insert(0, chosen.layer)
        for note in () if quiet else chosen.notes:
            tell(note)
    assigned = {assignment.partition("=")[0].strip() for assignment in assignments or []}
    typed_as = {key: option for key, option in OPTIONS.items() if options.get(key) is not None and key not in assigned}
    config = SearchConfig.build(*layers, typed_as=typed_as)
    named = options.get("backbone.name")
    if named is not None and config.space.backbone is not None:
        raise ConfigError(
            f"--backbone {named} would be ignored, because space.backbone lists {', '.join(config.backbones)}. "
            f"To search {named} alone, replace the list: --set space.backbone=[{named}]"
        )
    return config


@contextmanager
def progress(doing: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error within the block; update it by calling it with (files done, total)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        bar = shown.add_task(doing, total=None)
        yield lambda done, total: shown.update(bar, completed=done, total=total)


def say(as_json: bool, values: Mapping[str, object], sentence: str) -> None:
    if as_json:
        print_json(values)
    else:
        show(sentence)


def show(*lines: str) -> None:
    """Print sentences: on a terminal wrapped between words, even if a word is too long, in a pipe not wrapped."""
    out = console()
    wrap = textwrap.TextWrapper(out.width, break_long_words=False, break_on_hyphens=False, replace_whitespace=False)
    for line in lines:
        out.print(Text(wrap.fill(line) if out.is_terminal else line), soft_wrap=True)


def show_table(table: RenderableType) -> None:
    """Print a table, or a group of them."""
    out = console()
    fit(table, out)
    out.print(table)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, allow_nan=False, default=str))  # noqa: T201


def typed(value: str | Path) -> str:
    """Quote a path or URL for a shell."""
    return shlex.quote(str(value))


def short(path: Path) -> str:
    """Make a path relative to the working directory if it is inside."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def program() -> str:
    """This command as typed in this shell: ``make demo`` does not put the environment on the PATH."""
    here = Path(sys.executable).parent / "thawline"
    found = shutil.which("thawline")
    return "thawline" if found and Path(found).samefile(here) else short(here)


def next_steps(steps: Mapping[str, str]) -> None:
    """Print suggested commands (given without the program's name), each with a description.

    If the two do not fit on one line of the terminal, the description is printed below. A command is never broken, so
    that it can be copied.
    """
    commands = {f"{program()} {arguments}": what for arguments, what in steps.items()}
    width, out = max(map(len, commands)), console()
    beside = not out.is_terminal or width + 4 + max(map(len, commands.values())) <= out.width
    form = f"\n  {{:<{width}}}  {{}}" if beside else "\n  {}\n      {}"
    lines = "".join(form.format(command, what) for command, what in commands.items())
    out.print(Text.assemble("\n", ("Next", "bold"), lines), soft_wrap=True)


def tell(message: str, *, level: int = logging.INFO, error: str | None = None) -> None:
    """Print a sentence on standard error, in the log format; ``error`` is the name of an exception's class."""
    if logs.chosen() is logs.LogFormat.json:
        logs.start()  # errors in the global options occur before logging starts
        logging.getLogger("thawline.cli").log(level, "%s", message, extra={"error": error})
    else:
        print(message if error is None else f"Error: {message}", file=sys.stderr)  # noqa: T201


def fail(message: str, code: int = 2, *, error: str = "ThawlineError") -> NoReturn:
    """Exit with an error message."""
    tell(message, level=logging.ERROR, error=error)
    sys.exit(code)
