"""What can be searched is one table: every row reaches everything that reads it, and a new one takes two lines."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import thawline
from thawline.config import SEARCHABLE, Range, SearchConfig, TrainConfig
from thawline.exceptions import ConfigError
from thawline.search import TrialRecord
from thawline.search.leaderboard import leaderboard_rows
from thawline.search.retraining import _point
from thawline.search.space import default_points, point_of, probe_of, sample
from thawline.training import SHARED_BY_HEADS, Hyperparameters

DEPTHS = {"resnet18": 5}
OF_A_BACKBONE = {"backbone", "freeze_depth"}
"""What is searched beside the rows: which depths there are depends on the backbone."""


class Highest:
    """Draws the upper end of each range and the last of each list."""

    def __init__(self) -> None:
        self.drawn: list[str] = []

    def suggest_int(self, name: str, low: int, high: int) -> int:
        self.drawn.append(name)
        return high

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        self.drawn.append(f"{name} (log)" if log else name)
        return high

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.drawn.append(name)
        return choices[-1]


def searching(**space: Any) -> SearchConfig:
    return SearchConfig.build({"data": {"path": "photos"}, "space": space})


def opened(name: str) -> list[Any]:
    """A part of what there is: of a number neither end, of names all but the first."""
    row = SEARCHABLE[name]
    return [0.25, 0.5] if isinstance(row, Range) else list(row.names[1:])


def outside(name: str) -> Any:
    row = SEARCHABLE[name]
    return 0.75 if isinstance(row, Range) else row.names[0]


def test_hyperparameters_are_the_rows_and_what_depends_on_the_backbone() -> None:
    assert {each.name for each in fields(Hyperparameters)} == OF_A_BACKBONE | SEARCHABLE.keys()
    assert set(type(searching().space).model_fields) == OF_A_BACKBONE | SEARCHABLE.keys()
    assert TrainConfig.model_fields.keys() >= SEARCHABLE.keys() - {"learning_rate"}


@pytest.mark.parametrize("name", SEARCHABLE)
def test_a_row_that_is_opened_is_drawn_tried_first_and_taken_from_a_champion(name: str) -> None:
    config, values, trial = searching(**{name: opened(name)}), opened(name), Highest()
    assert getattr(sample(trial, config, DEPTHS), name) == values[-1]
    assert any(each.partition(" ")[0] == name for each in trial.drawn)
    assert all(values[0] <= point[name] <= values[-1] if isinstance(SEARCHABLE[name], Range) else point[name] in values
               for point in default_points(config, DEPTHS))  # fmt: skip
    assert point_of({name: values[-1]}, config, DEPTHS) == {name: values[-1]}
    with pytest.raises(ConfigError, match=f"{name}.* but got "):
        point_of({name: outside(name)}, config, DEPTHS)
    champion = {"backbone": "resnet18", "freeze_depth": "2", "learning_rate": "0.001", name: str(values[-1])}
    assert _point(config, champion)[name] == values[-1]


@pytest.mark.parametrize("name", sorted(SEARCHABLE.keys() - {"learning_rate"}))
def test_a_row_that_is_not_opened_is_the_recipes_and_no_point_may_have_it(name: str) -> None:
    config, trial = searching(), Highest()
    assert getattr(sample(trial, config, DEPTHS), name) == getattr(config.train, name)
    assert trial.drawn == ["freeze_depth", "learning_rate (log)"]
    with pytest.raises(ConfigError, match=f"the space does not open '{name}'"):
        point_of({name: outside(name)}, config, DEPTHS)


def test_rows_are_drawn_in_the_order_that_seeds_of_recorded_studies_expect() -> None:
    trial = Highest()
    sample(trial, searching(**{name: opened(name) for name in SEARCHABLE}), DEPTHS)
    assert trial.drawn == [
        "freeze_depth",
        "learning_rate (log)",
        "weight_decay (log)",
        "head_learning_rate_factor (log)",
        "optimizer",
        "policy",
        "layer_decay",
        "batch_norm",
        "augmentation",
    ]


def test_heads_that_are_trained_together_share_what_is_not_kept_for_each() -> None:
    assert SHARED_BY_HEADS == ("optimizer", "augmentation")


def test_a_linear_probe_has_nothing_of_what_is_trained() -> None:
    probe = probe_of(searching(), DEPTHS, "resnet18")
    (row,) = leaderboard_rows([TrialRecord(0, "complete", probe, 0.5, None)])
    assert {name for name in SEARCHABLE if row[name] is not None} == {"policy", "batch_norm"}


def test_a_space_can_be_sent_to_another_process() -> None:
    config = searching(optimizer=["sgd"], weight_decay=[0.1, 0.2])
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301


PROGRAM = """
import json, sys
from thawline.config import SearchConfig
from thawline.config.fields import FIELDS, help_of
from thawline.search import TrialRecord
from thawline.search.leaderboard import leaderboard_rows
from thawline.search.retraining import _point
from thawline.search.space import default_points, point_of, probe_of, sample
from thawline.training import SHARED_BY_HEADS
sys.path.insert(0, sys.argv[1])
from test_searchable import DEPTHS, Highest

