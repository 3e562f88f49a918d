"""Examples in docstrings can be run."""

import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from thawline.testing import MemoryTracker, TrackerContract


def test_the_example_of_the_tracker_contract_is_a_whole_test_class(tmp_path: Path) -> None:
    assert TrackerContract.__doc__ is not None
    example = TrackerContract.__doc__.partition("::\n\n")[2].partition("\n\n    Trackers are opened")[0]
    names: dict[str, Any] = {
        "TrackerContract": TrackerContract,
        "MyTracker": lambda folder: MemoryTracker(None),
        "pytest": SimpleNamespace(register_assert_rewrite=lambda name: None),
    }
    exec(textwrap.dedent(example), names)  # noqa: S102
    contract = names["TestMyTracker"]()  # a stray @abstractmethod would refuse it
    assert isinstance(contract.make(tmp_path), MemoryTracker)
    assert contract.read_metrics(tmp_path) == {"val/accuracy": [(1, 0.5)]}


def test_an_abstract_method_in_an_example_would_be_noticed() -> None:
    with pytest.raises(TypeError, match="abstract"):
        TrackerContract()  # type: ignore[abstract]
