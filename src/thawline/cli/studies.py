"""Verbs that train (search, demo, retrain, deploy) and that show the results (leaderboard, report)."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from thawline import environment, stopping
from thawline.cli._app import app
from thawline.cli._settings import Setting, Settings, takes_settings
from thawline.cli._shared import (
    DATA_HELP,
    Data,
    Json,
    PresetOption,
    Recipe,
    SetOption,
    Storage,
    TrackingUri,
    config_of,
    next_steps,
    print_json,
    short,
    show,
    show_table,
    tell,
    typed,
)
from thawline.exceptions import ThawlineError

if TYPE_CHECKING:
    from thawline.search import SearchOutcome

__all__ = ["OF_RETRAIN", "OF_SEARCH"]

OF_SEARCH = (
    Setting("backbone.name", "--backbone"),
    Setting("backbone.weights", metavar="default|starter|none|FILE"),
    Setting("study.trials"),
    Setting("train.epochs"),
    Setting("study.timeout_minutes", "--timeout", "MINUTES"),
    Setting("study.workers", metavar="N|auto"),
    Setting("backbone.image_size"),
    Setting("backbone.max_length"),
    Setting("train.batch_size"),
    Setting("promotion.model"),
    Setting("study.name", "--study"),
    Setting("study.seed"),
    Setting("train.exact"),
    Setting("activations.budget", "--cache-budget", "SIZE"),
    Setting("promotion.approve"),
    Setting("tracking.uri", "--tracking-uri", "URI"),
)
"""Settings that have options of `thawline search`."""
OF_RETRAIN = (
    Setting("promotion.model"),
    Setting("retrain.narrow"),
    Setting("tracking.uri", "--tracking-uri", "URI"),
)
"""Settings that have options of `thawline retrain`."""


class Deployable(StrEnum):
    """Flows that can run on a schedule."""

    search = "search"
    retrain = "retrain"
    score = "score"
    drift = "drift"


@app.command()
@takes_settings(*OF_SEARCH)
def search(
    data: Data,
    recipe: Recipe = None,
    *,
    preset: PresetOption = None,
    settings: Settings,
    assignments: SetOption = None,
    as_json: Json = False,
) -> None:
    """Search for the best fine-tuned classifier, register it, and make it champion if it is better."""
    from thawline.api import run_search

    config = config_of(data, recipe, settings, assignments, preset=preset, quiet=as_json)
    outcome = run_search(config, quiet=as_json)
    if as_json:
        print_json(outcome.as_dict())
    else:
        _print_outcome(outcome)
        _next_after_search(outcome)
    if not outcome.everything_kept:
        raise typer.Exit(1)


@app.command()
def demo() -> None:
    """Run a complete search on scikit-learn's handwritten digits with the starter weights, without downloads."""
    from thawline.api import run_search
    from thawline.config import SearchConfig, load_recipe
    from thawline.data import write_digits
    from thawline.recipes import recipe_path

    folder = write_digits(environment.home() / "demo" / "digits")
    config = SearchConfig.build(load_recipe(recipe_path("demo")), {"data": {"path": str(folder)}})
    outcome = run_search(config)
    _print_outcome(outcome)
    next_steps(
        {
            f"predict {outcome.model} {typed(short(folder / '7'))}": "classify images with the champion",
            "ui": "compare the trials in MLflow and TensorBoard",
            "search PATH/TO/YOUR/FOLDER": "search your own images",
        }
    )


