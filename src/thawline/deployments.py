"""The flows as Prefect deployments: on a schedule, in this process or in a work pool.

A deployment refers to its flow by module, not by file, so that it needs the installed package but no checkout.
"""

import asyncio
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.schedules import Cron, Schedule
from prefect.settings import PREFECT_LOGGING_EXTRA_LOGGERS, temporary_settings
from prefect.types.entrypoint import EntrypointType
from prefect.workers.process import ProcessWorker
from pydantic import TypeAdapter, ValidationError

from thawline import environment, stopping
from thawline.config import PlainName, SearchConfig, without_password
from thawline.exceptions import ConfigError
from thawline.flows.drift import drift
from thawline.flows.retrain import retrain
from thawline.flows.score import score
from thawline.flows.search import search
from thawline.orchestration.notifications import check_blocks
from thawline.orchestration.variables import places
from thawline.registry import parse_model
from thawline.search import check_config
from thawline.search.retraining import model_of

__all__ = ["at", "deploy", "of_drift", "of_score", "of_search", "serve"]

_LOGGERS = "thawline"
"""Logger whose records Prefect's UI shows beside its own."""
_LEASES = "prefect.server.concurrency.lease_storage"


def at(cron: str | None, timezone: str | None) -> Schedule | None:
    """The schedule of a deployment; ``None`` without ``cron``.

    Args:
        cron: minute, hour, day, month and weekday.
        timezone: such as ``Europe/Berlin``; by default UTC.

    Raises:
        ConfigError: naming the option and its valid values.
    """
    if cron is None:
        if timezone is not None:
            raise ConfigError("--timezone needs --cron.")
        return None
    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        if error.errors()[0]["loc"] == ("cron",):
            raise ConfigError(
                "--cron takes minute, hour, day, month and weekday, such as '0 3 * * *' for 3 a.m. every day, but got "
                f"{cron!r}."
            ) from None
        raise ConfigError(f"--timezone takes a name such as Europe/Berlin, but got {timezone!r}.") from None
    return Cron(cron, timezone=timezone or "UTC")


def of_search(
    kind: Literal["search", "retrain"],
    config: SearchConfig,
    *,
    name: str | None = None,
    schedule: Schedule | None = None,
    on_drift: bool = False,
) -> RunnerDeployment:
    """A deployment of the flow ``search`` or ``retrain``.

    Args:
        kind: kind of the flow.
        config: its parameter; paths become absolute.
        name: name of the deployment; by default that of the model.
        schedule: result of :func:`at`; by default, it runs only on request.
        on_drift: also run when drift is detected for the model.

    Raises:
        ConfigError: if a check that is possible now fails.
    """
    config = _absolute(config)
    if config.without_passwords() != config:
        raise ConfigError(
            "tracking.uri or study.storage contains a password, but the parameters of a deployment are visible in "
            "Prefect's UI. Leave it out, and set MLFLOW_TRACKING_URI or THAWLINE_STORAGE on the machine of the runs."
        )
    check_config(config, environment.home())
    check_blocks(config.retrain)
    model = model_of(config)
    drift = DeploymentEventTrigger(
        name=f"{model} drifts",
        expect={"thawline.drift.detected"},
        match={"prefect.resource.id": f"thawline.model.{model}"},
    )
    return _deployment(
        retrain if kind == "retrain" else search,
        {"config": config.model_dump(mode="json", exclude_defaults=True)},
        name=name or model,
        schedule=schedule,
        triggers=[drift] if on_drift else [],
    )


def of_score(
    model: str, source: Path, out: Path, *, name: str | None = None, schedule: Schedule | None = None
) -> RunnerDeployment:
    """A deployment of the flow ``score``: every run scores all files with the champion at that time.

    Args:
        model: ``NAME``, ``NAME@alias`` or ``NAME/version``.
        source: a folder of images, a file that lists image paths, or for a text model a table or .txt of texts.
        out: the Parquet file to write.
        name: name of the deployment; by default that of the model.
        schedule: result of :func:`at`; by default, it runs only on request.

    Raises:
        RegistryError: if the model's name is invalid.
        ConfigError: if another check that is possible now fails.
    """
    named = parse_model(model).name
    if out.suffix != ".parquet":
        raise ConfigError(f"--out must be a .parquet file, but got {out}.")
    parameters = {"model": model, "source": str(_full(source)), "out": str(_full(out))}
    return _deployment(score, parameters, name=name or named, schedule=schedule)


def of_drift(
    model: str, folder: Path, *, name: str | None = None, schedule: Schedule | None = None
) -> RunnerDeployment:
    """A deployment of the flow ``drift``: every run compares the folder with the champion's held-out images.

    Args:
        model: ``NAME``, ``NAME@alias`` or ``NAME/version``.
        folder: folder of images.
        name: name of the deployment; by default that of the model.
        schedule: result of :func:`at`; by default, it runs only on request.

    Raises:
        RegistryError: if the model's name is invalid.
        ConfigError: if another check that is possible now fails.
    """
    named = parse_model(model).name
    parameters = {"model": model, "folder": str(_full(folder))}
    return _deployment(drift, parameters, name=name or named, schedule=schedule)


def deploy(deployment: RunnerDeployment, pool: str, *, managed: bool) -> list[str]:
    """Deploy to a process work pool, which is created if it is new; returns sentences with hints.

    Args:
        deployment: from one of the functions above.
        pool: name of the work pool.
        managed: whether the server is Thawline's own, which stops when it is not in use.

    Raises:
        ConfigError: if the pool is of another type, or its name is invalid.
    """
    _check_name("--pool", pool)
    deployment.work_pool_name = pool
    deployment.job_variables = {"env": _environment()}
    with get_client(sync_client=True) as client:
        _make_pool(client, pool)
        notes = [*_leases_note(client), *_secrets_note()]
    deployment.apply()
    return [
        f"Deployed {deployment.full_name} to the work pool {pool}.",
        f"A worker runs it: {f'thawline up --worker {pool}' if managed else f'prefect worker start --pool {pool}'}",
        f"Run it now: prefect deployment run {deployment.full_name}",
        *notes,
    ]


