"""Files are written whole or not at all, and for whom the umask says."""

import os
import stat
from pathlib import Path

import pytest

from thawline.data import write_atomically


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_file_is_for_whom_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "new" / "plan.json"
    before = os.umask(umask)
    try:
        write_atomically(path, b"{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"{}"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    write_atomically(path, b"old")

    def full(handle: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
    assert path.read_bytes() == b"old"
