"""``thawline doctor``: checks of this machine, and how to fix what fails."""

import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from thawline.exceptions import ThawlineError

__all__ = ["Finding", "diagnose"]

_UNEXPECTED = "the check failed: fix this error, and run `thawline doctor` again"
_ANSWER_SECONDS = 5
_NO_SERVER = "start it, correct PREFECT_API_URL, or unset it: Thawline then starts one"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    subject: str
    status: Literal["ok", "warning", "wrong"]
    detail: str
    advice: str = ""
    """The fix; empty if there is no problem."""

    def as_dict(self) -> dict[str, str]:
        """Plain values by name."""
        return asdict(self)


def diagnose(home: Path) -> list[Finding]:
    """Check Python, versions, home, stores, caches, devices, torchvision, the starter weights and W&B.

    Nothing is created. A check that fails unexpectedly is also a finding.
    """
    looks: dict[str, Callable[[], Finding | Iterable[Finding]]] = {
        "Python": _python,
        "versions": _versions,
        "torchvision": _torchvision,
        "home": partial(_home, home),
        "MLflow's store": partial(_mlflow, home),
        "studies": partial(_studies, home),
        "Prefect's database": partial(_prefect, home),
        "cache": partial(_cache, home),
        "device": _device,
        "weights cache": _weights_cache,
        "starter weights": _starter,
        "W&B": _wandb,
    }
    return [finding for subject, look in looks.items() for finding in _found(subject, look)]


def _found(subject: str, look: Callable[[], Finding | Iterable[Finding]]) -> list[Finding]:
    try:
        found = look()
        return [found] if isinstance(found, Finding) else list(found)
    except ThawlineError as error:
        rule, _, advice = str(error).partition(". ")
        return [Finding(subject, "wrong", rule, advice)]
    except Exception as error:  # unexpected, but the other checks are still useful
        reason = (str(error).strip().splitlines() or [""])[0]
        return [Finding(subject, "wrong", f"{type(error).__name__}: {reason}", _UNEXPECTED)]


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _versions() -> list[Finding]:
    """Every declared dependency, against its declared bounds."""
    findings = []
    for line in importlib.metadata.requires("thawline") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(requirement.name, "wrong", "not installed", f"pip install '{requirement}'"))
            continue
        if requirement.specifier.contains(version, prereleases=True):
            findings.append(Finding(requirement.name, "ok", version))
        else:
            advice = f"pip install '{requirement}'{_why(requirement.name)}"
            findings.append(Finding(requirement.name, "wrong", f"{version}, needs {requirement.specifier}", advice))
    return findings


def _why(name: str) -> str:
    if name in {"fastapi", "sqlalchemy"}:
        return " (Prefect's server does not start, or schedules nothing, with another version)"
    return ""


def _torchvision() -> Finding:
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, RuntimeError) as error:
        advice = "torch and torchvision must come from the same index: pip install --force-reinstall torch torchvision"
        return Finding("torchvision", "wrong", str(error).splitlines()[0], advice)
    return Finding("torchvision with torch", "ok", "imports and finds its compiled operators")


def _home(home: Path) -> Finding:
    advice = "set THAWLINE_HOME to a writable folder"
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Finding("home", "wrong", f"{home}: {error.strerror}", advice)
    free = shutil.disk_usage(there).free / 1e9
    found = f"{home}, {free:.0f} GB free" if there == home else f"{home}, not created yet, {free:.0f} GB free"
    if free < 5:
        return Finding("home", "warning", found, "caches and checkpoints need several GB")
    return Finding("home", "ok", found)


def _mlflow(home: Path) -> Iterator[Finding]:
    """The store of runs and the registry, which may be two."""
    from thawline.config import without_password
    from thawline.data.contract import counted
    from thawline.registry import MlflowRegistry
    from thawline.tracking import open_store

    if not os.environ.get("MLFLOW_TRACKING_URI") and not (home / "mlflow.db").exists():
        yield Finding("MLflow's store", "ok", "none yet", "the first search creates one")
        return
    store = open_store(None, home)
    yield Finding("MLflow's store", "ok", f"{store.name} opens")
    names = MlflowRegistry(store).names()
    yield Finding("registry", "ok", f"{without_password(store.registry_uri)}: {counted(len(names), 'model')}")