config = SearchConfig.build(
    {"data": {"path": "photos"}}, {"space": {"dropout": [0.1, 0.4], "cooling": ["linear", "cosine"]}}
)
champion = {"backbone": "resnet18", "freeze_depth": "2", "learning_rate": "0.001"}
highest = Highest()
drawn = sample(highest, config, DEPTHS)
(probed,) = leaderboard_rows([TrialRecord(0, "complete", probe_of(config, DEPTHS, "resnet18"), 0.5, None)])
rows = ("dropout", "cooling")
print(json.dumps({
    "help": [help_of("space.dropout"), help_of("space.cooling")],
    "drawn": {name: getattr(drawn, name) for name in rows},
    "how": highest.drawn[-2:],
    "first": {name: default_points(config, DEPTHS)[0][name] for name in rows},
    "point": point_of({"dropout": 0.2, "cooling": "linear"}, config, DEPTHS),
    "champion": {name: _point(config, {**champion, "dropout": "0.9", "cooling": "linear"})[name] for name in rows},
    "probe": {name: probed[name] for name in rows},
    "shared": SHARED_BY_HEADS,
}))
"""


def test_a_new_row_takes_its_field_and_what_former_trials_had(tmp_path: Path) -> None:
    package = tmp_path / "src" / "thawline"
    shutil.copytree(Path(thawline.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "starter"))
    insert(package / "config" / "train.py", "    ema: float | None", """\
    dropout: Annotated[float, Searchable("Range of the dropout.", log=False)] = Field(0.0, ge=0, le=0.5)
    cooling: Annotated[Literal["cosine", "linear"], Searchable("Ways of cooling to choose from.")] = "cosine"
""")  # fmt: skip
    insert(package / "training" / "hyperparameters.py", "\n    @property", """\
    dropout: float = 0.0
    cooling: Literal["cosine", "linear"] = "cosine"
""")  # fmt: skip
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == {
        "help": ["Range of the dropout.", "Ways of cooling to choose from."],
        "drawn": {"dropout": 0.4, "cooling": "cosine"},
        "how": ["dropout", "cooling"],
        "first": {"dropout": 0.1, "cooling": "cosine"},
        "point": {"dropout": 0.2, "cooling": "linear"},
        "champion": {"dropout": 0.4, "cooling": "linear"},
        "probe": {"dropout": None, "cooling": None},
        "shared": ["optimizer", "augmentation", "dropout", "cooling"],
    }


def insert(file: Path, before: str, lines: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(before) >= 1
    at = text.index(before)
    file.write_text(text[:at] + lines + text[at:], encoding="utf-8")
