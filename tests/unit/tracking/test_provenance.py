"""What ran is on every run: the commit, what differs from it, and the command; and no password with it."""

import os
import pickle
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from thawline.tracking.provenance import GitState, Provenance, command_line, git_state

Git = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    return folder


@pytest.fixture
def git(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """Runs git in ``folder``, which is a repository with one commit; no settings of this machine count."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def run(*arguments: str, check: bool = True) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "protocol.file.allow=always"]
        command = ["git", "-C", str(folder), *identity, *arguments]
        return subprocess.run(command, check=check, capture_output=True, text=True).stdout

    run("init", "--initial-branch=main")
    (folder / "train.py").write_text("rate = 1\n")
    (folder / "weights.bin").write_bytes(bytes(range(256)))
    run("add", ".")
    run("commit", "--message=first")
    return run


def state_of(folder: Path) -> GitState:
    state = git_state(folder)
    assert state is not None
    return state


def test_a_clean_checkout_has_a_commit_and_a_branch_and_no_changes(folder: Path, git: Git) -> None:
    state = state_of(folder)
    assert state == GitState(git("rev-parse", "HEAD").strip(), "main", None, dirty=False, diff="", untracked=())
    assert state.changes == ""


def test_the_changes_make_the_checkout_that_ran_out_of_its_commit(folder: Path, git: Git) -> None:
    (folder / "train.py").write_text("rate = 2\n")
    (folder / "staged.py").write_text("new\n")
    git("add", "staged.py")
    (folder / "notes.txt").write_text("secret")
    state = state_of(folder)
    assert state.dirty
    assert "-rate = 1\n+rate = 2\n" in state.diff
    assert "# not tracked, and not kept here: notes.txt\n" in state.changes
    assert "secret" not in state.changes

    git("reset", "--hard")
    assert not (folder / "staged.py").exists()
    (folder.parent / "changes.diff").write_text(state.changes)
    git("apply", "../changes.diff")
    assert (folder / "train.py").read_text() == "rate = 2\n"
    assert (folder / "staged.py").read_text() == "new\n"


def test_all_of_the_checkout_counts_wherever_in_it_one_is(folder: Path, git: Git) -> None:
    (folder / "deep").mkdir()
    (folder / "train.py").write_text("rate = 2\n")
    (folder / "notes.txt").write_text("")
    state = state_of(folder / "deep")
    assert "rate = 2" in state.diff
    assert state.untracked == ("notes.txt",)


def test_the_settings_of_the_user_change_nothing_and_none_of_their_programs_runs(
    folder: Path, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = folder.parent / "program"
    program.write_text(f"#!/bin/sh\necho ran >> {folder.parent}/log\nexec cat\n")
    program.chmod(0o755)
    hooks = folder / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    (folder / ".gitattributes").write_text("*.py diff=mine\n")
    git("add", ".")
    git("commit", "--message=attributes")
    for name in ("post-index-change", "fsmonitor-watchman"):
        (hooks / name).symlink_to(program)
    for key in ("core.pager", "pager.diff", "diff.external", "diff.mine.textconv", "diff.mine.command"):
        git("config", key, str(program))
    git("config", "core.fsmonitor", str(program))
    for key, value in (("color.ui", "always"), ("diff.noprefix", "true"), ("diff.mnemonicPrefix", "true")):
        git("config", key, value)
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", str(program))
    monkeypatch.setenv("GIT_PAGER", str(program))
    (folder / "train.py").write_text("rate = 2\n")
    os.utime(folder / "weights.bin", (1, 1))  # same content: git would note that in its index, and tell the hook

    diff = state_of(folder).diff
    assert diff.startswith("diff --git a/train.py b/train.py\n")
    assert "weights.bin" not in diff
    assert not (folder.parent / "log").exists()
    git("status")
    assert (folder.parent / "log").exists(), "the control: these programs do run otherwise"


def test_a_binary_file_is_named_and_its_content_left_out(folder: Path, git: Git) -> None:
    (folder / "weights.bin").write_bytes(bytes(range(255, -1, -1)) * 1000)
    diff = state_of(folder).diff
    assert "Binary files a/weights.bin and b/weights.bin differ" in diff
    assert len(diff) < 500


def test_of_a_very_large_difference_the_first_whole_lines_are_kept_and_it_says_so(folder: Path, git: Git) -> None:
    (folder / "train.py").write_text("".join(f"line {i} ä\n" for i in range(200_000)))
    diff = state_of(folder).diff
    assert 990_000 < len(diff.encode()) < 1_000_200
    *_, before, last = diff.splitlines()
    assert last == "# cut here, at 1,000,000 bytes or 10 seconds: the rest is not kept"
    assert before.startswith("+line ")
    assert before.endswith(" ä")


def test_a_git_that_takes_too_long_is_ended(folder: Path, git: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "train.py").write_text("rate = 2\n")
    real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
    slow = folder.parent / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\ncase "$*" in *"diff HEAD"*) exec sleep 600;; esac\nexec {real} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}{os.pathsep}{os.environ['PATH']}")
    state = git_state(folder, seconds=1.0)
    assert state is not None
    assert state.dirty
    assert state.diff.startswith("# cut here")


def test_in_the_middle_of_a_merge_the_conflict_is_shown(folder: Path, git: Git) -> None:
    git("checkout", "-b", "other")
    (folder / "train.py").write_text("rate = 3\n")
    git("commit", "--all", "--message=three")
    git("checkout", "main")
    (folder / "train.py").write_text("rate = 2\n")
    git("commit", "--all", "--message=two")
    git("merge", "other", check=False)
    state = state_of(folder)
    assert state.branch == "main"
    assert state.dirty
    assert "+<<<<<<< HEAD" in state.diff


def test_a_changed_submodule_is_shown_by_its_commit_and_a_dirty_one_as_dirty(folder: Path, git: Git) -> None:
    library = folder.parent / "library"
    subprocess.run(["git", "clone", "--quiet", folder, library], check=True)
    git("submodule", "add", str(library), "library")
    git("commit", "--message=library")
    (folder / "library" / "notes.txt").write_text("")
    assert not state_of(folder).dirty
    (folder / "library" / "train.py").write_text("rate = 5\n")
    assert "-dirty" in state_of(folder).diff


def test_names_of_any_kind_are_one_readable_line_each(folder: Path, git: Git) -> None:
    for name in ("ä b.txt", 'quote".txt', "two\nlines.txt"):
        (folder / name).write_text("")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "1.png").write_text("")
    assert set(state_of(folder).untracked) == {"ä b.txt", '"quote\\".txt"', '"two\\nlines.txt"', "pictures/"}


def test_a_text_in_another_encoding_is_no_error(folder: Path, git: Git) -> None:
    (folder / "train.py").write_bytes(b"caf\xe9\n")
    assert "+caf�" in state_of(folder).diff


def test_without_a_branch_there_is_none(folder: Path, git: Git) -> None:
    git("checkout", "--detach")
    assert state_of(folder).branch is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:hush@example.org/a/b.git", "https://example.org/a/b.git"),
        ("https://hush@example.org/a/b.git", "https://example.org/a/b.git"),
        ("https://example.org/a/b.git?access_token=hush", "https://example.org/a/b.git"),
        ("ssh://git:hush@example.org/a/b.git", "ssh://git:***@example.org/a/b.git"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
    ],
)
def test_the_address_of_the_remote_holds_no_password(url: str, shown: str, folder: Path, git: Git) -> None:
    git("remote", "add", "fork", "https://example.org/fork.git")
    assert state_of(folder).remote == "https://example.org/fork.git"
    git("remote", "add", "origin", url)
    assert state_of(folder).remote == shown


def test_a_repository_of_another_user_is_not_opened(folder: Path, git: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert git_state(folder) is None


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["thawline", "search", "my photos", "--study", "it's"], """thawline search 'my photos' --study 'it'"'"'s'"""),
        (
            ["thawline", "search", "x", "--set", "study.storage=postgresql://me:hush@db/thawline"],
            "thawline search x --set 'study.storage=postgresql://me:***@db/thawline'",
        ),
        (["x", "postgresql://me:hu/s@h@db/thawline"], "x 'postgresql://me:***@db/thawline'"),
        (["x", "--tracking-uri", "https://me:hush@mlflow:5000"], "x --tracking-uri 'https://***@mlflow:5000'"),
        (["x", "--tracking-uri=https://hush@mlflow:5000"], "x '--tracking-uri=https://***@mlflow:5000'"),
        (["x", "http://host:5000/a@b", "s3://bucket/a:b"], "x http://host:5000/a@b s3://bucket/a:b"),
        (["x", "--api-key", "hush", "y"], "x --api-key '***' y"),
        (["x", "--db-password=hush\nhush", "MY_TOKEN=hush"], "x '--db-password=***' 'MY_TOKEN=***'"),
        (["x", "--token", "--verbose", "y"], "x --token --verbose y"),
        (["x", "--token-file", "secret.txt"], "x --token-file secret.txt"),
    ],
)
def test_the_command_can_be_pasted_and_holds_no_password(arguments: list[str], command: str) -> None:
    assert command_line(arguments) == command
    assert len(shlex.split(command)) == len(arguments)


class Run:
    """What a tracker was told."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.files: dict[str, str] = {}

    def log_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def log_text(self, text: str, file: str) -> None:
        self.files[file] = text


def recorded(ran: Provenance) -> Run:
    run = Run()
    pickle.loads(pickle.dumps(ran)).record(run)  # noqa: S301  as a trial's process is handed it
    return run


def test_commit_command_and_changes_are_on_a_run(folder: Path, git: Git) -> None:
    git("remote", "add", "origin", "https://example.org/a.git")
    (folder / "train.py").write_text("rate = 2\n")
    run = recorded(Provenance.collect(folder, ["thawline", "search", "my photos"]))
    assert run.tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD").strip()
    assert run.tags["mlflow.source.git.branch"] == "main"
    assert run.tags["mlflow.source.git.repoURL"] == "https://example.org/a.git"
    assert run.tags["thawline.git.dirty"] == "true"
    assert run.tags["thawline.command"] == "thawline search 'my photos'"
    assert run.tags["mlflow.source.type"] == "LOCAL"
    assert "+rate = 2" in run.files["code/changes.diff"]


def test_the_changes_can_be_left_out(folder: Path, git: Git) -> None:
    (folder / "train.py").write_text("rate = 2\n")
    run = recorded(Provenance.collect(folder, ["thawline"], diff=False))
    assert run.files == {}
    assert run.tags["thawline.git.dirty"] == "true"


def test_outside_a_repository_there_is_the_command_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0")  # of `mlflow run`, which says itself what the source is
    run = recorded(Provenance.collect(tmp_path, ["thawline", "demo"]))
    assert set(run.tags) == {"thawline.version", "thawline.command"}
    assert run.files == {}
