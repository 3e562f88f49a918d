"""The command line: verbs only. Each parses, calls and prints; heavy libraries are imported where they are needed."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from thawline import __version__, environment
from thawline.exceptions import ThawlineError

if TYPE_CHECKING:
    from thawline.config import SearchConfig
    from thawline.search import SearchOutcome

__all__ = ["app", "main"]

app = typer.Typer(
    name="thawline",
    help="Turn a folder of labelled images into a served classifier: search freeze depth and learning rate, "
    "compare the trials in MLflow, promote the best.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode="markdown",
)
recipes_app = typer.Typer(help="List the shipped recipes, or copy one to edit it.", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")

# A pipe has no width of its own, and rich's 80 columns would cut ids and break sentences.
_out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)
_debug = False

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of a recipe, such as train.optimizer=sgd; repeatable."),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="default|starter|none|FILE", help="Pretrained weights; a .safetensors or state_dict file."),
]


class Deployable(StrEnum):
    """The flows that a schedule may run."""

    search = "search"
    retrain = "retrain"
    score = "score"
    drift = "drift"


def main() -> None:
    """Run the command line. A known error is one message and exit code 2; ``--debug`` shows its traceback."""
    environment.prepare()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except ThawlineError as error:
        if _debug:
            raise
        _fail(str(error))
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"thawline {__version__}")  # noqa: T201
        raise typer.Exit


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Leave as on Ctrl-C: runs are closed, servers and trials ended, and the same command goes on later."""
    raise KeyboardInterrupt


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    global _debug  # noqa: PLW0603  read once, by main()
    _debug = debug


@app.command()
def search(
    data: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|URL", help="Images: DATA/<class>/…, or DATA/train/<class>/… and so on; or s3://bucket/DATA."
        ),
    ],
    recipe: Annotated[Path | None, typer.Option(help="Recipe file; see `thawline recipes`.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Pretrained network; see `thawline backbones`.")] = None,
    weights: Weights = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all, over every time the study is run.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images per trial, at most.")] = None,
    timeout: Annotated[float | None, typer.Option(metavar="MINUTES", help="Start no trial after this time.")] = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N|auto", help="Trials at the same time; auto: one for each GPU.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side in pixels of what the network sees.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per optimizer step.")] = None,
    model: Annotated[str | None, typer.Option(help="Name in the model registry; default: the folder's name.")] = None,
    study: Annotated[
        str | None, typer.Option(help="Name of the study; the same name goes on where it stopped.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling, initialisation and batch order.")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Give the bits of plain training in single precision; slower.")
    ] = False,
    cache_budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Disk space for stored activations, such as 20GB.")
    ] = None,
    approve: Annotated[
        bool, typer.Option("--approve", help="Ask a person in Prefect's UI before the champion is replaced.")
    ] = False,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
    assignments: SetOption = None,
    as_json: Json = False,
) -> None:
    """Search for the best fine-tuned classifier, register it, and make it champion if it is better."""
    options = {
        "backbone.name": backbone,
        "backbone.weights": weights,
        "backbone.image_size": image_size,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "train.exact": exact or None,
        "activations.budget": cache_budget,
        "study.trials": trials,
        "study.timeout_minutes": timeout,
        "study.workers": int(workers) if workers and workers.isdigit() else workers,
        "study.name": study,
        "study.seed": seed,
        "promotion.model": model,
        "promotion.approve": approve or None,
        "tracking.uri": tracking_uri,
    }
    config = _config_of(data, recipe, options, assignments)
    outcome = _run_search(config, quiet=as_json)
    if as_json:
        _print_json(outcome.as_dict())
    else:
        _print_outcome(outcome)
    if not outcome.everything_kept:
        raise typer.Exit(1)


