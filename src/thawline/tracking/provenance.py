"""Where a result came from: the commit, the libraries, the machine."""

import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GitState", "git_state", "library_versions"]

_LIBRARIES = (
    "thawline",
    "torch",
    "torchvision",
    "mlflow",
    "optuna",
    "prefect",
    "numpy",
    "pandas",
    "pillow",
    "scikit-learn",
    "safetensors",
)


@dataclass(frozen=True)
class GitState:
    """The checkout that the working directory belongs to."""

    commit: str
    """Full hash of the commit that is checked out."""
    dirty: bool
    """True if a tracked file differs from it; files that git does not track do not count."""


def git_state(folder: Path) -> GitState | None:
    """The commit checked out in ``folder``, or ``None`` outside a repository, without git, or without a commit."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "--verify", "HEAD")
        return GitState(commit, dirty=bool(git("status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError):
        return None


def library_versions() -> dict[str, str]:
    """Versions of Python, of the platform and of every library that can change a result; absent ones are left out."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
