"""The leaderboard as people see it."""

import io

from rich.console import Console

from thawline.search import TrialRecord, TrialResult
from thawline.search.leaderboard import leaderboard_rows, leaderboard_table
from thawline.training import Hyperparameters

RUN = "0123456789abcdef0123456789abcdef"


def _record(number: int, rate: float) -> TrialRecord:
    hyperparameters = Hyperparameters(
        backbone="mobilenet_v3_small",
        freeze_depth=number,
        learning_rate=rate,
        weight_decay=0.01,
        head_learning_rate_factor=1.0,
        optimizer="adamw",
    )
    result = TrialResult(number, "complete", 0.5, 1, 3, 12.3, "", RUN, None)
    return TrialRecord(number, "complete", hyperparameters, 0.5, result)


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
