"""The mLSTM kernels compute what the float64 reference computes: outputs, states and all gradients.

Tolerances are of the norm of a tensor. float32: sums of up to 65 products, each rounded by 2^-24, and of logarithms of
up to some hundreds, whose rounding (2^-24 x 100) is that of the weights; the gradient of f is a difference of such
sums, up to ten times as large as it is: 1e-4. bfloat16 and float16: operands are rounded by 2^-9 and 2^-12, several
times in a row in a gradient: 3e-2 and 4e-3.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from exlstm.ops import mlstm, mlstm_state
from exlstm.ops.triton.mlstm import through_final_m
from tests.ops.cases import Case, draw, leaves
from tests.ops.test_mlstm_state import state_and_gradients
from tests.ops.triton.agreement import assert_close, bits, compared, needs_a_gpu, on

SINGLE = 1e-4


@pytest.mark.parametrize("time", [1, 2, 15, 16, 17, 65])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_outputs_states_and_gradients_equal_the_reference(device, time, state, steps):
    case = draw("mlstm", time, state=state, steps=steps)
    assert_close(*compared(case, device, torch.float32, chunk_size=16), SINGLE)


@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_sigmoid_input_gate_equals_the_reference(device, state, steps):
    case = draw("mlstm", 40, state=state, steps=steps, input_gate="sigmoid")
    assert_close(*compared(case, device, torch.float32, chunk_size=16), SINGLE)


@pytest.mark.parametrize("read", [slice(1), slice(1, None)], ids=["output", "memory"])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
def test_gradients_are_right_where_only_the_output_or_only_the_memory_is_read(device, read, state):
    case = draw("mlstm", 40, state=state)
    assert_close(*compared(case, device, torch.float32, read, chunk_size=16), SINGLE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("input_gate", ["exp", "sigmoid"])
def test_half_precision_keeps_float32_states_and_stays_close(device, dtype, tolerance, input_gate):
    needs_a_gpu(device, dtype)
    case = draw("mlstm", 40, gates=1.0, input_gate=input_gate)
    assert_close(*compared(case, device, dtype), tolerance)
    h, state = on(case, device, dtype).whole("triton")
    assert h.dtype == dtype
    assert all(x.dtype == torch.float32 for x in leaves(state))


@pytest.mark.parametrize(("dk", "dv"), [(17, 40), (40, 17), (33, 64)])
def test_widths_that_no_tile_divides_equal_the_reference(device, dk, dv, monkeypatch):
    monkeypatch.setattr("tests.ops.cases.DK", dk)
    monkeypatch.setattr("tests.ops.cases.DV", dv)
    assert_close(*compared(draw("mlstm", 20), device, torch.float32), SINGLE)


@pytest.mark.parametrize("columns", [16, 32])
def test_tiles_of_part_of_the_columns_give_the_same(device, columns, monkeypatch):
    from exlstm.ops.triton import mlstm_tiles

    small = [tile._replace(rows=16, columns=columns, inner=16) for tile in mlstm_tiles._FLOAT32[1:]]
    monkeypatch.setattr(mlstm_tiles, "_FLOAT32", mlstm_tiles.Tiles(32, *small))
    monkeypatch.setattr("tests.ops.cases.DK", 40)
    monkeypatch.setattr("tests.ops.cases.DV", 33)
    assert_close(*compared(draw("mlstm", 40), device, torch.float32), SINGLE)


@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_stabilisers_of_many_chunks_are_chained_in_rounds(device, steps, monkeypatch):
    from exlstm.ops.triton import mlstm_call

    monkeypatch.setattr(mlstm_call, "FEW_CHUNKS", 0)
    monkeypatch.setattr(mlstm_call, "MANY_CHUNKS", 4)  # of 9: three rounds
    case = draw("mlstm", 9 * 16 - 5, state=True, steps=steps)
    assert_close(*compared(case, device, torch.float32, chunk_size=16), SINGLE)


@pytest.mark.parametrize("input_gate", ["exp", "sigmoid"])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_a_walk_in_segments_equals_the_reference(device, input_gate, state, steps, monkeypatch):
    from exlstm.ops.triton import mlstm_tiles

    monkeypatch.setattr(mlstm_tiles, "LEAST_CHUNKS", 2)
    assert mlstm_tiles.segments_of(mlstm_tiles._FLOAT32.states, 6, 5, 3, 9) == 4  # of 3, 3, 3 and no chunks
    case = draw("mlstm", 9 * 16 - 5, state=state, steps=steps, input_gate=input_gate)
    assert_close(*compared(case, device, torch.float32, chunk_size=16), SINGLE)


@pytest.mark.parametrize("input_gate", ["exp", "sigmoid"])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
@pytest.mark.parametrize("least", [16, 1], ids=["one walk", "segments"])
def test_the_memory_alone_equals_that_of_the_reference(device, input_gate, state, steps, least, monkeypatch):
    monkeypatch.setattr("exlstm.ops.triton.mlstm_tiles.LEAST_CHUNKS", least)
    case = draw("mlstm", 70 if least > 1 else 250, state=state, steps=steps)  # two chunks, or four

    def found(case: Case, **options: Any) -> list[Tensor]:
        return [x.double().cpu() for of in state_and_gradients(case, mlstm_state, **options) for x in of]

    low = on(case, device, torch.float32)
    exact = found(on(low, torch.device("cpu"), torch.float64), backend="reference", input_gate=input_gate)
    assert_close(found(low, backend="triton", input_gate=input_gate), exact, SINGLE)


@pytest.mark.parametrize("scale", [30.0, 100.0])
def test_extreme_gates_stay_finite(device, scale):
    for x in bits(draw("mlstm", 40, gates=scale), device, torch.float32, chunk_size=16):
        assert bool(x.isfinite().all())


@pytest.mark.parametrize("i", [-100.0, 100.0])
@pytest.mark.parametrize("f", [-100.0, 100.0])
def test_whole_sequences_of_extreme_gates_equal_the_reference(device, i, f):
    case = draw("mlstm", 33, state=False, steps=False)
    q, k, v, gate, _ = case.inputs
    case = case._replace(inputs=(q, k, v, torch.full_like(gate, i), torch.full_like(gate, f)))
    low = on(case, device, torch.float32)
    found = [x.double().cpu() for x in leaves(low.whole("triton", chunk_size=16))]
    assert_close(found, leaves(on(low, torch.device("cpu"), torch.float64).whole("reference")), 1e-3)


def test_two_runs_give_the_same_bits(device):
    case = draw("mlstm", 40)
    for x, y in zip(*(bits(case, device, torch.float16) for _ in range(2)), strict=True):
        assert torch.equal(x, y)


def test_pieces_give_what_the_whole_gives(device):
    case = on(draw("mlstm", 40), device, torch.float32)
    whole, pieces = case.whole("triton", chunk_size=16), case.in_pieces("triton", (1, 17, 30), chunk_size=16)
    assert_close(*([x.double() for x in leaves(of)] for of in (pieces, whole)), SINGLE)


@pytest.mark.parametrize("input_gate", ["exp", "sigmoid"])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_a_step_without_gradients_equals_the_reference(device, input_gate, state, steps, monkeypatch):
    monkeypatch.setattr("tests.ops.cases.DK", 70)  # more than one tile
    case = draw("mlstm", 1, state=state, steps=steps, input_gate=input_gate)
    if steps:
        case = case._replace(mask=torch.tensor([[1], [0], [1]]).bool(), reset=torch.tensor([[1], [1], [0]]).bool())
    low = on(case, device, torch.float32)
    with torch.no_grad():
        found = [x.double().cpu() for x in leaves(low.whole("triton"))]
    assert_close(found, leaves(on(low, torch.device("cpu"), torch.float64).whole("reference")), SINGLE)


def test_float64_is_exact(device):
    case = draw("mlstm", 20)
    found, expected = (leaves(case.whole(backend)) for backend in ("triton", "reference"))
    assert_close(found, expected, 1e-12)


def test_heads_too_wide_run_in_torch(device, monkeypatch):
    monkeypatch.setattr("tests.ops.cases.DV", 513)
    case = on(draw("mlstm", 3), device, torch.float32)
    for x, y in zip(*(leaves(case.whole(backend)) for backend in ("triton", "torch")), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
def test_the_final_stabiliser_sends_its_gradient_to_the_largest_log_weight(steps, state):
    case = draw("mlstm", 9, steps=steps, state=state)
    final = case.whole("reference")[1].m
    dm = torch.randn_like(final)
    *_, i, f = case.inputs
    sources = [i, f] + ([case.state.m] if state else [])
    expected = torch.autograd.grad((final * dm).sum(), sources, allow_unused=True)
    found = through_final_m(dm, i.detach(), f.detach(), case.state.m.detach() if state else None, case.mask, case.reset)
    for x, y in zip(found, expected, strict=False):
        torch.testing.assert_close(x.double(), torch.zeros_like(x).double() if y is None else y, rtol=1e-5, atol=1e-6)


def test_an_mlstm_is_one_graph_with_the_same_results(device):
    torch._dynamo.reset()
    inputs = on(draw("mlstm", 33, state=False, steps=False), device, torch.float32).inputs

    def run(*x):
        return mlstm(*x, backend="triton")[0]

    expected, actual = run(*inputs), torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(actual, expected)
    for a, e in zip(*(torch.autograd.grad(x.square().sum(), inputs) for x in (actual, expected)), strict=True):
        torch.testing.assert_close(a, e)
