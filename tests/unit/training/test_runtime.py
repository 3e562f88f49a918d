"""Devices and kernels are chosen without touching a GPU that is not needed."""

from typing import Any

import pytest
import torch

from thawline.config import TrainConfig
from thawline.exceptions import ConfigError
from thawline.training import is_device_lost, is_out_of_memory, runtime_for, set_up_process


@pytest.fixture(autouse=True)
def kernels() -> Any:
    """As they were."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32)
    yield
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before


@pytest.mark.parametrize("exact", [True, False])
def test_deterministic_kernels_and_whole_single_precision_are_for_exact_searches_alone(exact: bool) -> None:
    set_up_process(threads=None, seed=0, exact=exact)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    assert (cudnn.deterministic, cudnn.benchmark) == (exact, not exact)
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (not exact, not exact)


def test_a_gpu_is_counted_and_not_opened_to_see_whether_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*arguments: Any, **more: Any) -> torch.Tensor:
        raise AssertionError("an allocation opens the GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", opened)
    assert runtime_for(TrainConfig(device="cuda:1", precision="bf16")).device == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"train\.device=cuda:2 cannot be used: there are 2 GPUs, numbered from 0\."):
        runtime_for(TrainConfig(device="cuda:2", precision="bf16"))


@pytest.mark.parametrize(
    ("message", "memory", "lost"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True, False),
        ("CUDA error: out of memory", True, False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True, False),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True, False),
        ("CUDA error: device-side assert triggered", False, True),
        ("CUDA error: an illegal memory access was encountered", False, True),
        ("CUDA error: uncorrectable ECC error encountered", False, True),
        ("mat1 and mat2 shapes cannot be multiplied", False, False),
    ],
)
def test_a_full_gpu_and_one_that_failed_are_told_apart(message: str, memory: bool, lost: bool) -> None:
    assert (is_out_of_memory(RuntimeError(message)), is_device_lost(RuntimeError(message))) == (memory, lost)


def test_a_message_about_a_device_is_no_failure_of_it_unless_it_is_an_error_of_computing() -> None:
    assert not is_device_lost(ValueError("CUDA error: said by something else"))