@app.command()
def leaderboard(
    study: Annotated[str | None, typer.Argument(help="Name of a study; default: the latest.")] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Rank the trials of a study."""
    from thawline.search.leaderboard import leaderboard_rows
    from thawline.search.records import latest_study, load_records

    name = study or latest_study(environment.home(), storage)
    metric, records = load_records(environment.home(), name, storage)
    if as_json:
        print_json({"study": name, "metric": metric, "trials": leaderboard_rows(records)})
    else:
        from thawline.cli.tables.studies import leaderboard_table

        show_table(leaderboard_table(records, metric, title=f"Study {name}"))
        next_steps(
            {
                f"report {name}": "write the study as one self-contained page",
                "ui": "compare the trials in MLflow and TensorBoard",
            }
        )


@app.command()
def report(
    study: Annotated[str | None, typer.Argument(help="Name of a study; default: the latest.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Page to write; default: STUDY.html in this folder.")
    ] = None,
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write the report of a study as one self-contained HTML page."""
    from thawline.search.records import latest_study
    from thawline.study_report import write_report

    home = environment.home()
    name = study or latest_study(home, storage)
    page = write_report(name, out or Path(f"{name}.html"), home=home, storage=storage, tracking_uri=tracking_uri)
    show(f"Wrote {page}. Open it in a browser.")
    next_steps({"ui": "compare the trials in MLflow and TensorBoard"})


@app.command()
@takes_settings(*OF_RETRAIN)
def retrain(
    data: Data,
    recipe: Recipe = None,
    *,
    preset: PresetOption = None,
    settings: Settings,
    assignments: SetOption = None,
    as_json: Json = False,
) -> None:
    """Search again if data or recipe have changed since the last verdict, starting from the champion's settings."""
    config = config_of(data, recipe, settings, assignments, preset=preset, quiet=as_json)
    environment.quiet_prefect()
    stopping.allow(config.study.grace_seconds)
    from thawline.prefect_server import used

    with used(environment.home()) as server:
        from thawline.search import already_checked, check_config
        from thawline.terminal import watch

        check_config(config, environment.home())
        with watch(quiet=as_json):
            from thawline.flows.retrain import retrain as retrain_flow
            from thawline.orchestration.reach import value_of
            from thawline.orchestration.server import connected

            with connected(server), already_checked(config):
                outcome = value_of(lambda: retrain_flow(config))
    if as_json:
        print_json(outcome.as_dict())
    elif outcome.search is None:
        show(f"{outcome.title}: {outcome.reason}.")
        by_recipe = (f" --preset {preset}" if preset else "") + (f" --recipe {typed(recipe)}" if recipe else "")
        next_steps(
            {
                f"history {outcome.model}": "which version was champion, and why",
                f"deploy retrain --data {typed(data)}{by_recipe} --cron '0 3 * * *'": "check for changes every night",
            }
        )
    else:
        _print_outcome(outcome.search)
        _next_after_search(outcome.search)
    if outcome.search is not None and not outcome.search.everything_kept:
        raise typer.Exit(1)


@app.command()
def deploy(
    flow: Annotated[Deployable, typer.Argument(help="Flow to run.")] = Deployable.retrain,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help=f"{DATA_HELP} For drift, a folder of unlabelled images; for score, such a folder, a list of paths, "
            "or a file of texts.",
        ),
    ] = None,
    cron: Annotated[str | None, typer.Option(metavar="'M H D M W'", help="Schedule; default: only on request.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Time zone of --cron, such as Europe/Berlin; else UTC.")] = None,
    on_drift: Annotated[
        bool,
        typer.Option("--on-drift", help="Also retrain when a drift deployment reports drift."),
    ] = False,
    pool: Annotated[
        str | None, typer.Option(metavar="NAME", help="Process work pool to deploy to; default: this process.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the deployment; default: the model's.")] = None,
    recipe: Recipe = None,
    preset: PresetOption = None,
    model: Annotated[str | None, typer.Option(help="Registered model; default: the folder's name.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.parquet", help="Table to write, for score.")] = None,
    assignments: SetOption = None,
) -> None:
    """Schedule a flow on a Prefect server, and run it here until Ctrl-C, or by the workers of a pool."""
    trains = flow in (Deployable.search, Deployable.retrain)
    if data is None or (model is None and not trains) or ((out is not None) != (flow is Deployable.score)):
        raise ThawlineError(
            "search and retrain need --data FOLDER, drift also needs --model NAME, and score also needs --model NAME "
            "and --out FILE.parquet, an option of score only."
        )
    if not trains and (recipe or preset or assignments):
        raise ThawlineError(f"--recipe, --preset and --set need search or retrain: {flow.value} does not train.")
    if on_drift and flow is not Deployable.retrain:
        raise ThawlineError(f"--on-drift needs retrain: {flow.value} does not retrain.")
    from thawline.prefect_server import used

    with used(environment.home()) as server:
        from thawline import deployments
        from thawline.orchestration.server import connected

        schedule = deployments.at(cron, timezone)
        with connected(server):
            match flow, model, out:
                case Deployable.score, str(), Path():
                    made = deployments.of_score(model, Path(data), out, name=name, schedule=schedule)
                case Deployable.drift, str(), None:
                    made = deployments.of_drift(model, Path(data), name=name, schedule=schedule)
                case _:
                    config = config_of(data, recipe, {"promotion.model": model}, assignments, preset=preset)
                    stopping.allow(config.study.grace_seconds)
                    kind: Literal["search", "retrain"] = "retrain" if flow is Deployable.retrain else "search"
                    made = deployments.of_search(kind, config, name=name, schedule=schedule, on_drift=on_drift)
            if pool is None:
                tell(f"Serving {made.full_name}; press Ctrl-C to stop it.")
                if schedule is None and not on_drift:
                    tell(f"Run it now, in another terminal: prefect deployment run {made.full_name}")
                    if server is not None:
                        tell("`thawline up` prints the environment variables that this command needs.")
                deployments.serve(made)
                return
            show(*deployments.deploy(made, pool, managed=server is not None))


def _print_outcome(outcome: "SearchOutcome") -> None:
    from thawline.cli.tables.studies import leaderboard_table

    show_table(leaderboard_table(outcome.records, outcome.metric, title=f"Study {outcome.study}"))
    show("")
    is_news = outcome.promotion.champion is not None or not outcome.promoted
    if is_news and outcome.promotion.verdict.criteria:
        from thawline.cli.tables.models import verdict_table

        show_table(verdict_table(outcome.promotion.verdict))
        show("")
    show(*outcome.lines())


def _next_after_search(outcome: "SearchOutcome") -> None:
    model, version = outcome.model, outcome.promotion.version
    item = "TEXT" if outcome.promotion.challenger.kind == "texts" else "IMAGE"
    if outcome.promoted:
        steps = {f"serve {model}": "answer requests over HTTP", f"predict {model} {item}": "classify with the champion"}
    else:
        steps = {
            f"serve {model}/{version}": "serve this version anyway",
            f"predict {model}/{version} {item}": "classify with this version",
            f"history {model}": "which version was champion, and why",
        }
    next_steps(
        {
            **steps,
            "ui": "compare the trials in MLflow and TensorBoard",
            f"report {outcome.study}": "write the study as one self-contained page",
        }
    )
