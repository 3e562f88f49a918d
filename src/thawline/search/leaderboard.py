"""The ranked trials of a study: as rows, table cells, or markdown for MLflow."""

from collections.abc import Sequence
from typing import Any

from thawline import backbones
from thawline.config import SEARCHABLE
from thawline.search.records import TrialRecord
from thawline.training import METRIC_DIRECTIONS

__all__ = [
    "leaderboard_cells",
    "leaderboard_markdown",
    "leaderboard_rows",
    "shortened_names",
    "thaw_line_chart",
    "varied_hyperparameters",
]

_CHART_WIDTH = 40
_OF_TRAINING = SEARCHABLE.keys() - {"policy", "batch_norm"}
"""Empty for a linear probe, which is not trained by gradient descent."""


def leaderboard_rows(records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """One flat mapping of plain values per trial, best first."""
    rows = []
    for rank, record in enumerate(records, 1):
        result = record.result
        rows.append(
            {
                "rank": rank if record.state == "complete" else None,
                "trial": record.number,
                "state": record.state,
                "value": record.value,
                **_hyperparameters(record),
                "best_epoch": result.best_epoch if result else None,
                "epochs": result.epochs if result else None,
                "seconds": round(result.seconds, 1) if result else None,
                "run_id": result.run_id if result else None,
                "reason": result.reason if result else "",
            }
        )
    return rows


def _hyperparameters(record: TrialRecord) -> dict[str, Any]:
    """Hyperparameters by name; a linear probe has no learning rates."""
    values = record.hyperparameters.as_dict()
    return values | dict.fromkeys(_OF_TRAINING) if record.hyperparameters.is_probe else values


def leaderboard_markdown(records: Sequence[TrialRecord], metric: str, *, most: int | None = None) -> str:
    """A markdown table for MLflow's note and other pages, limited to the best ``most`` trials."""
    varied = varied_hyperparameters(records)
    header = [
        "rank",
        "trial",
        "state",
        f"val/{metric}",
        *(name.replace("_", " ") for name in varied),
        "epochs",
        "seconds",
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(leaderboard_cells(row, varied)) + " |" for row in leaderboard_rows(records)[:most]]
    if most is not None and len(records) > most:
        lines += ["", f"and {len(records) - most} more trials"]
    lines += [line for sentence in shortened_names(records[:most]) for line in ("", sentence)]
    return "\n".join(lines)


def thaw_line_chart(records: Sequence[TrialRecord], metric: str) -> str:
    """The best value at each freeze depth as a text chart, scaled from the worst to the best of them.

    Depths of different backbones are not comparable: each backbone then has its own lines below its name. Empty without
    any value.
    """
    best: dict[tuple[str, int], list[float]] = {}
    for record in records:
        if record.value is not None and record.state in ("complete", "pruned"):
            point = record.hyperparameters
            best.setdefault((point.backbone, point.freeze_depth), []).append(record.value)
    if not best:
        return ""
    choose = max if METRIC_DIRECTIONS[metric] == "maximize" else min
    values = {place: choose(tried) for place, tried in best.items()}
    low, high = min(values.values()), max(values.values())
    several = len({backbone for backbone, _ in values}) > 1
    lines = [f"freeze depth and the best val/{metric} there, from {low:.4f} to {high:.4f}"]
    above = None
    for (backbone, depth), value in sorted(values.items()):
        if several and backbone != above:
            lines.append(backbone)
            above = backbone
        at = round((value - low) / (high - low) * (_CHART_WIDTH - 1)) if high > low else 0
        line = "".join("●" if i == at else "·" for i in range(_CHART_WIDTH))
        trials = len(best[backbone, depth])
        lines.append(f"{depth:>2}  {line}  {value:.4f}  {trials} trial{'s' if trials > 1 else ''}")
    return "\n".join(lines)


def varied_hyperparameters(records: Sequence[TrialRecord]) -> list[str]:
    """Freeze depth, learning rate, and any other hyperparameters that differ between trained trials."""
    always = ["freeze_depth", "learning_rate"]
    trained = [record for record in records if not record.hyperparameters.is_probe]
    rows = [record.hyperparameters.as_dict() for record in trained or records]
    return [name for name in rows[0] if name in always or len({row[name] for row in rows}) > 1] if rows else always


def shortened_names(records: Sequence[TrialRecord]) -> list[str]:
    """A sentence for each backbone whose name is shortened in the table, with its full name."""
    if "backbone" not in varied_hyperparameters(records):
        return []
    names = sorted({record.hyperparameters.backbone for record in records})
    return [f"{backbones.label(name)} is {name}" for name in names if backbones.label(name) != name]


def leaderboard_cells(row: dict[str, Any], varied: Sequence[str]) -> list[str]:
    """A row as text: rank, trial, state, value, the hyperparameters that vary, epochs and seconds."""
    cells = [_text(row["rank"]), _text(row["trial"]), row["state"]]
    cells.append("-" if row["value"] is None else f"{row['value']:.4f}")
    shown = row | {"backbone": backbones.label(row["backbone"])}
    if row["policy"] == "probe":
        shown["learning_rate"] = "probe"
    cells += [f"{shown[name]:.2e}" if isinstance(shown[name], float) else _text(shown[name]) for name in varied]
    return [*cells, _text(row["epochs"]), _text(row["seconds"])]


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
