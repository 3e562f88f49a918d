"""Verbs about Thawline itself: ui, up, down, clean, doctor, recipes."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from thawline import environment
from thawline.cli._app import app
from thawline.cli._shared import (
    Json,
    Storage,
    TrackingUri,
    console,
    next_steps,
    print_json,
    short,
    show,
    show_table,
    tell,
    typed,
)

__all__: list[str] = []

recipes_app = typer.Typer(help="List the shipped recipes, or copy one to edit it.", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")


@app.command()
def clean(
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Time since the last use: 30d, 12h or 2w; 0 for all.")
    ] = "30d",
    only: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Only this kind, as named in the list; repeatable.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove everything listed; by default, only list it.")] = False,
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """List files that no search needs any more, or remove them with --yes: checkpoints, caches, failed runs."""
    from thawline import cleaning

    age, kinds = cleaning.parse_age(older_than), cleaning.parse_kinds(only or [])
    found = cleaning.survey(environment.home(), older_than=age, kinds=kinds, storage=storage, tracking_uri=tracking_uri)
    failures = cleaning.remove(found) if yes else []
    if as_json:
        print_json(found.as_dict() | {"removed": yes, "failures": [str(failure) for failure in failures]})
    else:
        from thawline.cli.tables.home import clean_table, clean_total

        if found.items:
            show_table(clean_table(found))
        show(*found.notes, clean_total(found, removed=yes, failures=len(failures)))
        for failure in failures:
            tell(f"Not removed: {failure}", level=logging.WARNING)
    if failures:
        raise typer.Exit(1)


@app.command()
def ui(
    tracking_uri: TrackingUri = None,
    mlflow_port: Annotated[
        int | None, typer.Option(help="Port of the MLflow UI; default: a free one from 5000.")
    ] = None,
    tensorboard_port: Annotated[
        int | None, typer.Option(help="Port of TensorBoard; default: a free one from 6006.")
    ] = None,
    in_browser: Annotated[bool, typer.Option("--open", help="Open MLflow's page of the studies in a browser.")] = False,
) -> None:
    """Serve the web UIs of MLflow, TensorBoard and Prefect for this project, until Ctrl-C."""
    from thawline.ui import serve_ui

    serve_ui(environment.home(), tracking_uri, mlflow_port, tensorboard_port, show, in_browser=in_browser)


@app.command()
def up(
    worker: Annotated[
        str | None, typer.Option(metavar="POOL", help="Also run a worker for deployments to this pool.")
    ] = None,
) -> None:
    """Keep Prefect's server running until `thawline down`; searches do not need this."""
    from thawline.prefect_server import keep_up

    address, runs_already = keep_up(environment.home(), worker)
    show(
        f"Prefect      {address.ui}",
        f"Its page asks for a password once: {address.password}",
        "Prefect's own commands need:",
        f"  export PREFECT_API_URL={address.api}",
        f"  export PREFECT_API_AUTH_STRING={address.password}",
        *([f"A worker runs deployments to the pool {worker}."] if worker else []),
        *(["It keeps the environment variables of the command that started it."] if runs_already else []),
        "It runs until `thawline down`.",
    )
    pool = f" --pool {worker}" if worker else ""
    next_steps(
        {
            f"deploy retrain --data DATA{pool} --cron '0 3 * * *'": "retrain every night if the data have changed",
            "down": "stop it",
        }
    )


@app.command()
def down() -> None:
    """Stop Prefect's server and its worker, unless another command uses them."""
    from thawline.prefect_server import shut_down

    ended = shut_down(environment.home())
    show("Prefect's server has stopped." if ended else "No Prefect server was running here.")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check versions, home, devices and the weights cache, and suggest how to fix problems."""
    from thawline.doctor import diagnose

    findings = diagnose(environment.home())
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    else:
        from thawline.cli.tables.home import findings_table

        show_table(findings_table(findings))
    if any(finding.status == "wrong" for finding in findings):
        raise typer.Exit(1)
    if not as_json:
        next_steps(
            {
                "demo": "try everything on handwritten digits",
                "check PATH/TO/YOUR/DATA": "check your own images or texts without training",
            }
        )


@recipes_app.callback()
def recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the shipped recipes."""
    from thawline.recipes import shipped_recipes

    if context.invoked_subcommand is not None:
        return
    listed = shipped_recipes()
    if as_json:
        print_json([{"name": recipe.name, "purpose": recipe.purpose, "command": recipe.command} for recipe in listed])
        return
    for recipe in listed:
        console().print(f"[bold]{recipe.name}[/bold]  {recipe.purpose}\n    {recipe.command}", highlight=False)


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="Name of a shipped recipe.")],
    to: Annotated[Path, typer.Option(help="Folder or file to write; existing files are not overwritten.")] = Path(),
) -> None:
    """Copy a shipped recipe to edit it, with a JSON schema for completion and validation in editors."""
    from thawline.recipes import SCHEMA, copy

    target = copy(name, to)
    show(f"Wrote {target}, and {SCHEMA} beside it for your editor.")
    next_steps({f"search DATA --recipe {typed(short(target))}": "use it after editing"})
