"""Verbs about registered models: predict, score, explain, export, promote, rollback, history, serve."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from thawline import environment, stopping
from thawline.cli._app import app
from thawline.cli._shared import (
    DATA_KINDS,
    Json,
    Model,
    TrackingUri,
    next_steps,
    print_json,
    progress,
    say,
    show,
    show_table,
    typed,
)
from thawline.config.fields import help_of
from thawline.exceptions import ThawlineError

__all__: list[str] = []

TextColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column with the texts in a table, or its number if the table has no header; default: as in training.",
    ),
]

Engine = Annotated[
    Literal["auto", "pytorch", "pytorch-compiled", "onnxruntime", "openvino", "openvino-bf16"],
    typer.Option(help="Inference engine; auto: the fastest installed one that agrees with PyTorch."),
]


@app.command()
def predict(
    model: Model,
    items: Annotated[
        list[str],
        typer.Argument(
            metavar="ITEM...",
            help="Image files or folders of images; for a text model, the texts themselves, or files of texts: "
            "tables, or .txt with one per line.",
        ),
    ],
    text_column: TextColumn = None,
    engine: Engine = "auto",
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Classify images or texts with a registered model, with probabilities."""
    from thawline.predict import predict_items

    predictions = predict_items(
        model, items, tracking_uri=tracking_uri, home=environment.home(), text_column=text_column, engine=engine
    )
    if as_json:
        print_json(predictions)
    else:
        from thawline.cli.tables.models import predictions_table

        show_table(predictions_table(predictions))
        texts = "text" in predictions[0]
        next_steps(
            {
                **({} if texts else {f"explain {model} IMAGE --out DIR": "draw the evidence for its class"}),
                f"score {model} {'TABLE' if texts else 'FOLDER'} --out FILE.parquet": "classify many, into a table",
                f"serve {model}": "answer requests over HTTP",
            }
        )
    if any("error" in prediction for prediction in predictions):
        raise typer.Exit(1)


@app.command()
def score(
    model: Model,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|FILE",
            help="Folder of images, or a file that lists image paths; for a text model, a table or .txt of texts.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="Table to write, one row per image or text.")],
    text_column: TextColumn = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    engine: Engine = "auto",
    tracking_uri: TrackingUri = None,
) -> None:
    """Classify any number of images or texts into a Parquet file; after an interruption, the same command resumes."""
    from thawline.scoring import score_files

    with progress("scoring") as on_progress:
        summary = score_files(
            model,
            source,
            out,
            tracking_uri=tracking_uri,
            home=environment.home(),
            device=device,
            engine=engine,
            text_column=text_column,
            on_progress=on_progress,
        )
    show(f"{summary}.")
    drift = {f"drift {model} {typed(source)}": "test whether they resemble the training images"}
    again = f"deploy score --data {typed(source)} --model {model} --out {typed(out)} --cron '0 3 * * *'"
    next_steps({**(drift if summary.kind == "images" and source.is_dir() else {}), again: "score them every night"})
    if summary.bad:
        raise typer.Exit(1)


