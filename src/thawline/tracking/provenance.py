"""Provenance of a result: the code, the command, the libraries, the machine."""

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Timer

from thawline.config import without_password
from thawline.tracking._base import Tracker

__all__ = ["CHANGES_FILE", "GitState", "Provenance", "command_line", "git_state", "library_versions"]

CHANGES_FILE = "code/changes.diff"
"""Artifact of a run with its uncommitted changes."""

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
    "scipy",
    "timm",
    "transformers",
    "tokenizers",
    "onnxruntime",
    "openvino",
)
_GIT_SECONDS = 10.0
_SETTINGS = {"core.hooksPath": os.devnull, "core.fsmonitor": "false", "core.quotePath": "false"}
_VARIABLES = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1"}
"""No locks that block other git commands, no prompts, no network."""
_DIFF = (
    *("diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--no-relative", "--full-index"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--submodule=short", "--ignore-submodules=untracked"),
)
"""Independent of the user's settings, and usable with ``git apply``."""
_UNTRACKED = ("ls-files", "--others", "--exclude-standard", "--directory", "--no-empty-directory")
_DIFF_BYTES, _NAMES_BYTES = 1_000_000, 100_000
_HIDDEN = r"[\w.-]*(?:password|passwd|secret|token|credential|api[_-]?key|access[_-]?key)s?"


@dataclass(frozen=True)
class GitState:
    """The state of the working directory's checkout."""

    commit: str
    """Full hash of the checked-out commit."""
    branch: str | None
    """``None`` if no branch is checked out."""
    remote: str | None
    """URL of the remote ``origin``, else of the first one, without user and password; ``None`` without a remote."""
    dirty: bool
    """Whether a tracked file differs from the commit; untracked files do not count."""
    diff: str = field(repr=False)
    """The changes of tracked files since the commit, for ``git apply``; for binary files and submodules only the fact.
    At most a megabyte; a last line marks truncation."""
    untracked: tuple[str, ...] = field(repr=False)
    """Names of untracked, not ignored files and folders relative to the checkout, quoted by git; truncated if there are
    very many."""

    @property
    def changes(self) -> str:
        """All uncommitted changes as a text for ``git apply``; empty without changes."""
        if not self.diff and not self.untracked:
            return ""
        names = [f"# not tracked, and not kept here: {name}" for name in self.untracked]
        return "\n".join([f"# changes to {self.commit}", *names, "", self.diff])


@dataclass(frozen=True)
class Provenance:
    """Code and environment, collected once for the run of a study and passed to the runs of its trials."""

    command: str
    """The command, see :func:`command_line`."""
    program: str | None
    """Name of the script or module; ``None`` in a run of ``mlflow run``, which has already recorded it."""
    code: GitState | None
    """``None`` outside a repository; see :func:`git_state`."""

    @classmethod
    def collect(cls, folder: Path, arguments: Sequence[str], *, diff: bool = True) -> "Provenance":
        """Collect the provenance of this process.

        Args:
            folder: any folder of the code's checkout.
            arguments: the program and its arguments, such as ``sys.orig_argv``.
            diff: whether to store the changes since the commit; that there are changes is always recorded.
        """
        code = git_state(folder)
        if code is not None and not diff:
            code = replace(code, diff="", untracked=())
        program = None if "MLFLOW_RUN_ID" in os.environ else _program()
        return cls(command_line(arguments), program, code)

    @property
    def tags(self) -> dict[str, str]:
        """Version, command and commit, with MLflow's own tag names if they exist."""
        tags = {"thawline.version": importlib.metadata.version("thawline"), "thawline.command": self.command}
        if self.program is not None:
            tags |= {"mlflow.source.type": "LOCAL", "mlflow.source.name": self.program}
        if self.code is not None:
            tags |= {"mlflow.source.git.commit": self.code.commit, "thawline.git.dirty": str(self.code.dirty).lower()}
            names = {"mlflow.source.git.branch": self.code.branch, "mlflow.source.git.repoURL": self.code.remote}
            tags |= {key: value for key, value in names.items() if value is not None}
        return tags

    def record(self, tracker: Tracker) -> None:
        """Record it on a run: tags, and uncommitted changes as the file ``code/changes.diff``."""
        tracker.log_tags(self.tags)
        if self.code is not None and self.code.changes:
            tracker.log_text(self.code.changes, CHANGES_FILE)


def git_state(folder: Path, *, seconds: float = _GIT_SECONDS) -> GitState | None:
    """The checked-out commit of ``folder``, and the changes since.

    No hooks, pagers or external diff programs are run, and results that take too long are omitted.

    Args:
        folder: any folder of the checkout.
        seconds: time limit of each git command.

    Returns:
        ``None`` outside a repository, without git, without a commit, and in a repository of another user, which git
        refuses.
    """
    try:
        root = Path(os.fsdecode(_git(folder, "rev-parse", "--show-toplevel", seconds=seconds).removesuffix(b"\n")))
        commit = _text(_git(root, "rev-parse", "--verify", "HEAD", seconds=seconds))
        branch = _text(_git(root, "branch", "--show-current", seconds=seconds))
        remote = _remote(root, seconds)
        diff, whole = _beginning(root, *_DIFF, limit=_DIFF_BYTES, seconds=seconds)
        names, _ = _beginning(root, *_UNTRACKED, limit=_NAMES_BYTES, seconds=seconds)
    except (OSError, subprocess.SubprocessError):
        return None
    if not whole:
        diff += f"# cut here, at {_DIFF_BYTES:,} bytes or {seconds:g} seconds: the rest is not kept\n"
    untracked = tuple(name for name in names.split("\n") if name)
    return GitState(commit, branch or None, remote, dirty=bool(diff), diff=diff, untracked=untracked)


def command_line(arguments: Sequence[str]) -> str:
    """A command for pasting into a shell, with ``***`` for passwords, tokens and users in URLs."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        hidden = hide_next and not argument.startswith("-")
        hide_next = re.fullmatch(f"--?{_HIDDEN}", argument, re.IGNORECASE) is not None
        shown.append("***" if hidden else _without_secrets(argument))
    return shlex.join(shown)


def library_versions() -> dict[str, str]:
    """Versions of Python, the platform and all installed libraries that can affect results."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _without_secrets(argument: str) -> str:
    argument = re.sub(r"(https?://)[^/\s]*@", r"\1***@", argument)
    # Until the last @: SQLAlchemy allows slashes in passwords.
    argument = re.sub(r"(?<!http)(?<!https)(://[^/@:\s]*):\S*@", r"\1:***@", argument)
    return re.sub(rf"^((?:--?)?{_HIDDEN})=.+", r"\1=***", argument, flags=re.IGNORECASE | re.DOTALL)


def _program() -> str:
    """Name of the running script or module."""
    script = Path(sys.argv[0])
    return script.parent.name if script.name == "__main__.py" else script.name


def _remote(root: Path, seconds: float) -> str | None:
    names = _text(_git(root, "remote", seconds=seconds)).split("\n")
    name = "origin" if "origin" in names else names[0]
    url = _text(_git(root, "config", "--default", "", "--get", f"remote.{name}.url", seconds=seconds))
    if url.startswith(("http://", "https://")):
        url = re.sub(r"://[^/]*@", "://", url).partition("?")[0]  # a token may replace user and password
    return without_password(url) or None


def _command(folder: Path, *arguments: str) -> list[str]:
    settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
    return ["git", "--no-pager", *settings, "-C", str(folder), *arguments]


def _git(folder: Path, *arguments: str, seconds: float) -> bytes:
    """The output of a git command.

    Raises:
        OSError: without git.
        subprocess.SubprocessError: if it fails or takes too long.
    """
    command = _command(folder, *arguments)
    return subprocess.run(command, capture_output=True, timeout=seconds, check=True, env=os.environ | _VARIABLES).stdout


def _beginning(folder: Path, *arguments: str, limit: int, seconds: float) -> tuple[str, bool]:
    """The first lines of git's output within ``limit`` bytes and the time limit, and whether it is complete."""
    with subprocess.Popen(
        _command(folder, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | _VARIABLES,
    ) as process:
        assert process.stdout is not None  # noqa: S101  narrows the type
        clock = Timer(seconds, process.kill)
        clock.start()
        printed = process.stdout.read(limit + 1)
        clock.cancel()
        if len(printed) > limit:
            process.kill()
    if process.returncode == 0 and len(printed) <= limit:
        return printed.decode(errors="replace"), True
    lines, _, _ = printed[:limit].rpartition(b"\n")
    return (lines + b"\n").decode(errors="replace") if lines else "", False


def _text(printed: bytes) -> str:
    return printed.decode(errors="replace").strip()
