"""The leaderboard as people see it."""

import io
from dataclasses import replace

from rich.console import Console

from thawline import backbones
from thawline.cli.tables.studies import leaderboard_table
from thawline.search import TrialRecord, TrialResult
from thawline.search.leaderboard import (
    leaderboard_markdown,
    leaderboard_rows,
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


def _probe(number: int, value: float = 0.6) -> TrialRecord:
    """The linear probe of a network of five layer groups."""
    trained = _record(number, 0.0, value)
    hyperparameters = replace(trained.hyperparameters, policy="probe", freeze_depth=5, weight_decay=0.0)
    return replace(trained, hyperparameters=hyperparameters)


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


def test_a_linear_probe_has_no_rates_and_is_called_so_where_others_have_a_learning_rate() -> None:
    records = [_probe(0), _record(1, 1e-3), _record(2, 2e-4)]
    probe, trained, _ = leaderboard_rows(records)
    rates = ("learning_rate", "weight_decay", "head_learning_rate_factor", "layer_decay", "optimizer", "augmentation")
    assert [probe[name] for name in rates] == [None] * len(rates)
    assert (probe["policy"], probe["freeze_depth"], probe["value"], probe["rank"]) == ("probe", 5, 0.6, 1)
    assert None not in [trained[name] for name in rates], "a control"

    console = Console(width=160, record=True, file=io.StringIO())
    console.print(leaderboard_table(records, "accuracy"))
    for shown in (console.export_text(), leaderboard_markdown(records, "accuracy")):
        header = shown.split("complete")[0]
        line, *others = (line for line in shown.splitlines() if "complete" in line)
        assert "probe" in line.split()
        assert not any("probe" in other for other in others)
        assert "1.00e-03" in others[0]
        assert "weight" not in header, "what no trained trial varies has no column, though the probe has none of it"
        assert "policy" not in header


def test_of_a_probe_alone_there_is_a_table_too() -> None:
    rank, trial, state, value, depth, rate = (
        leaderboard_markdown([_probe(0)], "accuracy").splitlines()[-1].split("|")[1:7]
    )
    assert [each.strip() for each in (rank, trial, state, value, depth, rate)] == [
        "1",
        "0",
        "complete",
        "0.6000",
        "5",
        "probe",
    ]


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


def test_depths_of_several_backbones_stand_each_below_its_name_and_nothing_is_drawn_of_nothing() -> None:
    long = "hf:/models/a/long/way/down/in-a-folder-whose-name-breaks-tables"
    records = [_record(1, 1e-3, 0.8), _record(1, 1e-3, 0.9, long), _record(2, 1e-3, 0.7, long)]
    head, *lines = thaw_line_chart(records, "accuracy").splitlines()
    assert "0.7000 to 0.9000" in head
    assert [line.split("·")[0].split("●")[0].strip() for line in lines] == [long, "1", "2", "mobilenet_v3_small", "1"]
    assert [line[-15:] for line in lines if "trial" in line] == [f"{value:.4f}  1 trial" for value in (0.9, 0.7, 0.8)]
    assert thaw_line_chart([_record(1, 1e-3, None)], "accuracy") == ""


def test_a_backbone_with_a_long_name_has_a_short_one_in_the_table_and_stands_once_in_full() -> None:
    long = "hf:/models/a/long/way/down/in-a-folder-whose-name-breaks-tables"
    records = [_record(0, 1e-3), _record(1, 2e-4, backbone=long)]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(leaderboard_table(records, "accuracy"))
    short = backbones.short_name(long)
    for shown in (console.export_text(), leaderboard_markdown(records, "accuracy")):
        assert shown.count(long) == 1
        assert f"{short} is {long}" in shown
        assert shown.count(short) == 2
        assert "mobilenet_v3_small is" not in shown
    assert long not in leaderboard_markdown(records[1:], "accuracy"), "one that no trial varies is not in the table"


def test_a_long_leaderboard_is_cut_and_says_so() -> None:
    records = [_record(number, 1e-3) for number in range(30)]
    assert leaderboard_markdown(records, "accuracy", most=10).count("complete") == 10
    assert leaderboard_markdown(records, "accuracy", most=10).endswith("and 20 more trials")
    assert leaderboard_markdown(records, "accuracy").count("complete") == 30
