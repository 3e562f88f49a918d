"""The leaderboard as people see it."""

import io

from rich.console import Console

from thawline.search import TrialRecord, TrialResult
from thawline.search.leaderboard import (
    leaderboard_markdown,
    leaderboard_rows,
    leaderboard_table,
    thaw_line_chart,
)
from thawline.training import Hyperparameters

RUN = "0123456789abcdef0123456789abcdef"


def _record(number: int, rate: float, value: float | None = 0.5, backbone: str = "mobilenet_v3_small") -> TrialRecord:
    hyperparameters = Hyperparameters(
        backbone=backbone,
        freeze_depth=number,
        learning_rate=rate,
        weight_decay=0.01,
        head_learning_rate_factor=1.0,
        optimizer="adamw",
    )
    result = TrialResult(number, "complete", value, 1, 3, 12.3, "", RUN, None)
    return TrialRecord(number, "complete", hyperparameters, value, result)


def _lines(width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(leaderboard_table([_record(0, 1e-3), _record(1, 2e-4)], "accuracy"))
    return console.export_text().splitlines()


def test_a_trial_is_one_line_on_a_terminal_of_eighty_columns_and_its_run_can_be_told() -> None:
    trials = [line for line in _lines(80) if "complete" in line]
    assert len(trials) == 2
    assert len(_lines(80)) <= 4, "a header of at most two lines, and a line for each trial"
    assert all(RUN[:7] in line for line in trials)
    assert "val/accuracy" in "".join(_lines(80))


def test_a_wide_terminal_and_the_rows_hold_the_whole_id() -> None:
    assert RUN in "".join(_lines(160))
    assert all(row["run_id"] == RUN for row in leaderboard_rows([_record(0, 1e-3)]))


def test_the_chart_shows_the_best_value_of_each_depth_further_right_the_better_it_is() -> None:
    records = [_record(0, 1e-3, 0.80), _record(0, 1e-2, 0.70), _record(2, 1e-3, 0.95), _record(5, 1e-3, 0.90)]
    head, *lines = thaw_line_chart(records, "accuracy").splitlines()
    assert "from 0.8000 to 0.9500" in head
    assert [line.split()[0] for line in lines] == ["0", "2", "5"]
    assert lines[0].index("●") < lines[2].index("●") < lines[1].index("●")
    assert "0.8000  2 trials" in lines[0]
    assert "0.9500  1 trial" in lines[1]


def test_where_lower_is_better_the_chart_takes_the_lowest_value() -> None:
    chart = thaw_line_chart([_record(0, 1e-3, 0.8), _record(0, 1e-2, 0.3), _record(1, 1e-2, 0.5)], "loss")
    assert "0.3000  2 trials" in chart


def test_depths_of_several_backbones_are_told_apart_and_nothing_is_drawn_of_nothing() -> None:
    chart = thaw_line_chart([_record(1, 1e-3, 0.8), _record(1, 1e-3, 0.9, "vgg11")], "accuracy")
    assert "mobilenet_v3_small  1" in chart
    assert "vgg11               1" in chart
    assert thaw_line_chart([_record(1, 1e-3, None)], "accuracy") == ""


def test_a_long_leaderboard_is_cut_and_says_so() -> None:
    records = [_record(number, 1e-3) for number in range(30)]
    assert leaderboard_markdown(records, "accuracy", most=10).count("complete") == 10
    assert leaderboard_markdown(records, "accuracy", most=10).endswith("and 20 trials more")
    assert leaderboard_markdown(records, "accuracy").count("complete") == 30
