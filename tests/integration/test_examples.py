"""Every program in `examples/` and every cell of the notebook runs as it stands, on less data and with fewer trials."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import Forks
from servers import forked_server

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("examples")]

SMALLER = """\
import sys
from pathlib import Path

import thawline
import thawline.data

write_digits, run_search = thawline.data.write_digits, thawline.run_search


def few(folder):
    for file in write_digits(folder).glob("*/*.png"):
        if int(file.stem.removeprefix("digit-")) >= 150:
            file.unlink()
    return folder


def smaller(data, *, settings, **options):
    quick = {"train.device": "cpu", "data.workers": 1, "tracking.report": False, "tracking.observe": False}
    settings = {**settings, **quick, "promotion.exports": []}
    return run_search(data, settings=settings, **{**options, "trials": 2, "epochs": 1})


thawline.data.write_digits, thawline.run_search = few, smaller
"""


@dataclass(frozen=True)
class Examples:
    """A folder in which the notebook has run, so that there is a champion `digits`."""

    folder: Path
    environment: dict[str, str]
    notebook: str
    """What its cells printed."""
    first: Forks

    def run(self, name: str, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a program of `examples/`."""
        return run(self.first, self.environment, self.folder, (EXAMPLES / name).read_text("utf-8"), name, *arguments)


def run(
    first: Forks, environment: dict[str, str], folder: Path, program: str, name: str, *arguments: str
) -> tuple[int, str, str]:
    as_main = (
        f"sys.argv = {[name, *arguments]!r}\nexec(compile({program!r}, {name!r}, 'exec'), {{'__name__': '__main__'}})\n"
    )
    return first.run(["-c", SMALLER + as_main], environment, folder)


def cells() -> list[str]:
    """The notebook's code."""
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def examples(
    first_process: Forks,
    environment_of: Callable[[Path], dict[str, str]],
    prepared: Callable[[Path], Path],
    prefect: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Examples:
    folder = tmp_path_factory.mktemp("examples")
    environment = environment_of(prepared(folder / "home")) | prefect
    code, out, err = run(first_process, environment, folder, "\n".join(cells()), "quickstart.ipynb")
    assert code == 0, err
    return Examples(folder, environment, out, first_process)


def test_the_cells_of_the_notebook_run_one_after_another(examples: Examples) -> None:
    assert "10 classes: 0, 1, 2" in examples.notebook
    assert "digits version 1, promoted" in examples.notebook
    assert re.search(r"^digit-\d+\.png \d 0\.\d+ \(", examples.notebook, flags=re.M), "a prediction with its set"


def test_the_notebook_is_plain_python_without_outputs_so_that_it_runs_here_as_in_jupyter() -> None:
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), "outputs would become stale"
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), "cell", "exec")  # no magic


def test_the_example_of_a_space_of_ones_own_prints_its_trials(examples: Examples) -> None:
    code, out, err = examples.run("search.py")
    assert code == 0, err
    assert re.search(r"^trial 1: freeze depth [2-6], complete, accuracy 0\.\d+$", out, flags=re.M)
    assert "Model: digits-deep version 1" in out


def test_the_example_of_a_challenger_prints_the_evidence(examples: Examples) -> None:
    code, out, err = examples.run("promote.py")
    assert code in (0, 1), err
    assert re.search(r"^digits version 2: (promote|hold|reject), ", out, flags=re.M)
    assert len(re.findall(r"^  (?:pass|FAIL)  .+: .+ \(.+\)$", out, flags=re.M)) >= 2
    assert f"digits@champion is version {2 if code == 0 else 1}" in out


def test_the_example_of_a_client_asks_a_server(examples: Examples) -> None:
    images = sorted(str(file.relative_to(examples.folder)) for file in examples.folder.glob("digits/7/*.png"))[:2]
    with forked_server("digits", examples.environment, examples.first, examples.folder) as port:
        code, out, err = examples.run("ask.py", *images, "--url", f"http://127.0.0.1:{port}")
    assert code == 0, err
    assert re.match(r"digits, version [12]\n", out)
    assert [line.partition(":")[0] for line in out.splitlines()[1:]] == images


def test_every_example_is_run_here_and_listed_in_the_docs() -> None:
    files = {file.name for file in EXAMPLES.iterdir()} - {"__pycache__"}
    assert files == {"quickstart.ipynb", "search.py", "promote.py", "ask.py"}
    page = (EXAMPLES.parent / "docs" / "how-to" / "python.md").read_text(encoding="utf-8")
    assert [name for name in files if f"examples/{name}" not in page] == []
