"""Where the kernels say that they can run."""

import pytest
import torch

from exlstm.ops.triton import launch

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with triton and a GPU, of compute capability 9.0, as far as PyTorch says."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(launch, "_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    launch._too_old.cache_clear()
    yield
    launch._too_old.cache_clear()


def test_a_gpu_runs_them_and_a_cpu_does_not(gpu):
    assert launch.obstacle(None) is None
    assert launch.obstacle(GPU) is None
    assert "on GPUs" in (launch.obstacle(CPU) or "")


def test_the_interpreter_runs_them_anywhere(gpu, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert launch.obstacle(CPU) is None


@pytest.mark.parametrize(
    ("of", "name", "value", "reason"),
    [
        (launch, "_installed", lambda: False, "pip install"),
        (torch.cuda, "is_available", lambda: False, "sees no GPU"),
        (torch.cuda, "get_device_capability", lambda index: (7, 5), "7.5"),
        (torch.version, "hip", "6.4", "AMD"),
    ],
)
def test_what_is_missing_is_said(gpu, monkeypatch, of, name, value, reason):
    monkeypatch.setattr(of, name, value)
    assert reason in (launch.obstacle(GPU) or "")


def test_float32_products_are_exact_unless_pytorch_is_told_otherwise(monkeypatch):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert launch.precision(torch.float32) == "tf32x3"
        torch.set_float32_matmul_precision("high")
        assert launch.precision(torch.float32) == "tf32"
        assert launch.precision(torch.float16) == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
