"""Where the kernels say that they can run, and what is kept of what Triton compiled for a launch."""

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


class _Kernel:
    """A kernel that is "compiled" whenever Triton is asked for it, and notes what runs."""

    arg_names = ("x_ptr", "y_ptr", "T", "BLOCK")

    def __init__(self, compiles: bool = True) -> None:
        self.compiles, self.asked, self.again = compiles, [], []

    def __getitem__(self, grid):
        def run(*values, num_warps, num_stages):
            self.asked.append((grid, values, num_warps, num_stages))
            return _Compiled(self) if self.compiles else None

        return run


class _Compiled:
    def __init__(self, kernel: _Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *values: self.kernel.again.append((grid, values))


@pytest.fixture
def none_compiled(monkeypatch):
    monkeypatch.setattr(launch, "_compiled", {})


def _launch(kernel: _Kernel, x: torch.Tensor, *, grid=(3,), warps=4, y=None, T=5, BLOCK=16) -> None:
    launch.launch(kernel, grid, warps=warps, stages=1, x_ptr=x, BLOCK=BLOCK, y_ptr=y, T=T)


def test_a_launch_like_one_before_runs_what_was_compiled_for_it(none_compiled):
    kernel, first, second = _Kernel(), torch.zeros(4), torch.ones(8)
    _launch(kernel, first)
    _launch(kernel, second, grid=(7, 2))
    assert kernel.asked == [((3,), (first, None, 5, 16), 4, 1)]
    [(grid, values)] = kernel.again
    assert grid == (7, 2, 1)
    assert values[0] is second
    assert values[1:] == (None, 5, 16)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"x": torch.zeros(4, dtype=torch.float16)}, id="type"),
        pytest.param({"x": torch.zeros(5)[1:]}, id="alignment"),
        pytest.param({"y": torch.zeros(4)}, id="none"),
        pytest.param({"T": 16}, id="number"),
        pytest.param({"BLOCK": 32}, id="constant"),
        pytest.param({"warps": 8}, id="warps"),
    ],
)
def test_what_compiled_code_depends_on_has_it_compiled_anew(none_compiled, other):
    kernel, usual = _Kernel(), {"x": torch.zeros(4)}
    _launch(kernel, **usual)
    _launch(kernel, **usual | other)
    assert len(kernel.asked) == 2
    assert not kernel.again


def test_nothing_is_kept_of_the_interpreter_and_not_ever_more_of_the_compiler(none_compiled, monkeypatch):
    interpreted, x = _Kernel(compiles=False), torch.zeros(4)
    for _ in range(2):
        _launch(interpreted, x)
    assert len(interpreted.asked) == 2
    monkeypatch.setattr(launch, "MOST_COMPILED", 3)
    for length in range(10):
        _launch(_Kernel(), x, T=length)
    assert len(launch._compiled) <= 3