@app.command()
def explain(
    model: Model,
    paths: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files or folders of images.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="New or empty folder for the pictures and explanations.json.")
    ],
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Class to explain; default: the predicted one.")
    ] = None,
    method: Annotated[
        Literal["auto", "grad-cam", "integrated-gradients", "occlusion"],
        typer.Option(help="auto: grad-cam for convolutional networks, integrated-gradients for transformers."),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Draw heat maps of the evidence for a class in images, with a registered model."""
    from thawline.explain import explain_files

    rows = explain_files(
        model,
        paths,
        out,
        tracking_uri=tracking_uri,
        home=environment.home(),
        class_name=class_name,
        method=method,
        device=device,
    )
    if as_json:
        print_json(rows)
    else:
        from thawline.cli.tables.models import explanations_table

        show_table(explanations_table(rows))
        show(f"The pictures and explanations.json are in {out}.")
    if any("error" in row for row in rows):
        raise typer.Exit(1)


@app.command()
def export(
    model: Model,
    wanted: Annotated[
        Literal["timm", "transformers", "onnx", "openvino"],
        typer.Option("--format", help="For timm.create_model, AutoModelForImageClassification, or a runtime."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New or empty folder for the files and a model card.")],
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Export an image model for another library, verified against the original, with a model card."""
    from thawline.exporting import export_model

    summary = export_model(model, wanted, out, tracking_uri=tracking_uri, home=environment.home())
    facts = {"model": summary.model, "version": summary.version, "format": wanted, "out": str(out)}
    say(as_json, {**facts, "difference": summary.difference}, f"{summary}.")


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    version: Annotated[str | None, typer.Option(help="Version to judge; default: the alias challenger.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER|FILE", help=f"Data to compare on; default: the study's test split. {DATA_KINDS}."),
    ] = None,
    approve: Annotated[bool, typer.Option("--approve", help=help_of("promotion.approve"))] = False,
    force: Annotated[bool, typer.Option("--force", help="Promote without a comparison; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Reason for --force; recorded in the registry.")] = "",
    shadow: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Server that runs with `--shadow`: its counts are shown with the verdict."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that the server of `--shadow` requires.")
    ] = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Compare a version with the champion on the same test data, and promote it if it is better."""
    from thawline.search.challenger import force_challenger

    if force:
        version = force_challenger(
            model, version=version, reason=reason, tracking_uri=tracking_uri, home=environment.home()
        )
        say(as_json, {"model": model, "version": version, "decision": "forced", "reason": reason.strip()},
             f"{model} version {version} is now the champion, by force: {reason.strip()}")  # fmt: skip
        if not as_json:
            _next_after_promotion(model)
        return
    if reason:
        raise ThawlineError("--reason needs --force: without it, the comparison is the reason.")
    from thawline.tracking import open_store

    open_store(tracking_uri, environment.home())  # before Prefect creates a home in a wrong folder
    environment.quiet_prefect()
    from thawline.prefect_server import used

    with used(environment.home()) as server, _watched(quiet=as_json):
        from thawline.flows.promote import promote as promote_flow
        from thawline.orchestration.server import connected

        with connected(server):
            outcome = promote_flow(
                model,
                version=version,
                data=data,
                approve=approve or None,
                tracking_uri=tracking_uri,
                shadow=shadow,
                token_file=token_file,
            )
    decision = outcome.verdict.outcome.value
    if as_json:
        print_json(outcome.as_dict())
    else:
        from thawline.cli.tables.models import verdict_table

        said = "" if outcome.is_champion else f"{model} version {outcome.version}, {decision}: "
        show(f"{said}{outcome.verdict.reason}.")
        if outcome.verdict.criteria:
            show_table(verdict_table(outcome.verdict))
        if outcome.shadowed:
            show(f"{outcome.shadowed.sentence()}.")
        if decision == "promote":
            _next_after_promotion(model)
        else:
            by_force = f"promote {model} --version {outcome.version} --force --reason TEXT"
            steps = {f"history {model}": "which version was champion, and why"}
            next_steps(steps if outcome.is_champion else {**steps, by_force: "promote it anyway"})
    if decision != "promote":
        raise typer.Exit(1)


def _watched(*, quiet: bool) -> AbstractContextManager[None]:
    """Show the phases of a flow on standard error."""
    from thawline.terminal import watch

    return watch(Console(stderr=True), quiet=quiet)


def _next_after_promotion(model: str) -> None:
    next_steps(
        {
            f"serve {model}": "answer requests over HTTP; running servers follow by themselves",
            f"history {model}": "which version was champion, and why",
            f"rollback {model}": "return to the previous champion",
        }
    )


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    to: Annotated[str | None, typer.Option(metavar="V", help="Version; default: the previous champion.")] = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Make the previous champion the champion again; servers follow within seconds."""
    from thawline.registry import roll_back
    from thawline.tracking import open_store

    before, after = roll_back(open_store(tracking_uri, environment.home()), name=model, to=to)
    say(as_json, {"model": model, "from": before, "to": after},
         f"{model}: version {after} is the champion again, in place of version {before}.")  # fmt: skip
    if not as_json:
        next_steps({f"history {model}": "which version was champion, and why"})


