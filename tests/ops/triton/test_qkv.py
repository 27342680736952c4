"""The kernels of convolution and projections compute what the float64 reference computes, gradients included.

Tolerances are of the norm of a tensor. float32: sums of up to 300 products, rounded by 2^-24 each: 1e-5. bfloat16 and
float16: inputs, results and what passes between two products are rounded by 2^-9 and 2^-12, a few times in a row.
"""

import pytest
import torch
from torch import Tensor

from exlstm.ops import qkv_gates
from tests.ops.test_qkv import arguments, flat, outputs_and_gradients
from tests.ops.triton.agreement import assert_close, moved

SINGLE = 1e-5


def compared(device, dtype, *, time: int, steps: bool = True, **sizes) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients by Triton in `dtype`, and those of the same numbers by the float64 reference."""
    inputs, reach = arguments(time, steps=steps, **sizes)
    low = moved(inputs, device, dtype)
    exact = moved(low, torch.device("cpu"), torch.float64)
    weights = [torch.randn_like(y) for y in qkv_gates(*exact, backend="reference")]
    on_device = None if reach is None else reach.to(device)
    found = outputs_and_gradients(low, on_device, "triton", [w.to(device) for w in weights])
    expected = outputs_and_gradients(exact, reach, "reference", weights)
    return tuple([x.double().cpu() for part in of for x in part] for of in (found, expected))  # type: ignore[return-value]


@pytest.mark.parametrize("time", [1, 2, 3, 31, 65])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "documents"])
def test_outputs_and_gradients_equal_the_reference(device, time, steps):
    assert_close(*compared(device, torch.float32, time=time, steps=steps), SINGLE)


@pytest.mark.parametrize(
    ("width", "taps", "block", "gates"), [(64, 2, 4, 8), (40, 8, 8, 1), (36, 1, 2, 2), (3, 3, 1, 2)]
)
def test_other_sizes_equal_the_reference(device, width, taps, block, gates):
    sizes = {"width": width, "taps": taps, "block": block, "gates": gates}
    assert_close(*compared(device, torch.float32, time=40, **sizes), SINGLE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1.5e-2), (torch.float16, 2e-3)])
def test_half_precision_stays_close(device, dtype, tolerance):
    assert_close(*compared(device, dtype, time=70, width=72), tolerance)


def test_sums_over_several_pieces_are_whole(device, monkeypatch):
    monkeypatch.setattr("exlstm.ops.triton.qkv.PARTS", 4)  # of two rows, so two of each
    assert_close(*compared(device, torch.float32, time=70), SINGLE)


def test_two_runs_give_the_same_bits(device):
    inputs, reach = arguments(70)
    inputs, reach = moved(inputs, device, torch.float32), reach.to(device)
    weights = [torch.randn_like(y) for y in qkv_gates(*inputs, backend="triton")]
    first, second = (outputs_and_gradients(inputs, reach, "triton", weights) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(flat(first), flat(second), strict=True))


@pytest.mark.parametrize(("dtype", "block"), [(torch.float64, 4), (torch.float32, 3)])
def test_what_is_left_to_torch_is_the_same(device, dtype, block):
    inputs, reach = arguments(9, width=12, block=block)
    inputs, reach = moved(inputs, device, dtype), reach.to(device)
    for x, y in zip(*(qkv_gates(*inputs, reach=reach, backend=b) for b in ("triton", "torch")), strict=True):
        assert torch.equal(x, y)
