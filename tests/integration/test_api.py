"""The Python API as README and the docs show it: in a script without a main guard, and in a running event loop."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import thawline
from thawline.exceptions import DataError

ROOT = Path(__file__).parents[2]
SMALL = """\
import asyncio, sys, thawline

run_search = thawline.run_search


def smaller(data, **options):
    \"\"\"What the example asks for, with a network and a budget of a test.\"\"\"
    assert data == "photos"
    settings = {"train.device": "cpu", "data.workers": 1, "tracking.report": False, "tracking.observe": False}
    settings["promotion.exports"] = []
    network = {"backbone": "mobilenet_v3_small", "weights": "starter", "image_size": 32}
    given = {**options, **network, "trials": 2, "epochs": 1}
    return run_search(data, **given, settings=settings)


thawline.run_search = smaller


async def as_in_a_notebook():
    exec(open("example.py").read(), {"__name__": "example"})


asyncio.run(as_in_a_notebook())
"""


@pytest.mark.slow
@pytest.mark.xdist_group("api")
@pytest.mark.parametrize("page", ["README.md", "docs/how-to/python.md"])
def test_the_example_runs_without_a_main_guard_and_in_a_running_event_loop(
    page: str,
    draw_pictures: Callable[..., Path],
    environment_of: Callable[[Path], dict[str, str]],
    prepared: Callable[[Path], Path],
    prefect: dict[str, str],
    tmp_path: Path,
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    photos = draw_pictures(tmp_path / "photos", count=12)
    (photos / "cat").mkdir()  # the example names a picture of a cat
    for file in sorted((photos / "stripes").iterdir()):
        file.rename(photos / "cat" / f"{file.stem.removeprefix('stripes-').lstrip('0') or '0'}.png")
    (photos / "stripes").rmdir()
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    (tmp_path / "script.py").write_text(SMALL, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment_of(prepared(tmp_path / "home")) | prefect,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert ("Validation accuracy" in ended.stdout) == ("print(outcome)" in example)
    assert re.search(r"^(circle|square|cat) [01]\.\d+$", ended.stdout, flags=re.MULTILINE), "label and probability"
    assert ended.stderr.count("linear probe: val/accuracy") == 1, "Thawline's own progress, once"
    assert "Beginning flow run" not in ended.stderr, "not Prefect's log"
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.xdist_group("search")
def test_a_loaded_model_takes_files_bytes_and_pictures_and_names_what_it_cannot_read(
    searched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setenv("THAWLINE_HOME", str(searched.home))
    model = thawline.load_model("shapes", tracking_uri=searched.uri)
    file = searched.data / "circle" / "circle-00.png"
    answers = model.predict([file, str(file), file.read_bytes(), Image.open(file)])
    assert {answer.class_name for answer in answers} <= {"circle", "square", "stripes"}
    assert len({answer.probability for answer in answers}) == 1, "the same picture"
    (tmp_path / "broken.png").write_bytes(b"nothing")
    for bad in (tmp_path / "broken.png", tmp_path / "missing.png"):
        with pytest.raises(DataError, match=bad.name):
            model.predict([file, bad])
    with pytest.raises(DataError, match=r"\[item\]"):
        model.predict(str(file))
