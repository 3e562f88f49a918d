"""Options and output that several verbs share."""

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
    "Folder of images, `DATA/<class>/…`, also below train/, validation/ and test/; table of images or of texts with "
    "their labels (.csv, .tsv, .jsonl, .json, .parquet, .xlsx), or a folder of tables, as on HuggingFace's hub; shards "
    "of WebDataset; or an archive of any of these (.zip, .tar, …)"
)
"""What may be given as labelled data, for every ``--help``."""
DATA_HELP = f"{DATA_KINDS}. A folder may lie on object storage: `s3://bucket/DATA`."
"""The same where URLs are taken too."""

Data = Annotated[str, typer.Argument(metavar="FOLDER|FILE|URL", help=DATA_HELP)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Recipe = Annotated[Path | None, typer.Option(help="Recipe file, or name of a shipped recipe; see `thawline recipes`.")]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="fast|balanced|best",
        help="Shipped recipe fitted to the data and to the weights that are here; --recipe and all else come over it.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of a recipe, such as train.optimizer=sgd; repeatable."),
]
Storage = Annotated[str | None, typer.Option(metavar="URL", help=help_of("study.storage"))]
TrackingUri = Annotated[str | None, typer.Option(metavar="URI", help=help_of("tracking.uri"))]
Model = Annotated[str, typer.Argument(metavar="MODEL[@ALIAS]", help="Registered model; default alias: champion.")]


def console() -> Console:
    """Standard output, as wide as it is now.

    A pipe has no width of its own, and rich's 80 columns would cut ids and break sentences.
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
    """The configuration of a preset, with a recipe over it, and options and assignments over that.

    What a preset was fitted to is told on standard error, unless ``quiet``.

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
    """A progress bar on standard error within the block; called with (files done, total)."""
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
    """Print sentences: on a terminal broken between words, however long those are, in a pipe not at all."""
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
    """A path or URL as it is typed in a shell."""
    return shlex.quote(str(value))


def short(path: Path) -> str:
    """Relative to the working directory where that is shorter to type."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def program() -> str:
    """How to type this command in this shell: ``make demo`` does not put the environment on the PATH."""
    here = Path(sys.executable).parent / "thawline"
    found = shutil.which("thawline")
    return "thawline" if found and Path(found).samefile(here) else short(here)


def next_steps(steps: Mapping[str, str]) -> None:
    """Print what makes sense now: commands without the program's name, and what each does.

    Where the two do not fit beside each other on a terminal, what it does stands below. A command is never broken, so
    that it can be copied.
    """
    commands = {f"{program()} {arguments}": what for arguments, what in steps.items()}
    width, out = max(map(len, commands)), console()
    beside = not out.is_terminal or width + 4 + max(map(len, commands.values())) <= out.width
    form = f"\n  {{:<{width}}}  {{}}" if beside else "\n  {}\n      {}"
    lines = "".join(form.format(command, what) for command, what in commands.items())
    out.print(Text.assemble("\n", ("Next", "bold"), lines), soft_wrap=True)


def tell(message: str, *, level: int = logging.INFO, error: str | None = None) -> None:
    """A sentence on standard error, in the format of the logs; ``error`` is the name of an exception's class."""
    if logs.chosen() is logs.LogFormat.json:
        logs.start()  # a mistake among the first options is found before their format is read
        logging.getLogger("thawline.cli").log(level, "%s", message, extra={"error": error})
    else:
        print(message if error is None else f"Error: {message}", file=sys.stderr)  # noqa: T201


def fail(message: str, code: int = 2, *, error: str = "ThawlineError") -> NoReturn:
    """End the command with a message."""
    tell(message, level=logging.ERROR, error=error)
    sys.exit(code)