def serve(deployment: RunnerDeployment) -> None:
    """Serve a deployment from this process, one run at a time, until Ctrl-C.

    The schedule stays when this process ends; when it restarts, one of the missed runs is started.

    Raises:
        KeyboardInterrupt: on Ctrl-C and SIGTERM, after the run has ended.
    """
    with temporary_settings({PREFECT_LOGGING_EXTRA_LOGGERS: _LOGGERS}):  # inherited by the processes of its runs
        asyncio.run(_serve(deployment))


async def _serve(deployment: RunnerDeployment) -> None:
    """Like ``prefect.serve``, except that SIGTERM and Ctrl-C end the current run and mark it as cancelled.

    Prefect's own leaves it RUNNING forever, with its concurrency slots taken.
    """
    runner = Runner(pause_on_shutdown=False, limit=1)
    await runner.aadd_deployment(deployment)
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    serving = loop.create_task(runner.start())
    await asyncio.sleep(0)  # let the runner set its own handler first

    def stop_serving(number: int) -> None:
        stopping.hear(number)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_serving, number)
    stop = loop.create_task(stopped.wait())
    await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
    if stopped.is_set():
        await runner.astop()
    await serving
    if stopped.is_set():
        raise KeyboardInterrupt


def _deployment(
    flow: Flow[..., Any],
    parameters: Mapping[str, Any],
    *,
    name: str,
    schedule: Schedule | None,
    triggers: Sequence[DeploymentEventTrigger] = (),
) -> RunnerDeployment:
    _check_name("--name", name)
    return RunnerDeployment.from_flow(
        flow,
        name=name,
        parameters=dict(parameters),
        schedule=schedule,
        triggers=list(triggers),
        # A run that is due during another is skipped, not queued.
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        tags=["thawline"],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def _check_name(option: str, name: str) -> None:
    try:
        TypeAdapter(PlainName).validate_python(name)
    except ValidationError as error:
        raise ConfigError(f"{option} {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from None


def _absolute(config: SearchConfig) -> SearchConfig:
    """The same configuration with absolute paths."""
    further = tuple(_full(folder) for folder in config.promotion.further)
    update = {
        "data": config.data.model_copy(update={"path": _full(config.data.path)}),
        "promotion": config.promotion.model_copy(update={"further": further}),
        "tracking": config.tracking.model_copy(update={"uri": _full_database(config.tracking.uri)}),
        "study": config.study.model_copy(update={"storage": _full_database(config.study.storage)}),
        "backbone": config.backbone.model_copy(
            update={"name": _full_name(config.backbone.name), "weights": _full_weights(config.backbone.weights)}
        ),
    }
    if config.space.backbone is not None:
        choices = {_full_name(name): depths for name, depths in config.space.backbone.items()}
        update["space"] = config.space.model_copy(update={"backbone": choices})
    return config.model_copy(update=update)


def _full_name(backbone: str) -> str:
    """A Hugging Face model's folder may be named from the working directory; a hub's id is not a folder."""
    folder = Path(backbone.removeprefix("hf:")).expanduser()
    return f"hf:{_full(folder)}" if backbone.startswith("hf:") and folder.is_dir() else backbone


def _full_weights(weights: str | dict[str, str]) -> str | dict[str, str]:
    if isinstance(weights, str):
        return weights if weights in {"default", "starter", "none"} else str(_full(Path(weights)))
    return {_full_name(name): str(_full_weights(each)) for name, each in weights.items()}


def _full(path: Path) -> Path:
    return path.expanduser().absolute()


def _full_database(uri: str | None) -> str | None:
    """``sqlite:///runs.db`` is a file in the working directory, ``sqlite:////srv/runs.db`` is not."""
    return uri and re.sub(r"^(sqlite[^:]*):///(?!/)(?=.)", rf"\1:///{Path.cwd()}/", uri)


def _environment() -> dict[str, str]:
    """Environment variables with which a worker uses the same home, store and weights.

    Secrets are left out, because the variables are visible in Prefect's UI.
    """
    shown = {name: str(_full_database(value)) for name, value in places().items() if without_password(value) == value}
    return {**shown, "THAWLINE_HOME": str(environment.home()), PREFECT_LOGGING_EXTRA_LOGGERS.name: _LOGGERS}


def _secrets_note() -> list[str]:
    secret = [name for name, value in places().items() if without_password(value) != value]
    return [f"{name} contains a password and was not passed on: set it where the worker runs." for name in secret]


def _leases_note(client: SyncPrefectClient) -> list[str]:
    """Warn of a server with leases in memory: a restart loses them, and their slots stay taken."""
    storage = client.request("GET", "/admin/settings").json()["server"]["concurrency"]["lease_storage"]
    if storage != f"{_LEASES}.memory":
        return []
    return [
        "If this Prefect server restarts during a run, it considers the run unfinished and cancels all later ones: "
        f"start it with PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE={_LEASES}.filesystem"
    ]


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        kind = client.read_work_pool(name).type
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        return
    if kind != "process":
        raise ConfigError(
            f"The work pool {name!r} is of type {kind}, but these deployments need a process pool with Thawline "
            "installed on its workers: choose another --pool, or write a prefect.yaml."
        )