def _studies(home: Path) -> Finding:
    from thawline.config import without_password
    from thawline.search.records import study_names
    from thawline.search.storage import storage_url

    url = storage_url(None)
    if url is None and not (home / "optuna.journal").exists():
        return Finding("studies", "ok", "none yet", "the first search creates one")
    where = home / "optuna.journal" if url is None else without_password(url)
    return Finding("studies", "ok", f"{where}: {len(study_names(home))}")


def _prefect(home: Path) -> Finding:
    """Check the configured server, else the database of the server that Thawline starts."""
    from thawline.config import without_password
    from thawline.databases import PREFECT, Condition

    if url := os.environ.get("PREFECT_API_URL"):
        named = without_password(url)
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=_ANSWER_SECONDS):  # noqa: S310  as set
                pass
        except urllib.error.HTTPError:
            pass  # it responds; permissions are not checked here
        except OSError as error:
            reason = getattr(error, "reason", error)
            return Finding("Prefect's server", "wrong", f"{named} does not respond: {reason}", _NO_SERVER)
        return Finding("Prefect's server", "ok", f"{named} responds")
    database = Path(os.environ.get("PREFECT_HOME") or home / "prefect") / "prefect.db"
    match PREFECT.condition(database):
        case Condition.MISSING:
            return Finding("Prefect's database", "ok", "none yet", "the first search creates one")
        case Condition.NEWER:
            raise PREFECT.newer(database)
        case Condition.FOREIGN:
            found = f"{database} cannot be read, or is not Prefect's"
            return Finding("Prefect's database", "wrong", found, "move it away; the next search creates a new one")
        case Condition.OLDER:
            return Finding("Prefect's database", "ok", f"{database}: the next search upgrades it")
    return Finding("Prefect's database", "ok", f"{database} opens")


def _cache(home: Path) -> Finding:
    """Report the size of decoded images and stored activations, all of which can be recomputed."""
    sizes = []
    for name in ("decoded", "activations"):
        folder = home / "cache" / name
        files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
        sizes.append(f"{sum(path.stat().st_size for path in files) / 1e9:.1f} GB {name}")
    advice = "thawline clean lists removable files; --cache-budget limits the activations"
    return Finding("cache", "ok", f"{home / 'cache'}: {', '.join(sizes)}", advice if (home / "cache").is_dir() else "")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("device", "ok", f"cuda: {names}")
    if torch.backends.mps.is_available():
        return Finding("device", "ok", "mps")
    return Finding("device", "ok", f"cpu, {os.cpu_count()} cores; no GPU was found")


def _weights_cache() -> Finding:
    """Verify cached weights, which torchvision does not: files with a hash in their names must match it."""
    import hashlib

    import torch

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    files = sorted(folder.glob("*.pth")) if folder.is_dir() else []
    damaged = []
    for path in files:
        match = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)
        if match and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(match.group(1)):
            damaged.append(path.name)
    if damaged:
        return Finding("weights cache", "wrong", f"{folder}: damaged: {', '.join(damaged)}", "remove these files")
    found = f"{len(files)} files of pretrained weights" if files else "empty"
    advice = "" if files else "the first search downloads them; offline, copy them there or use --weights FILE"
    return Finding("weights cache", "ok", f"{folder}: {found}", advice)


def _starter() -> Finding:
    from thawline import backbones
    from thawline.exceptions import WeightsError

    try:
        backbones.create("mobilenet_v3_small", num_classes=2, weights="starter")
    except WeightsError as error:
        return Finding("starter weights", "wrong", str(error), "reinstall Thawline")
    return Finding("starter weights", "ok", "load")


def _wandb() -> Finding:
    """Which values of ``tracking.wandb`` work here; W&B is optional."""
    from thawline.tracking.wandb import is_logged_in

    try:
        version = importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        return Finding("W&B", "ok", "not installed", "pip install 'thawline[wandb]' to also record in W&B")
    if is_logged_in():
        return Finding("W&B", "ok", f"{version}, logged in: tracking.wandb may be online or offline")
    advice = "run `wandb login` or set WANDB_API_KEY to record online"
    return Finding("W&B", "ok", f"{version}, not logged in: tracking.wandb may be offline", advice)