@app.command()
def history(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Show which version was champion when, on what evidence, and who moved the alias."""
    from thawline.registry import MlflowRegistry
    from thawline.tracking import open_store

    reigns = MlflowRegistry(open_store(tracking_uri, environment.home())).history(model)
    if as_json:
        print_json([reign.as_dict() for reign in reigns])
    else:
        from thawline.cli.tables.models import history_table

        show_table(history_table(model, reigns))
        back = {f"rollback {model}": "return to the previous champion"} if len(reigns) > 1 else {}
        next_steps({f"serve {model}": "answer requests over HTTP", **back})


@app.command()
def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on; default: this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes, each with the model in memory.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="Maximum number of items in a forward pass.")] = 32,
    max_delay: Annotated[
        float, typer.Option(metavar="MS", min=0, max=1000, help="Maximum wait of a batch for items being decoded.")
    ] = 2.0,
    max_items: Annotated[int, typer.Option(min=1, help="Maximum number of images or texts per request.")] = 256,
    max_megapixels: Annotated[
        float, typer.Option(metavar="MP", min=0.01, help="Maximum width times height, summed over a request's images.")
    ] = 200.0,
    max_body: Annotated[float, typer.Option(metavar="MB", min=0.001, help="Maximum size of a request body.")] = 32.0,
    max_bodies: Annotated[
        float, typer.Option(metavar="MB", min=0.001, help="Maximum size of all request bodies in memory.")
    ] = 128.0,
    max_waiting: Annotated[int, typer.Option(min=1, help="Maximum number of images or texts in a process.")] = 1024,
    max_connections: Annotated[int, typer.Option(min=1, help="Maximum number of connections per process.")] = 512,
    client_timeout: Annotated[
        float,
        typer.Option(metavar="S", min=0.1, help="Maximum time for a client to send a request or receive a response."),
    ] = 30.0,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Accepted host name, besides localhost, this machine's name and IP addresses; repeatable; * for any. "
            "Pages of that host may use the server.",
        ),
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option(
            metavar="challenger[:SHARE]",
            help="Send a share of the requests to the challenger too, and count in /metrics how often it agrees.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    engine: Engine = "auto",
    token_file: Annotated[
        Path | None, typer.Option(help="File with a token that clients must send as Authorization: Bearer.")
    ] = None,
    webhook_secret_file: Annotated[
        Path | None, typer.Option(help="File with the secret of an MLflow webhook, received at /webhook.")
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Serve a registered model over HTTP, and follow its alias: a new champion is served without a restart."""
    from thawline.serving import GRACE_SECONDS, ServeOptions
    from thawline.serving import serve as run_server
    from thawline.serving.shadow import parse_shadow

    options = ServeOptions(
        model=model,
        tracking_uri=tracking_uri,
        home=environment.home(),
        host=host,
        port=port,
        workers=workers,
        max_batch=max_batch,
        max_delay_ms=max_delay,
        max_items=max_items,
        max_megapixels=max_megapixels,
        max_body_mb=max_body,
        max_bodies_mb=max_bodies,
        max_waiting=max_waiting,
        max_connections=max_connections,
        client_seconds=client_timeout,
        allowed_hosts=tuple(allow_host or ()),
        shadow=None if shadow is None else parse_shadow(shadow),
        device=device,
        engine=engine,
        token_file=token_file,
        webhook_secret_file=webhook_secret_file,
    )
    stopping.allow(GRACE_SECONDS)
    run_server(options)
