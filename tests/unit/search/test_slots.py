"""A slot for each trial that runs, a device for each slot."""

from typing import Any

import pytest
import torch

from thawline.config import SearchConfig
from thawline.exceptions import ConfigError
from thawline.search.slots import Slots, check_devices, threads_per_trial


def config(device: str = "auto", each: int = 1, **sections: Any) -> SearchConfig:
    train = {"device": device, "devices_per_trial": each}
    return SearchConfig.build({"data": {"path": "photos"}, "train": train}, sections)


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


@pytest.mark.parametrize(
    ("gpus", "each", "study", "expected"),
    [
        (4, 2, {}, ["cuda:0", "cuda:2"]),
        (5, 2, {}, ["cuda:0", "cuda:2"]),
        (8, 4, {"workers_per_gpu": 2}, ["cuda:0", "cuda:4", "cuda:0", "cuda:4"]),
        (8, 8, {}, ["cuda:0"]),
        (4, 2, {"workers": 1}, ["cuda:0"]),
    ],
)
def test_a_trial_of_several_gpus_takes_neighbours_and_no_other_trial_has_one_of_them(
    gpus: int, each: int, study: dict[str, Any], expected: list[str]
) -> None:
    slots = Slots(config(each=each, study=study), gpus=gpus)
    assert [slots.take() for _ in range(slots.count)] == expected


@pytest.mark.parametrize(
    ("gpus", "device", "execution", "said"),
    [
        (1, "auto", {}, "train.devices_per_trial=2, but this machine has 1 GPU. Lower it, or set train.device=cpu"),
        (0, "auto", {}, "but this machine has 0 GPUs"),
        (3, "cuda:2", {}, "but this machine has 1 GPU from cuda:2 on"),
        (0, "mps", {}, "needs GPUs of NVIDIA or AMD, or train.device=cpu, but got mps"),
        (8, "auto", {"kind": "dask"}, "needs execution.kind local or ray: Dask's workers cannot start processes"),
        (8, "auto", {"kind": "ray", "gpus": 1}, "needs execution.gpus=2, so that Ray gives .* but got 1. Set it"),
    ],
)
def test_devices_that_are_not_there_are_refused_with_what_to_set(
    gpus: int, device: str, execution: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_devices(config(device, 2, execution=execution), gpus=gpus)
    check_devices(config(device, 1, execution=execution), gpus=gpus)


def test_devices_that_are_there_are_taken() -> None:
    check_devices(config("auto", 2), gpus=2)
    check_devices(config("cuda:1", 2), gpus=3)
    check_devices(config("cpu", 2), gpus=0)
    check_devices(config("auto", 2, execution={"kind": "ray", "gpus": 2}), gpus=0)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"exact": True}, "exact needs devices_per_trial=1, but got 2"),
        ({"batch_size": 3}, "devices_per_trial=2 needs batch_size >= 4, two images or texts for each, but got 3"),
    ],
)
def test_what_several_devices_cannot_do_is_refused(train: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(each=2, train=train)
    config(each=1, train=train)
