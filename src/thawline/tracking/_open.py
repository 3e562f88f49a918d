"""Open the trackers of a run: MLflow, configured ones, and those of other packages."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import entry_points

from thawline.config import TrackingConfig
from thawline.exceptions import ConfigError
from thawline.tracking._background import BackgroundTracker
from thawline.tracking._base import CompositeTracker, Tracker, TrackerRun
from thawline.tracking._errors import first_line
from thawline.tracking.csv import CsvTracker
from thawline.tracking.mlflow import MlflowStore, MlflowTracker
from thawline.tracking.tensorboard import TensorBoardTracker
from thawline.tracking.wandb import WandbTracker

__all__ = ["TRACKERS", "check_trackers", "open_trackers"]

TRACKERS = "thawline.trackers"
"""Group of entry points for trackers: a name, and a function from a :class:`TrackerRun` to a :class:`Tracker`."""

TrackerFactory = Callable[[TrackerRun], Tracker]


def check_trackers(config: TrackingConfig) -> None:
    """Refuse plugins that are not installed or cannot be imported.

    Raises:
        ConfigError: with the installed ones.
    """
    installed = sorted({point.name for point in entry_points(group=TRACKERS)})
    if unknown := [name for name in config.plugins if name not in installed]:
        raise ConfigError(
            f"tracking.plugins names {', '.join(map(repr, unknown))}, but no installed package has such a tracker; "
            f"available: {', '.join(installed) or 'none'}. Correct the name, or install the package whose entry points "
            f"in the group {TRACKERS} name it."
        )
    for name in config.plugins:
        try:
            _factory(name)
        except Exception as error:
            raise ConfigError(
                f"The tracker {name!r} of tracking.plugins cannot be imported: {first_line(error)}. Repair its "
                "package, or remove it from tracking.plugins."
            ) from error


def open_trackers(
    run: TrackerRun, config: TrackingConfig, store: MlflowStore
) -> tuple[MlflowTracker, CompositeTracker]:
    """MLflow's tracker of a run, and all trackers combined, including MLflow's.

    Each has its own thread, so that one that fails, hangs or is slow does not affect the others. System metrics are
    only recorded for trials, because the study's own process only waits.
    """
    if run.trial is None:
        mlflow = MlflowTracker.for_study(store, run_id=run.study_run_id, study=run.study)
    else:
        mlflow = MlflowTracker.for_trial(
            store,
            parent_run_id=run.study_run_id,
            study=run.study,
            number=run.trial,
            run_name=run.run_name,
            system_metrics=config.system_metrics,
        )
    # The table is written to the disk of the checkpoints, and fast: it needs no thread, and is complete when the trial
    # ends. A study has no epochs.
    table = [CsvTracker.for_run(run)] if run.trial is not None else []
    others = [BackgroundTracker(partial(make, run), name=name) for name, make in _factories(run, config)]
    return mlflow, CompositeTracker([*table, mlflow, *others])


def _factories(run: TrackerRun, config: TrackingConfig) -> Iterator[tuple[str, TrackerFactory]]:
    """Names and factories of trackers that may be slow, except MLflow's."""
    if config.tensorboard:
        yield "TensorBoard", TensorBoardTracker.for_run
    if config.wandb != "off":
        yield "W&B", partial(WandbTracker.for_run, config=config)
    for name in config.plugins:
        yield name, partial(_plugin, name)


def _plugin(name: str, run: TrackerRun) -> Tracker:
    return _factory(name)(run)


def _factory(name: str) -> TrackerFactory:
    points = tuple(entry_points(group=TRACKERS, name=name))
    if not points:
        raise LookupError("no package installed here has such a tracker")
    factory: TrackerFactory = points[0].load()
    return factory
