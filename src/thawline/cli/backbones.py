"""Verbs about networks: backbones and summary."""

from typing import Annotated

import typer

from thawline.cli._app import app
from thawline.cli._shared import Json, console, fail, print_json

__all__: list[str] = []


@app.command()
def backbones(
    pattern: Annotated[str | None, typer.Argument(help="Part of a name, or a pattern such as 'resnet*'.")] = None,
    as_json: Json = False,
) -> None:
    """List the backbones of torchvision and timm with their layer groups, parameters and weights."""
    from thawline import backbones as registry

    infos = [registry.describe(name) for name in registry.names(pattern)]
    if not infos:
        fail(f"No backbone matches {pattern!r}. `thawline backbones` lists all.")
    if as_json:
        print_json([registry.info_json(info) for info in infos])
    else:
        console().print(registry.listing(infos))
        console().print(registry.further_names(), markup=False)


@app.command()
def summary(
    backbone: Annotated[str, typer.Argument(help="Name in the list of `thawline backbones`.")],
    freeze_depth: Annotated[int, typer.Option(help="Layer groups frozen, counted from the input.")] = 0,
    image_size: Annotated[int | None, typer.Option(help="Side in pixels of what the network sees.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per optimizer step, for the memory.")] = 32,
    as_json: Json = False,
) -> None:
    """Show a backbone's layers, what is trainable at a freeze depth, and the work and memory of every depth."""
    from thawline import backbones as registry

    built = registry.create(backbone, num_classes=10, weights="none", image_size=image_size)
    if as_json:
        print_json(registry.summary_json(built, freeze_depth, batch_size))
    else:
        print(registry.summary_text(built, freeze_depth, batch_size))  # noqa: T201  as wide as it is, for a pager
