"""``thawline doctor``: what must hold on this machine, and what to do where it does not."""

import importlib.metadata
import os
import platform
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.table import Table

__all__ = ["Finding", "diagnose", "findings_table"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    status: Literal["ok", "warning", "wrong"]
    detail: str
    advice: str = ""
    """What to do; empty if all is well."""

    def as_dict(self) -> dict[str, str]:
        """Plain values by name."""
        return asdict(self)


def diagnose(home: Path) -> list[Finding]:
    """Look at Python, versions, home, cache, devices, torchvision's weights cache, the starter weights and W&B."""
    return [
        _python(),
        *_versions(),
        _torchvision(),
        _home(home),
        _cache(home),
        _device(),
        _weights_cache(),
        _starter(),
        _wandb(),
    ]


def findings_table(findings: list[Finding]) -> Table:
    """The findings for the terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "what", "found", "what to do"):
        table.add_column(name, overflow="fold")
    styles = {"ok": "green", "warning": "yellow", "wrong": "red"}
    for finding in findings:
        mark = f"[{styles[finding.status]}]{finding.status}[/]"
        table.add_row(mark, finding.subject, finding.detail, finding.advice)
    return table


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _versions() -> list[Finding]:
    """Every dependency that Thawline declares, against the bounds it declares."""
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
    probe = home / ".writable"
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        return Finding("home", "wrong", f"{home}: {error.strerror}", "set THAWLINE_HOME to a folder you may write to")
    free = shutil.disk_usage(home).free / 1e9
    if free < 5:
        return Finding("home", "warning", f"{home}, {free:.1f} GB free", "caches and checkpoints want several GB")
    return Finding("home", "ok", f"{home}, {free:.0f} GB free")


def _cache(home: Path) -> Finding:
    """What decoded images and stored activations take; all of it can be made again."""
    sizes = []
    for name in ("decoded", "activations"):
        folder = home / "cache" / name
        files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
        sizes.append(f"{sum(path.stat().st_size for path in files) / 1e9:.1f} GB {name}")
    advice = "thawline clean shows what can go; --cache-budget bounds the activations"
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
    """Torchvision loads what lies in its cache without looking at it: a name that holds a hash must match it."""
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
        return Finding("starter weights", "wrong", str(error), "install Thawline again")
    return Finding("starter weights", "ok", "load")


def _wandb() -> Finding:
    """What ``tracking.wandb`` may be here; nothing of it is needed."""
    from thawline.tracking.wandb import is_logged_in

    try:
        version = importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        return Finding("W&B", "ok", "not installed", "pip install 'thawline[wandb]' to record there too")
    if is_logged_in():
        return Finding("W&B", "ok", f"{version}, logged in: tracking.wandb may be online or offline")
    advice = "run `wandb login` or set WANDB_API_KEY to record online"
    return Finding("W&B", "ok", f"{version}, not logged in: tracking.wandb may be offline", advice)
