"""Execution of a search's trials: in processes on this machine, or on a cluster, by Prefect's task runners."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from thawline.config import ExecutionConfig, SearchConfig
from thawline.data.contract import counted
from thawline.exceptions import ConfigError
from thawline.orchestration.variables import places_and_credentials
from thawline.processes import main_module_hidden
from thawline.search import Slots
from thawline.search.events import Note, emit

__all__ = ["placement", "trial_runner"]

_CONNECT_SECONDS = 15.0
"""Maximum time for a Dask cluster to respond; less if Dask's own timeout is shorter."""


@contextmanager
def trial_runner(config: SearchConfig) -> Iterator[TaskRunner[Any]]:
    """The task runner for a search's trials, open within the block.

    Raises:
        ConfigError: if the cluster does not respond.
    """
    try:
        runner = _runner(config.execution, Slots(config).count)
        with main_module_hidden():  # Dask's workers are processes
            runner.__enter__()
    except (ConnectionError, OSError, TimeoutError) as error:
        reason = (str(error) or "no response in time").splitlines()[0]
        raise ConfigError(
            f"execution.address={config.execution.address} does not respond: {reason}. Start the cluster, or correct "
            "the address."
        ) from None
    try:
        if config.execution.kind == "ray":
            _warn_of_idle_gpus(config.execution)
        yield runner
    finally:
        runner.__exit__(None, None, None)


def _warn_of_idle_gpus(config: ExecutionConfig) -> None:
    """Warn of unused GPUs: Ray hides them from tasks that request none, so that trials would run on CPUs."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    if gpus and not config.gpus:
        emit(
            Note(
                f"the Ray cluster has {counted(int(gpus), 'GPU')}, but execution.gpus is 0: all trials run on CPUs. "
                "Set execution.gpus=1, or 0.5 for two trials on each.",
                "warning",
            )
        )


def placement(config: ExecutionConfig) -> Any:
    """Context that requests a submitted trial's resources on a cluster."""
    if config.kind != "ray":
        return nullcontext()
    from prefect_ray.context import remote_options

    # A trial dies with its node; Ray restarts it on another, where it resumes from its checkpoint.
    return remote_options(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=3)


def _runner(config: ExecutionConfig, slots: int) -> TaskRunner[Any]:
    if config.kind == "ray":
        return _ray(config)
    if config.kind == "dask":
        return _dask(config, slots)
    # Threads that wait for processes; the search's slots limit the parallelism, not the number of threads.
    return ThreadPoolTaskRunner(max_workers=256)


def _ray(config: ExecutionConfig) -> TaskRunner[Any]:
    from prefect_ray import RayTaskRunner

    options: dict[str, Any] = {
        "runtime_env": {"env_vars": places_and_credentials()},
        "log_to_driver": False,  # keep the workers' output out of the command's
        "logging_level": "warning",
        "configure_logging": True,
    }
    if config.address is None:
        options["include_dashboard"] = False
    elif config.address == "auto":
        options["address"] = "auto"
    runner: TaskRunner[Any] = RayTaskRunner(None if config.address == "auto" else config.address, options)
    return runner


def _dask(config: ExecutionConfig, slots: int) -> TaskRunner[Any]:
    import dask
    from dask.system import CPU_COUNT
    from dask.utils import parse_timedelta
    from distributed import Client
    from prefect_dask.task_runners import DaskTaskRunner

    if config.address is not None:  # the runner itself would fail only at the first trial
        seconds = min(_CONNECT_SECONDS, parse_timedelta(dask.config.get("distributed.comm.timeouts.connect")))
        Client(config.address, timeout=seconds, set_as_default=False).close()  # type: ignore[no-untyped-call]
    # Processes with one thread each: a trial sets the number of threads for its whole process. With one process per
    # core, some would load torch and never get a trial.
    workers = min(CPU_COUNT, slots)
    local = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    runner: TaskRunner[Any] = DaskTaskRunner(address=config.address, cluster_kwargs=None if config.address else local)
    return runner
