"""What long sequences may cost: memory that grows with T, not its square, and no call for every step or chunk."""

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from tests.memory import growths_printed_by, needs_proc
from tests.ops.cases import draw

TIME = 32_768
MEBIBYTE = 2**20

# A T x T matrix of the smallest dtype (bool) takes 1024 MiB. Inputs, outputs and gradients of one head of width 16
# take 12 MiB, a memory for every chunk of 64 steps 1 MiB, and levels 2 MiB a copy.
MOST = 320 * MEBIBYTE

_MEASURE = """
import sys
import torch
from benchmarks.memory import growth
from exlstm.layers import SlidingWindowAttention
from exlstm.ops import hmlstm, mlstm, slstm

name, backend, time = sys.argv[1], sys.argv[2], int(sys.argv[3])
def normal(*shape):
    return torch.randn(1, time, *shape, requires_grad=True)

steps = dict(mask=torch.rand(1, time) < 0.9, reset=torch.rand(1, time) < 0.001)
if name == "attention":
    layer, inputs = SlidingWindowAttention(16, 1, window=64), [normal(16)]
    run = lambda: layer(*inputs, **steps)[0]
elif name == "slstm":
    inputs, r = [normal(4, 1, 16)], torch.randn(4, 1, 16, 16) / 4
    run = lambda: slstm(*inputs, r, backend=backend, **steps)[0]
else:
    inputs = [normal(1, 16), normal(1, 16), normal(1, 16), normal(1), normal(1)]
    inputs += [normal(1, 12)] if name == "hmlstm" else []
    run = lambda: {"mlstm": mlstm, "hmlstm": hmlstm}[name](*inputs, backend=backend, **steps)[0]
torch.autograd.grad(run().sum(), inputs)  # small or not, what is loaded lazily is loaded
print(growth(lambda: torch.autograd.grad(run().sum(), inputs)))
"""


@needs_proc
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("mlstm", "torch"),
        ("mlstm", "cpu"),
        ("hmlstm", "torch"),
        ("hmlstm", "cpu"),
        ("slstm", "cpu"),
        ("attention", "torch"),
    ],
)
def test_no_square_of_the_length_is_ever_allocated(name, backend):
    [grown] = growths_printed_by(_MEASURE, name, backend, TIME)
    assert grown < MOST


class CountCalls(TorchDispatchMode):
    """How many torch operators run."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def calls(operator, time):
    case = draw(operator, time, steps=False, state=False)
    with CountCalls() as count:
        case.outputs_and_gradients("cpu")
    return count.calls


def test_an_slstm_takes_the_same_calls_whatever_its_length():
    assert calls("slstm", 40) == calls("slstm", 400) < 60


@pytest.mark.parametrize("operator", ["mlstm", "hmlstm"])
def test_calls_grow_with_the_logarithm_of_the_length(operator):
    short, middle, long = (calls(operator, 64 * chunks) for chunks in (4, 32, 256))
    # Three doublings each: as many calls more.
    assert long - middle == middle - short
    assert short < 2_000
