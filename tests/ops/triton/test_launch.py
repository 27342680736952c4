"""What Triton compiled for a launch is kept by all that it depends on."""

import pytest
import torch

from exlstm.ops.triton import launch as module


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


@pytest.fixture(autouse=True)
def none_compiled(monkeypatch):
    monkeypatch.setattr(module, "_compiled", {})


def _launch(kernel: _Kernel, x: torch.Tensor, *, grid=(3,), warps=4, y=None, T=5, BLOCK=16) -> None:
    module.launch(kernel, grid, warps=warps, stages=1, x_ptr=x, BLOCK=BLOCK, y_ptr=y, T=T)


def test_a_launch_like_one_before_runs_what_was_compiled_for_it():
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
def test_what_compiled_code_depends_on_has_it_compiled_anew(other):
    kernel, usual = _Kernel(), {"x": torch.zeros(4)}
    _launch(kernel, **usual)
    _launch(kernel, **usual | other)
    assert len(kernel.asked) == 2
    assert not kernel.again


def test_nothing_is_kept_of_the_interpreter_and_not_ever_more_of_the_compiler(monkeypatch):
    interpreted, x = _Kernel(compiles=False), torch.zeros(4)
    for _ in range(2):
        _launch(interpreted, x)
    assert len(interpreted.asked) == 2
    monkeypatch.setattr(module, "MOST_COMPILED", 3)
    for length in range(10):
        _launch(_Kernel(), x, T=length)
    assert len(module._compiled) <= 3