@app.command()
def demo() -> None:
    """Run the whole search on scikit-learn's handwritten digits with the starter weights: nothing is downloaded."""
    from thawline.config import SearchConfig, load_recipe
    from thawline.data import write_digits
    from thawline.recipes import recipe_path

    folder = write_digits(environment.home() / "demo" / "digits")
    config = SearchConfig.build(load_recipe(recipe_path("demo")), {"data": {"path": str(folder)}})
    outcome = _run_search(config, quiet=False)
    _print_outcome(outcome)
    program = _program()
    ask = f"{program} predict {outcome.model} {_short(folder / '7')}"
    width = max(len(ask), 40)
    _out.print(
        "\n[bold]Look further[/bold]\n"
        f"  {program + ' ui':<{width}}  compare the trials in MLflow and TensorBoard\n"
        f"  {ask:<{width}}  ask the champion\n"
        f"  {program + ' search PATH/TO/YOUR/FOLDER':<{width}}  the same on your own images",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def check(
    data: Annotated[str, typer.Argument(metavar="FOLDER|URL", help="Folder of images.")],
    assignments: SetOption = None,
    as_json: Json = False,
) -> None:
    """Read and report the data without training: classes, splits, bad files by name, duplicates, leaks, digest."""
    from thawline.config import SearchConfig, parse_assignments
    from thawline.data import data_location, mirror, report, report_json, scan

    config = SearchConfig.build({"data": data_location(data, environment.home())}, parse_assignments(assignments or []))
    if config.data.url is not None:
        mirror(config.data.url, config.data.path)
    manifest = scan(config.data)
    if as_json:
        _print_json(report_json(manifest))
    else:
        _out.print(report(manifest))


@app.command()
def backbones(
    pattern: Annotated[str | None, typer.Argument(help="Part of a name, or a pattern such as 'resnet*'.")] = None,
    as_json: Json = False,
) -> None:
    """List the backbones with their layer groups, parameters and weights."""
    from thawline import backbones as registry

    infos = [registry.describe(name) for name in registry.names(pattern)]
    if not infos:
        _fail(f"No backbone matches {pattern!r}. `thawline backbones` lists all.")
    if as_json:
        _print_json([registry.info_json(info) for info in infos])
    else:
        _out.print(registry.listing(infos))


@app.command()
def summary(
    backbone: Annotated[str, typer.Argument(help="Name in the list of `thawline backbones`.")],
    freeze_depth: Annotated[int, typer.Option(help="Layer groups frozen, counted from the input.")] = 0,
    image_size: Annotated[int | None, typer.Option(help="Side in pixels of what the network sees.")] = None,
    as_json: Json = False,
) -> None:
    """Show a backbone's layers, and what is frozen and trainable at a freeze depth."""
    from thawline import backbones as registry

    built = registry.create(backbone, num_classes=10, weights="none", image_size=image_size)
    if as_json:
        _print_json(registry.summary_json(built, freeze_depth))
    else:
        print(registry.summary_text(built, freeze_depth))  # noqa: T201  as wide as it is, for a pager


@app.command()
def leaderboard(
    study: Annotated[str | None, typer.Argument(help="Name of a study; default: the latest.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Database of the study; default: THAWLINE_STORAGE, else the home.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank the trials of a study."""
    from thawline.search.leaderboard import leaderboard_rows, leaderboard_table
    from thawline.search.study import latest_study, load_records

    name = study or latest_study(environment.home(), storage)
    metric, records = load_records(environment.home(), name, storage)
    if as_json:
        _print_json({"study": name, "metric": metric, "trials": leaderboard_rows(records)})
    else:
        _out.print(leaderboard_table(records, metric, title=f"Study {name}"))


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL[@ALIAS]", help="Registered model; default alias: champion.")],
    paths: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
    as_json: Json = False,
) -> None:
    """Name the class of image files, with probabilities, by a model from the registry."""
    from thawline.predict import predict_files, predictions_table

    predictions = predict_files(model, paths, tracking_uri=tracking_uri, home=environment.home())
    if as_json:
        _print_json(predictions)
    else:
        _out.print(predictions_table(predictions))
    if any("error" in prediction for prediction in predictions):
        raise typer.Exit(1)


@app.command()
def score(
    model: Annotated[str, typer.Argument(metavar="MODEL[@ALIAS]", help="Registered model; default alias: champion.")],
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|LIST", help="Folder of images, or a file that lists their paths.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="Table to write, a row for each image.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
) -> None:
    """Classify any number of image files into a Parquet file; the same command goes on after an interruption."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from thawline.scoring import score_files

    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("scoring", total=None)
        summary = score_files(
            model,
            source,
            out,
            tracking_uri=tracking_uri,
            home=environment.home(),
            device=device,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    _out.print(f"{summary}.", highlight=False, soft_wrap=True)
    if summary.bad:
        raise typer.Exit(1)


@app.command()
def drift(
    model: Annotated[str, typer.Argument(metavar="MODEL[@ALIAS]", help="Registered model; default alias: champion.")],
    folder: Annotated[Path, typer.Argument(help="Folder of new images, without labels.")],
    reference: Annotated[
        Path | None,
        typer.Option(help="Folder of images to compare with; default: what the model's study held out."),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="False-alarm rate: how often, at most, images of the same kind are called drift.")
    ] = 0.01,
    max_images: Annotated[int, typer.Option(help="Of more images, new or reference, so many are drawn.")] = 2000,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
    as_json: Json = False,
) -> None:
    """Test whether new images are like those that a model was made for; exit code 1 if they are not."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from thawline.drift import check_drift, drift_table

    columns = (TextColumn("comparing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("comparing", total=None)
        report = check_drift(
            model,
            folder,
            tracking_uri=tracking_uri,
            home=environment.home(),
            reference=reference,
            alpha=alpha,
            max_images=max_images,
            device=device,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    if as_json:
        _print_json(report.as_dict())
    else:
        _out.print(drift_table(report))
        _out.print(str(report), highlight=False, soft_wrap=True)
    if report.drift:
        raise typer.Exit(1)


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    version: Annotated[str | None, typer.Option(help="Challenger; default: the alias challenger.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder DATA/<class>/… to compare on; default: the study's test split.")
    ] = None,
    approve: Annotated[bool, typer.Option("--approve", help="Wait for a person's answer in Prefect's UI.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Promote without a comparison; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why by force; recorded in the registry.")] = "",
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
    as_json: Json = False,
) -> None:
    """Judge a version against the champion on the same test images, and promote it if it is better."""
    from thawline.search.challenger import force_challenger

    if force:
        version = force_challenger(
            model, version=version, reason=reason, tracking_uri=tracking_uri, home=environment.home()
        )
        _say(as_json, {"model": model, "version": version, "decision": "forced", "reason": reason.strip()},
             f"{model} version {version} is the champion now, by force: {reason.strip()}")  # fmt: skip
        return
    if reason:
        raise ThawlineError("--reason belongs to --force: without it the comparison is the reason.")
    if approve:
        from thawline.config import PromotionConfig
        from thawline.search.prepare import check_approval

        check_approval(PromotionConfig(approve=True))  # before Prefect's server is started, which takes its time
    environment.quiet_prefect()
    from thawline.flows.promote import promote as promote_flow

    outcome = promote_flow(model, version=version, data=data, approve=approve or None, tracking_uri=tracking_uri)
    decision = outcome.verdict.outcome.value
    if as_json:
        _print_json(outcome.as_dict())
    else:
        from thawline.registry.tables import verdict_table

        _out.print(verdict_table(outcome.verdict))
        _out.print(f"{model} version {outcome.version}, {decision}: {outcome.verdict.reason}", highlight=False)
    if decision != "promote":
        raise typer.Exit(1)


@app.command()
def retrain(
    data: Annotated[str, typer.Argument(help="Folder of images, or its URL.")],
    recipe: Annotated[Path | None, typer.Option(help="Recipe file; see `thawline recipes`.")] = None,
    model: Annotated[str | None, typer.Option(help="Name in the model registry; default: the folder's name.")] = None,
    narrow: Annotated[bool, typer.Option("--narrow", help="Search only near the champion.")] = False,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
    assignments: SetOption = None,
    as_json: Json = False,
) -> None:
    """Search anew if data or recipe have changed since the last verdict, beginning with the champion's settings."""
    options = {"promotion.model": model, "retrain.narrow": narrow or None, "tracking.uri": tracking_uri}
    config = _config_of(data, recipe, options, assignments)
    environment.quiet_prefect()
    from thawline.search import check_config
    from thawline.terminal import watch

    check_config(config, environment.home())  # before Prefect's server is started, which takes its time
    with watch(Console(stderr=True), quiet=as_json):
        from thawline.flows.retrain import retrain as retrain_flow

        outcome = retrain_flow(config)
    if as_json:
        _print_json(outcome.as_dict())
    elif outcome.search is None:
        _out.print(f"{outcome.title}: {outcome.reason}.", highlight=False, soft_wrap=True)
    else:
        _print_outcome(outcome.search)
    if outcome.search is not None and not outcome.search.everything_kept:
        raise typer.Exit(1)


@app.command()
def deploy(
    flow: Annotated[Deployable, typer.Argument(help="What to run.")] = Deployable.retrain,
    data: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder of images, or its URL; for score, or a list of paths.")
    ] = None,
    cron: Annotated[str | None, typer.Option(metavar="'M H D M W'", help="When; default: only when asked to.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Of --cron, such as Europe/Berlin; default: UTC.")] = None,
    on_drift: Annotated[
        bool,
        typer.Option("--on-drift", help="Retrain also when a deployment of drift finds that the images changed."),
    ] = False,
    pool: Annotated[
        str | None, typer.Option(metavar="NAME", help="Process work pool to deploy to; default: serve it from here.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the deployment; default: the model's.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Recipe file; see `thawline recipes`.")] = None,
    model: Annotated[str | None, typer.Option(help="Registered model; default: the folder's name.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.parquet", help="For score: the table to write.")] = None,
    assignments: SetOption = None,
) -> None:
    """Put a flow on a schedule of a Prefect server, and run it here until Ctrl-C or by the workers of a pool."""
    trains = flow in (Deployable.search, Deployable.retrain)
    if data is None or (model is None and not trains) or ((out is not None) != (flow is Deployable.score)):
        raise ThawlineError(
            "search and retrain need --data FOLDER, drift needs --model NAME too, and score needs --out FILE.parquet "
            "besides, which the others do not take."
        )
    if not trains and (recipe or assignments):
        raise ThawlineError(f"--recipe and --set belong to search and retrain: {flow.value} trains nothing.")
    if on_drift and flow is not Deployable.retrain:
        raise ThawlineError(f"--on-drift belongs to retrain: {flow.value} learns nothing from new images.")
    from thawline.flows import deployments

    deployments.check_server()
    schedule = deployments.at(cron, timezone)
    if trains:
        config = _config_of(data, recipe, {"promotion.model": model}, assignments)
        made = deployments.of_search(flow.value, config, name=name, schedule=schedule, on_drift=on_drift)
    elif out is not None:
        made = deployments.of_score(model, Path(data), out, name=name, schedule=schedule)
    else:
        made = deployments.of_drift(model, Path(data), name=name, schedule=schedule)
    if pool is None:
        print(f"Serving {made.full_name}; Ctrl-C stops it.", file=sys.stderr)  # noqa: T201
        deployments.serve(made)
        return
    for line in deployments.deploy(made, pool):
        _out.print(line, highlight=False, soft_wrap=True)


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    to: Annotated[str | None, typer.Option(metavar="V", help="Version; default: the champion before this one.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
    as_json: Json = False,
) -> None:
    """Make the former champion the champion again; servers follow within seconds."""
    from thawline.registry import roll_back
    from thawline.tracking import open_store

    before, after = roll_back(open_store(tracking_uri, environment.home()), name=model, to=to)
    _say(as_json, {"model": model, "from": before, "to": after},
         f"{model}: version {after} is the champion again, in place of version {before}.")  # fmt: skip


@app.command()
def history(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
    as_json: Json = False,
) -> None:
    """Tell which version was champion from when to when, on what evidence, and who moved it."""
    from thawline.registry import MlflowRegistry
    from thawline.registry.tables import history_rows, history_table
    from thawline.tracking import open_store

    reigns = MlflowRegistry(open_store(tracking_uri, environment.home())).history(model)
    if as_json:
        _print_json(history_rows(reigns))
    else:
        _out.print(history_table(model, reigns))


@app.command()
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL[@ALIAS]", help="Registered model; default alias: champion.")],
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes, each with the model in memory.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="Images that share a forward pass, at most.")] = 32,
    max_delay: Annotated[
        float, typer.Option(metavar="MS", min=0, max=1000, help="How long a batch waits for images being decoded.")
    ] = 2.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    token_file: Annotated[
        Path | None, typer.Option(help="File with a token that clients must send as Authorization: Bearer.")
    ] = None,
    webhook_secret_file: Annotated[
        Path | None, typer.Option(help="File with the secret of an MLflow webhook; it is taken at /webhook.")
    ] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
) -> None:
    """Serve a registered model over HTTP, and follow its alias: a new champion is served without a restart."""
    from thawline.serving import ServeOptions
    from thawline.serving import serve as run_server

    options = ServeOptions(
        model=model,
        tracking_uri=tracking_uri,
        home=environment.home(),
        host=host,
        port=port,
        workers=workers,
        max_batch=max_batch,
        max_delay_ms=max_delay,
        device=device,
        token_file=token_file,
        webhook_secret_file=webhook_secret_file,
    )
    try:
        run_server(options)
    except KeyboardInterrupt:  # uvicorn has finished what was in flight, and raises the signal again
        return


@app.command()
def clean(
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Since the last use: 30d, 12h or 2w.")] = "30d",
    only: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Of what the list calls by this name; repeatable.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only shown.")] = False,
    storage: Annotated[str | None, typer.Option(help="Database of the studies; default: THAWLINE_STORAGE.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
    as_json: Json = False,
) -> None:
    """Show what no search needs any more, and remove it if asked to: checkpoints, caches, leftovers, failed runs."""
    from thawline import cleaning

    age, kinds = cleaning.parse_age(older_than), cleaning.parse_kinds(only or [])
    found = cleaning.survey(environment.home(), older_than=age, kinds=kinds, storage=storage, tracking_uri=tracking_uri)
    failures = cleaning.remove(found) if yes else []
    if as_json:
        _print_json(found.as_dict() | {"removed": yes, "failures": [str(failure) for failure in failures]})
    else:
        if found.items:
            _out.print(cleaning.clean_table(found))
        for line in (*found.notes, found.total(removed=yes, failures=len(failures))):
            _out.print(line, highlight=False, soft_wrap=True)
        for failure in failures:
            print(f"Not removed: {failure}", file=sys.stderr)  # noqa: T201
    if failures:
        raise typer.Exit(1)


@app.command()
def ui(
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
    mlflow_port: Annotated[
        int | None, typer.Option(help="Port of the MLflow UI; default: a free one from 5000.")
    ] = None,
    tensorboard_port: Annotated[
        int | None, typer.Option(help="Port of TensorBoard; default: a free one from 6006.")
    ] = None,
) -> None:
    """Start the MLflow UI and TensorBoard on this project's store; Ctrl-C stops both."""
    from thawline.ui import serve_ui

    raise typer.Exit(serve_ui(environment.home(), tracking_uri, mlflow_port, tensorboard_port, _out.print))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check versions, home, devices and the weights cache, and say what to do."""
    from thawline.doctor import diagnose, findings_table

    findings = diagnose(environment.home())
    if as_json:
        _print_json([finding.as_dict() for finding in findings])
    else:
        _out.print(findings_table(findings))
    if any(finding.status == "wrong" for finding in findings):
        raise typer.Exit(1)


@recipes_app.callback()
def recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the shipped recipes."""
    from thawline.recipes import shipped_recipes

    if context.invoked_subcommand is not None:
        return
    listed = shipped_recipes()
    if as_json:
        _print_json([{"name": recipe.name, "purpose": recipe.purpose, "command": recipe.command} for recipe in listed])
        return
    for recipe in listed:
        _out.print(f"[bold]{recipe.name}[/bold]  {recipe.purpose}\n    {recipe.command}", highlight=False)


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="Name of a shipped recipe.")],
    to: Annotated[Path, typer.Option(help="Folder or file to write; never overwrites.")] = Path(),
) -> None:
    """Copy a shipped recipe here, to edit it."""
    from thawline.recipes import copy

    target = copy(name, to)
    _out.print(f"Wrote {target}. Use it with: thawline search DATA --recipe {target}", highlight=False)


def _run_search(config: Any, *, quiet: bool) -> "SearchOutcome":
    environment.quiet_prefect()
    from thawline.search import check_config, prepare_workers
    from thawline.terminal import watch

    check_config(config, environment.home())  # before Prefect's server is started, which takes its time
    prepare_workers()
    with watch(Console(stderr=True), quiet=quiet):
        from thawline.flows.search import search as search_flow

        try:
            outcome: SearchOutcome = search_flow(config)
        except KeyboardInterrupt:
            print("The same command goes on where it stopped.", file=sys.stderr)  # noqa: T201
            raise
    return outcome


def _print_outcome(outcome: "SearchOutcome") -> None:
    from thawline.search.leaderboard import leaderboard_table

    _out.print(leaderboard_table(outcome.records, outcome.metric, title=f"Study {outcome.study}"))
    _out.print()
    if outcome.promotion.champion is not None and outcome.promotion.verdict.criteria:
        from thawline.registry.tables import verdict_table

        _out.print(verdict_table(outcome.promotion.verdict))
        _out.print()
    for line in outcome.lines():
        _out.print(line, highlight=False, soft_wrap=True)


def _config_of(
    data: str, recipe: Path | None, options: Mapping[str, Any], assignments: list[str] | None
) -> "SearchConfig":
    """The configuration of a recipe, with options and assignments over it."""
    from thawline.config import SearchConfig, load_recipe, parse_assignments
    from thawline.data import data_location

    return SearchConfig.build(
        load_recipe(recipe) if recipe else {},
        {"data": data_location(data, environment.home())},
        _nested(options),
        parse_assignments(assignments or []),
    )


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """``{"train.epochs": 3}`` to ``{"train": {"epochs": 3}}``, without what was not given."""
    nested: dict[str, Any] = {}
    for key, value in options.items():
        if value is not None:
            section, _, name = key.partition(".")
            nested.setdefault(section, {})[name] = value
    return nested


def _say(as_json: bool, values: Mapping[str, object], sentence: str) -> None:
    if as_json:
        _print_json(values)
    else:
        _out.print(sentence, highlight=False, soft_wrap=True)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, allow_nan=False, default=str))  # noqa: T201


def _short(path: Path) -> str:
    """Relative to the working directory where that is shorter to type."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _program() -> str:
    """How to type this command in this shell: ``make demo`` does not put the environment on the PATH."""
    here = Path(sys.executable).parent / "thawline"
    found = shutil.which("thawline")
    return "thawline" if found and Path(found).samefile(here) else _short(here)


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"Error: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)
