"""The home, and environment variables of libraries that must be set before their import.

This module imports none of those libraries.
"""

import getpass
import logging
import os
from pathlib import Path

from thawline.exceptions import ConfigError
from thawline.prefect_profile import named_server

__all__ = ["home", "no_home", "prepare", "prepare_flows", "quiet_prefect"]

# Prefect reads DO_NOT_TRACK, and MLflow requires the value "true"; the other variables make the choice explicit.
_SWITCHES = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # If a flow is called from Python without Thawline's own server, Prefect starts one, and the first start migrates
    # its database; the default of 20 s is too short on a busy laptop.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # Training must not wait minutes for a tracking server that is down: the tracker buffers and retries itself.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # MLflow would print "View run …" to standard output, which must be JSON with `--json`, and progress bars.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    # W&B would print on the terminal, and report its own errors to its server.
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
}

_PREFECT_DATABASE = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
"""Variables for a database other than ``PREFECT_HOME/prefect.db``."""
_PREFECT_DRIVER = "aiosqlite"


def home() -> Path:
    """The folder with all of Thawline's state: ``THAWLINE_HOME``, else ``.thawline`` in the working directory.

    Raises:
        ConfigError: if it is below ``~``, but the user has no home directory.
    """
    named = Path(os.environ.get("THAWLINE_HOME") or ".thawline")
    try:
        return named.expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"THAWLINE_HOME is {named}, but {error} Set it to an absolute path.") from None


def no_home(root: Path) -> str:
    """The message if ``root`` is not a home, with the nearest home in a parent folder.

    Commands that only read print this message instead of creating a home.
    """
    here = Path.cwd()
    homes = (folder / ".thawline" for folder in (here, *here.parents))
    nearest = next((found for found in homes if found.is_dir() and found != root), None)
    if nearest is not None:
        advice = f"The nearest is {nearest}: change to {nearest.parent}, or set THAWLINE_HOME={nearest}."
    else:
        advice = (
            "Change to the folder where `thawline search` was run, or set THAWLINE_HOME to the home that it created; "
            "`thawline search DATA` creates one here."
        )
    return f"No Thawline home here: {root} does not exist. {advice}"


def prepare() -> Path:
    """Set the libraries' environment variables, unless the user has set them, and return :func:`home`.

    Must run before MLflow or Prefect is imported: both read their environment on import. No telemetry leaves the
    machine, and Prefect's database is in :func:`home`, unless ``PREFECT_HOME`` is set, or ``PREFECT_API_URL`` or a
    Prefect profile names a server.
    """
    root = home()
    _introduce_user(root)
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # by default in the user's own folders
        os.environ.setdefault(name, str(root / "wandb"))
    if named_server() is None:
        os.environ.setdefault("PREFECT_HOME", str(root / "prefect"))
        if "?" in os.environ["PREFECT_HOME"]:  # Prefect would parse the rest as options
            from thawline.databases import sqlite_url

            url = sqlite_url(Path(os.environ["PREFECT_HOME"]) / "prefect.db", _PREFECT_DRIVER)
            os.environ.setdefault(_PREFECT_DATABASE[0], url)
    return root


def _introduce_user(root: Path) -> None:
    """Give a user unknown to the system, such as a numeric user in a container, a name and a home directory.

    PyTorch, MLflow, Prefect, matplotlib and W&B need them, and fail or write into a folder called ``~``.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(root / "user")
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"


def prepare_flows() -> Path:
    """Run :func:`prepare`, and create Prefect's folder and database, unless a server or another database is configured.

    Raises:
        ConfigError: if the folder cannot be created.
        DatabaseError: if the database was created by a newer version of Prefect, or cannot be created.
    """
    root = prepare()
    folder = Path(os.environ.get("PREFECT_HOME", root))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"Cannot create the folder {folder}: {error.strerror}. Set THAWLINE_HOME to a writable folder."
        ) from None
    from thawline.databases import prefect_database, sqlite_url

    own = sqlite_url(folder / "prefect.db", _PREFECT_DRIVER)
    named = {os.environ.get(name) or own for name in _PREFECT_DATABASE}
    if not os.environ.get("PREFECT_API_URL") and named == {own}:
        prefect_database(folder, home=root)
    # Prefect's UI shows the records of the loggers in PREFECT_LOGGING_EXTRA_LOGGERS, at their own levels.
    logging.getLogger("thawline").setLevel(logging.INFO)
    return root


def quiet_prefect() -> None:
    """Keep Prefect's own log off the terminal, where the search shows its progress; Prefect's UI still shows it.

    Must run before Prefect is imported.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "thawline")
    # Messages before the start and after the end of a flow are only for the terminal.
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
