"""What flows call."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import prefect
import pytest
from prefect.utilities.collections import visit_collection
from prefect.utilities.engine import collect_task_run_inputs_sync, resolve_to_final_result

from thawline.orchestration.tasks import task

looked_at: list[str] = []


@dataclass(frozen=True)
class Row:
    number: int

    def __getattribute__(self, name: str) -> Any:
        if name == "number":
            looked_at.append(name)
        return object.__getattribute__(self, name)


def without_a_server(**_: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A task that looks for results of others in its arguments, as Prefect does, and is recorded nowhere."""

    def resolved(value: Any) -> Any:
        collect_task_run_inputs_sync(value)
        return visit_collection(
            value, visit_fn=resolve_to_final_result, return_data=True, remove_annotations=True, context={}
        )

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **named: function(*map(resolved, args), **{key: resolved(named[key]) for key in named})

    return decorated


def test_a_task_gets_the_very_values_which_prefect_does_not_go_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect, "task", without_a_server)
    rows, more = (Row(1), Row(2)), [Row(3)]

    def both(rows: tuple[Row, ...], *, more: list[Row]) -> tuple[object, object]:
        return rows, more

    looked_at.clear()
    first, second = task("both")(both)(rows, more=more)
    assert first is rows
    assert second is more
    assert looked_at == []
    without_a_server()(both)(rows, more=more)
    assert looked_at, "without the annotation, Prefect looks at every row"
