"""Verbs about networks: backbones and summary."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from thawline.cli._app import app
from thawline.cli._shared import Json, console, fail, next_steps, print_json, show, show_table
from thawline.config.fields import help_of
from thawline.exceptions import BackboneError, ThawlineError

if TYPE_CHECKING:  # slow to import, and not needed by other verbs
    from thawline.backbones import BackboneInfo

__all__: list[str] = []


@app.command()
def backbones(
    pattern: Annotated[str | None, typer.Argument(help="Part of a name, or a pattern such as 'resnet*'.")] = None,
    as_json: Json = False,
) -> None:
    """List the backbones of torchvision, timm and other packages with their layer groups, parameters and weights."""
    from thawline import backbones as registry

    infos = list(_described(registry.names(pattern), pattern))
    if not infos:
        fail(f"No backbone matches {pattern!r}. `thawline backbones` lists all.\n{registry.further_names()}")
    if as_json:
        print_json([registry.info_json(info) for info in infos])
    else:
        from thawline.cli.tables.backbones import backbones_table

        show_table(backbones_table(infos, console().width))
        show(registry.further_names())
        example = infos[0].name if len(infos) == 1 else "NAME"
        next_steps(
            {
                f"summary {example}": "its layers, and the cost of each freeze depth",
                f"search DATA --backbone {example}": "fine-tune it",
            }
        )


def _described(names: list[str], pattern: str | None) -> "Iterator[BackboneInfo]":
    """Describe each backbone; skip those that cannot be used, as after an upgrade of their library.

    Raises:
        BackboneError: if ``pattern`` is the name of a backbone that cannot be used.
    """
    from thawline import backbones as registry

    for name in names:
        try:
            yield registry.describe(name)
        except BackboneError:
            if name == pattern:
                raise


@app.command()
def summary(
    backbone: Annotated[str, typer.Argument(help="Name in the list of `thawline backbones`, or hf:FOLDER_OR_ID.")],
    freeze_depth: Annotated[int, typer.Option(help="Layer groups frozen, counted from the input.")] = 0,
    image_size: Annotated[int | None, typer.Option(help=help_of("backbone.image_size"))] = None,
    max_length: Annotated[int | None, typer.Option(help=help_of("backbone.max_length"))] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images or texts per step, for the memory estimate.")] = 32,
    as_json: Json = False,
) -> None:
    """Show a backbone's layers, the trainable parameters at a freeze depth, and FLOPs and memory at every depth."""
    from thawline import backbones as registry

    built = registry.create(backbone, num_classes=10, weights="none", image_size=image_size, max_length=max_length)
    deepest = len(built.layer_groups)
    if not 0 <= freeze_depth <= deepest:
        raise ThawlineError(
            f"--freeze-depth must be between 0 (train everything) and {deepest} (head only) for {backbone}, "
            f"but got {freeze_depth}."
        )
    if as_json:
        print_json(registry.summary_json(built, freeze_depth, batch_size))
    else:
        print(registry.summary_text(built, freeze_depth, batch_size))  # noqa: T201  not wrapped, for a pager
        next_steps({f"search DATA --backbone {backbone}": "find the best freeze depth"})
