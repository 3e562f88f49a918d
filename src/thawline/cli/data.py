"""Verbs about data: check and drift."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thawline import environment
from thawline.cli._app import app
from thawline.cli._shared import (
    Data,
    Json,
    Model,
    Recipe,
    SetOption,
    TrackingUri,
    next_steps,
    print_json,
    progress,
    show,
    show_table,
    typed,
)
from thawline.exceptions import ConfigError

if TYPE_CHECKING:
    from thawline.data import Manifest

__all__: list[str] = []


@app.command()
def check(
    data: Data,
    recipe: Recipe = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|STUDY|BACKBONE",
            help="List examples whose labels contradict the features of this pretrained network.",
        ),
    ] = None,
    suspects: Annotated[
        Path | None,
        typer.Option(help="CSV written by --labels, for data.exclude or data.relabel; default: suspects.csv."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Page to write: examples of each class, and problems with images."),
    ] = None,
    tracking_uri: TrackingUri = None,
    assignments: SetOption = None,
    as_json: Json = False,
) -> None:
    """Check the data without training: classes, splits, bad files, duplicates, leaks, digest, labels."""
    from thawline.api import check_data
    from thawline.config import parse_assignments
    from thawline.data import report_json

    settings = parse_assignments(assignments or [])
    given = [
        *([f"--recipe {typed(recipe)}"] if recipe else []),
        *(f"--set {typed(each)}" for each in assignments or []),
    ]
    search = " ".join([f"search {typed(data)}", *given])
    if labels is not None:
        if html is not None:
            raise ConfigError("--html and --labels cannot be combined: leave one of them out.")
        out = suspects or Path("suspects.csv")
        _check_labels(data, recipe, labels, out, settings, tracking_uri, search, as_json=as_json)
        return
    if suspects is not None or tracking_uri is not None:
        raise ConfigError("--suspects and --tracking-uri need --labels MODEL: add it, or leave them out.")
    if html is not None:  # before the data are read
        with _written(html):
            html.parent.mkdir(parents=True, exist_ok=True)
            if html.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    manifest = check_data(data, recipe=recipe, settings=settings)
    if html is not None:
        with _written(html):
            _write_sheet(manifest, html)
    if as_json:
        print_json(report_json(manifest))
    else:
        from thawline.cli.tables.data import data_report

        show_table(data_report(manifest))
        if html is not None:
            show(f"\nWrote {html}. Open it in a browser.")
        next_steps({search: "find the best fine-tuned classifier"})


def _write_sheet(manifest: "Manifest", file: Path) -> None:
    from thawline.data import write_atomically
    from thawline.reports.contact_sheet import contact_sheet

    write_atomically(file, contact_sheet(manifest).encode())


@contextmanager
def _written(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--html {file} cannot be written: {error.strerror}. Choose another file.") from error


def _check_labels(
    data: str,
    recipe: Path | None,
    network: str,
    out: Path,
    settings: Mapping[str, Any],
    tracking_uri: str | None,
    search: str,
    *,
    as_json: bool,
) -> None:
    """Check data and labels: write the suspects to a file, and show the first of them."""
    from thawline.api import check_labels
    from thawline.data import report_json
    from thawline.labels import check_suspects_file

    check_suspects_file(out)
    with progress("comparing labels with features") as on_progress:
        manifest, found = check_labels(
            data, network, recipe=recipe, settings=settings, tracking_uri=tracking_uri, on_progress=on_progress
        )
    if found.suspects:
        found.to_csv(out)
    if as_json:
        print_json(report_json(manifest) | {"labels": found.as_dict()})
        return
    from thawline.cli.tables.data import data_report
    from thawline.cli.tables.labels import label_report

    show_table(data_report(manifest))
    show_table(label_report(found))
    if found.suspects:
        written = typed(out)
        show(f"\nAll are in {written}. Review them, and remove the lines whose labels are right.")
        next_steps(
            {
                f"{search} --set data.exclude={written}": "train without the examples in the file",
                f"{search} --set data.relabel={written}": "train on them with the suggested labels",
            }
        )
    else:
        next_steps({search: "find the best fine-tuned classifier"})


@app.command()
def drift(
    model: Model,
    folder: Annotated[Path, typer.Argument(help="Folder of new images, without labels.")],
    reference: Annotated[
        Path | None,
        typer.Option(help="Folder of reference images; default: the held-out images of the model's study."),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="False-alarm rate: the maximum probability of reporting drift for similar images.")
    ] = 0.01,
    max_images: Annotated[int, typer.Option(help="Maximum number of images to compare; more are subsampled.")] = 2000,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Test whether new images resemble those that a model was trained for; exit code 1 if they do not."""
    from thawline.drift import check_drift

    with progress("comparing") as on_progress:
        report = check_drift(
            model,
            folder,
            tracking_uri=tracking_uri,
            home=environment.home(),
            reference=reference,
            alpha=alpha,
            max_images=max_images,
            device=device,
            on_progress=on_progress,
        )
    if as_json:
        print_json(report.as_dict())
    else:
        from thawline.cli.tables.drift import drift_table

        show_table(drift_table(report))
        show(str(report))
        if report.drift:
            steps = {"retrain DATA": f"improve {report.model} by a search on labelled images like these"}
        else:
            hourly = f"deploy drift --data {typed(folder)} --model {report.model} --cron '0 * * * *'"
            steps = {hourly: "check every hour"}
        next_steps(steps)
    if report.drift:
        raise typer.Exit(1)
