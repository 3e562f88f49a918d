"""A slot for each trial that runs, a device for each slot."""

from typing import Any

import pytest
import torch

from thawline.config import SearchConfig
from thawline.search.slots import Slots, threads_per_trial


def config(device: str = "auto", **sections: Any) -> SearchConfig:
    return SearchConfig.build({"data": {"path": "photos"}, "train": {"device": device}}, sections)


@pytest.mark.parametrize(
    ("gpus", "device", "study", "expected"),
    [
        (0, "auto", {}, ["auto"]),
        (0, "auto", {"workers": 3}, ["auto"] * 3),
        (2, "auto", {}, ["cuda:0", "cuda:1"]),
        (2, "auto", {"workers_per_gpu": 2}, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        (2, "auto", {"workers": 3}, ["cuda:0", "cuda:1", "cuda:0"]),
        (4, "auto", {"workers": 1}, ["cuda:0"]),
        (2, "cuda:1", {"workers_per_gpu": 2}, ["cuda:1", "cuda:1"]),
        (2, "cpu", {}, ["cpu"]),
    ],
)
def test_each_slot_has_its_device_and_gpus_take_turns(
    gpus: int, device: str, study: dict[str, Any], expected: list[str]
) -> None:
    slots = Slots(config(device, study=study), gpus=gpus)
    assert slots.count == len(expected)
    assert [slots.take() for _ in expected] == expected


def test_a_device_that_is_given_back_is_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(config(), gpus=2)
    first, second = slots.take(), slots.take()
    slots.give_back(second)
    assert slots.take() == second != first


def test_slots_share_the_cores_and_a_cluster_gives_what_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert threads_per_trial(config("cpu")) == 8
    assert threads_per_trial(config("cpu", study={"workers": 4})) == 2
    assert threads_per_trial(config("cpu", study={"workers": 16})) == 1
    on_ray = config(execution={"kind": "ray", "cpus": 3.0})
    assert (threads_per_trial(on_ray), Slots(on_ray, gpus=0).count) == (3, 4)
