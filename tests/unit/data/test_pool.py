"""A decoder that crashes takes down one file."""

import math
import operator
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from thawline.config import DataConfig
from thawline.data import folder, scan
from thawline.data._pool import map_files


def test_results_keep_their_order_and_progress_ends_at_all() -> None:
    seen: list[tuple[int, int]] = []

    results = map_files(
        math.sqrt,
        [float(number**2) for number in range(300)],
        workers=2,
        crashed=lambda item: -1.0,
        on_progress=lambda done, total: seen.append((done, total)),
    )

    assert results == list(range(300))
    assert seen == sorted(seen)
    assert seen[-1] == (300, 300)


def test_only_the_item_that_kills_its_process_is_given_up() -> None:
    items: list[Callable[[], float]] = [partial(math.sqrt, number) for number in range(40)]
    items[7] = partial(os._exit, 3)
    items[20] = os.abort

    results = map_files(operator.call, items, workers=1, crashed=lambda item: -1.0)

    assert [index for index, value in enumerate(results) if value == -1.0] == [7, 20]
    assert results[39] == math.sqrt(39)


def test_an_exception_of_the_function_is_raised_here() -> None:
    with pytest.raises(ValueError, match="math domain"):
        map_files(math.sqrt, [1.0, -1.0], workers=1, crashed=lambda item: 0.0)


SCRIPT = """\
import math
from thawline.data._pool import map_files
print(map_files(math.sqrt, [4.0], workers=1, crashed=lambda item: 'blamed'))
"""


def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(SCRIPT)
    ended = subprocess.run([sys.executable, tmp_path / "plain.py"], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("[2.0]\n", "")


def test_where_no_process_can_start_no_file_is_blamed(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "usercustomize.py").write_text(
        "import os, sys\nif '--multiprocessing-fork' in sys.argv:\n    os._exit(3)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    (tmp_path / "sitecustomize.py").write_text("import usercustomize\n")
    ended = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, env=environment)
    assert ended.returncode == 1
    assert "exit at startup" in ended.stderr
    assert "blamed" not in ended.stdout


def test_nothing_to_do_starts_nothing() -> None:
    assert map_files(math.sqrt, [], workers=None, crashed=lambda item: 0.0) == []


def test_a_file_that_crashes_the_decoder_is_named_and_left_out(
    fill: Callable[[dict[str, int | bytes]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(
        {f"{name}/{number:02}.png": 100 * place + number for place, name in enumerate("ab") for number in range(20)}
    )
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "a_crashing_decoder.py").write_text(
        "import os\n"
        "from thawline.data.folder import _inspect\n"
        "def inspect(item, **options):\n"
        "    if item[1] == 'b/03.png': os.abort()\n"
        "    return _inspect(item, **options)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    import a_crashing_decoder

    monkeypatch.setattr(folder, "_inspect", a_crashing_decoder.inspect)

    manifest = scan(DataConfig(path=root))

    assert [(problem.path, problem.reason) for problem in manifest.bad] == [("b/03.png", "the decoder crashed on it")]
    assert len(manifest.rows) == 39
