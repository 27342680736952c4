"""The Triton kernels of the hierarchical mLSTM compute what the float64 reference computes: outputs, states, gradients.

Tolerances are of the norm of a tensor. float32: sums of up to 65 products, each rounded by 2^-24, and of logarithms of
up to some hundreds, whose rounding (2^-24 x 100 = 6e-6) is that of the weights; gradients of gates are differences of
such sums, up to ten times as large as they are: 1e-4. bfloat16 and float16: operands are rounded by 2^-9 and 2^-12,
several times in a row in a gradient: 3e-2 and 4e-3.
"""

import pytest
import torch

from exlstm.ops import HMLSTMState, hmlstm
from exlstm.ops.chunkwise.layout import Layout
from exlstm.ops.triton import hmlstm as triton_hmlstm
from exlstm.ops.triton import hmlstm_call, hmlstm_tables, hmlstm_tiles
from tests.ops.cases import draw, leaves
from tests.ops.triton.agreement import assert_close, bits, compared, needs_a_gpu, on

SINGLE = 1e-4
pytestmark = [  # of the interpreter, which computes with NumPy
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Two heads of two rows: the interpreter is slow."""
    monkeypatch.setattr("tests.ops.cases.BATCH", 2)


def check(case, device, read=slice(None), **options):
    found, expected = compared(case, device, torch.float32, read, **options)
    if case.state is not None:  # outputs know of the sum of log f before the call by eps alone, and that is left out
        torch.testing.assert_close(found.pop(), expected.pop(), rtol=SINGLE, atol=1e-5)
    assert_close(found, expected, SINGLE)


@pytest.mark.parametrize("time", [1, 2, 15, 16, 17, 65])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_outputs_states_and_gradients_equal_the_reference(device, time, state, steps):
    case = draw("hmlstm", time, state=state, steps=steps)
    check(case, device, chunk_size=16)


@pytest.mark.parametrize("read", [slice(1), slice(1, None)], ids=["output", "memory"])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
def test_gradients_are_right_where_only_the_output_or_only_the_memory_is_read(device, read, state):
    case = draw("hmlstm", 40, state=state)
    check(case, device, read, chunk_size=16)


@pytest.mark.parametrize("levels", [1, 2, 5, 9])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
def test_fewer_levels_than_a_chunk_has_and_more_than_are_needed(device, levels, state, monkeypatch):
    monkeypatch.setattr("tests.ops.cases.LEVELS", levels)
    case = draw("hmlstm", 36, state=state)
    check(case, device, chunk_size=16)


def test_a_state_of_many_chunks(device, monkeypatch):
    monkeypatch.setattr("tests.ops.cases.HEADS", 1)
    case = draw("hmlstm", 21, steps=False)
    past = draw("hmlstm", 117, state=False)  # masked at random, so that rows stand at different positions
    held = past.whole("reference")[1]
    case = case._replace(state=HMLSTMState(*(x.detach().requires_grad_() for x in held[:4]), held.position))
    check(case, device, chunk_size=16)


@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_outputs_and_their_gradients_do_not_depend_on_whether_the_memory_is_wanted(device, state, steps):
    case = on(draw("hmlstm", 40, state=state, steps=steps), device, torch.float32)
    alone = case._replace(operator=lambda *x, **options: hmlstm(*x, return_state=False, **options)[:1])
    found, expected = (x.outputs_and_gradients("triton", slice(1), chunk_size=16) for x in (alone, case))
    assert len(found[0]) == 1
    assert torch.equal(found[0][0], expected[0][0])
    assert all(map(torch.equal, found[1], expected[1]))


@pytest.fixture
def nothing_is_zero_by_chance():
    """PyTorch fills what is allocated and not written with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.filterwarnings("ignore:.*deterministic implementation:UserWarning")  # of sums on a GPU
def test_rows_without_any_present_step_keep_their_state(device, state, nothing_is_zero_by_chance):
    case = draw("hmlstm", 18, state=state, steps=False)
    mask, reset = torch.ones(2, 18, dtype=torch.bool), torch.zeros(2, 18, dtype=torch.bool)
    mask[0], mask[1, 9:], reset[1, 12] = False, False, True  # row 1's last document has no step
    case = case._replace(mask=mask, reset=reset)
    check(case, device, chunk_size=16)
    nothing = case._replace(mask=torch.zeros_like(mask))
    check(nothing, device, chunk_size=16)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_precision_keeps_float32_states_and_stays_close(device, dtype, tolerance):
    needs_a_gpu(device, dtype)
    case = draw("hmlstm", 40, gates=1.0)
    assert_close(*compared(case, device, dtype, chunk_size=16), tolerance)
    h, state = on(case, device, dtype).whole("triton")
    assert h.dtype == dtype
    assert all(x.dtype == torch.float32 for x in leaves(state))


@pytest.mark.parametrize(("dk", "dv"), [(17, 40), (24, 5)])
def test_widths_that_no_tile_divides_equal_the_reference(device, dk, dv, monkeypatch):
    monkeypatch.setattr("tests.ops.cases.DK", dk)
    monkeypatch.setattr("tests.ops.cases.DV", dv)
    check(draw("hmlstm", 33), device, chunk_size=16)


def test_tiles_of_part_of_the_columns_and_steps_give_the_same(device, monkeypatch):
    table = hmlstm_tiles._FLOAT32
    monkeypatch.setattr("tests.ops.cases.HEADS", 1)
    small = [tile._replace(blocks=dict.fromkeys(tile.blocks, 16)) for tile in table[1:]]
    wide = {"B": 16, "BT": 32, "BS": 32}  # blocks of scores are smaller than those that read them
    small = [t._replace(blocks={**t.blocks, **{n: x for n, x in wide.items() if n in t.blocks}}) for t in small]
    monkeypatch.setattr(hmlstm_tiles, "_FLOAT32", hmlstm_tiles.Tiles(64, *small))
    monkeypatch.setattr(hmlstm_tiles, "_fitted", hmlstm_tiles._fitted.__wrapped__)  # which remembers the others
    monkeypatch.setattr("tests.ops.cases.DK", 24)
    monkeypatch.setattr("tests.ops.cases.DV", 33)
    check(draw("hmlstm", 70), device)


@pytest.mark.parametrize("small", [0, 1])
def test_gradients_of_large_memories_are_the_same(device, small, monkeypatch):
    monkeypatch.setattr(hmlstm_call, "SMALL", small)
    monkeypatch.setattr("tests.ops.cases.HEADS", 1)
    check(draw("hmlstm", 70), device, chunk_size=16)


@pytest.mark.parametrize("scale", [30.0, 100.0])
def test_extreme_gates_stay_finite(device, scale):
    for x in bits(draw("hmlstm", 40, gates=scale), device, torch.float32, chunk_size=16):
        assert bool(x.isfinite().all())


@pytest.mark.parametrize("i", [-100.0, 100.0])
@pytest.mark.parametrize("f", [-100.0, 100.0])
def test_whole_sequences_of_extreme_gates_equal_the_reference(device, i, f):
    case = draw("hmlstm", 33, state=False, steps=False)
    q, k, v, gate, _, level = case.inputs
    case = case._replace(inputs=(q, k, v, torch.full_like(gate, i), torch.full_like(gate, f), level))
    low = on(case, device, torch.float32)
    expected = leaves(on(low, torch.device("cpu"), torch.float64).whole("reference"))
    found = [x.double().cpu() for x in leaves(low.whole("triton", chunk_size=16))]
    # Nothing fades, and where the sum of 33 products comes to a thousandth of its terms, as it does in one step here,
    # its inverse is off by 33 x 2^-24 x 1000 = 2e-3.
    assert_close(found, expected, 1e-2)


def test_steps_that_weigh_nothing_at_all(device):
    case = draw("hmlstm", 40, state=False)
    q, k, v, i, f, level = case.inputs
    i = i.detach().clone()
    i[:, 3:36] = -torch.inf
    case = case._replace(inputs=(q, k, v, i.requires_grad_(), f, level))
    for x in bits(case, device, torch.float32, chunk_size=16):
        assert bool(x.isfinite().all())


def test_two_runs_give_the_same_bits(device):
    case = draw("hmlstm", 40)
    for x, y in zip(*(bits(case, device, torch.float16, chunk_size=16) for _ in range(2)), strict=True):
        assert torch.equal(x, y)


def test_pieces_give_what_the_whole_gives(device):
    case = on(draw("hmlstm", 40), device, torch.float32)
    whole = case.whole("triton", chunk_size=16)
    pieces = case.in_pieces("triton", (1, 17, 30), chunk_size=16)
    assert_close(*([x.double() for x in leaves(of)] for of in (pieces, whole)), SINGLE)


def test_float64_is_exact(device):
    case = draw("hmlstm", 20)
    found, expected = (leaves(case.whole(backend)) for backend in ("triton", "reference"))
    assert_close(found, expected, 1e-12)


def test_heads_too_wide_run_in_torch(device, monkeypatch):
    monkeypatch.setattr("tests.ops.cases.DV", 513)
    case = on(draw("hmlstm", 3), device, torch.float32)
    for x, y in zip(*(leaves(case.whole(backend)) for backend in ("triton", "torch")), strict=True):
        assert torch.equal(x, y)


def test_queries_of_another_dtype_than_keys_and_values(device):
    case = on(draw("hmlstm", 70, steps=False, state=False), device, torch.float32)  # chunks depend on the dtype
    q, *rest = (x.detach() for x in case.inputs)
    found, expected = (leaves(triton_hmlstm.hmlstm(x, *rest, None)) for x in (q.half(), q.half().float()))
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)


def test_no_state_is_an_empty_one(device):
    case = on(draw("hmlstm", 33, steps=False, state=False), device, torch.float32)
    options = {"chunk_size": 16}
    found = triton_hmlstm.hmlstm(*case.inputs, None, **options)
    for x, y in zip(leaves(found), leaves(case.whole("triton", **options)), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_what_the_final_stabilisers_and_decays_send_back(state, steps):
    case = draw("hmlstm", 45, state=state, steps=steps)
    final = case.whole("reference")[1]
    dm, d_decay = torch.randn_like(final.m), torch.randn_like(final.log_decay)
    *_, i, f, _ = case.inputs
    sources = [i, f] + ([case.state.m] if state else [])
    total = (final.m * dm).sum() + (final.log_decay * d_decay).sum()
    expected = torch.autograd.grad(total, sources, allow_unused=True)
    held, m0, begun = torch.zeros(0, 3), None, None
    if state:
        held, m0 = triton_hmlstm._held(case.state, 16).T, case.state.m.detach()
        begun = case.state.position & ((1 << (m0.shape[-1] - 1)) - 1)
    found = hmlstm_tables.through_final_m(dm, d_decay, i.detach(), f.detach(), m0, held, begun, case.mask, case.reset)
    for x, y in zip(found, expected, strict=False):
        torch.testing.assert_close(x, torch.zeros_like(x) if y is None else y)


@pytest.mark.parametrize("state", [False, True])
def test_sums_over_more_chunks_than_are_taken_at_once_are_the_same(device, state, monkeypatch):
    monkeypatch.setattr(hmlstm_call, "SUMMED", 16)
    monkeypatch.setattr("tests.ops.cases.HEADS", 1)
    check(draw("hmlstm", 150, state=state, steps=state), device, chunk_size=16)


def test_every_memory_is_part_of_one_other_and_read_by_the_chunks_after_it():
    layout = Layout.of(1, 208, 16, torch.zeros(1, dtype=torch.int64), None, None)
    tables, counts = hmlstm_tables.tables_of(layout, 1, 9, None)
    for c in range(13):
        p, reads = c, []
        while p:
            reads.append(p - 1)
            p &= p - 1
        assert tables.read[c, : tables.reads[c]].tolist() == sorted(reads)
        parent = (c + 1) + ((c + 1) & -(c + 1)) - 1
        assert tables.parent[c] == (parent if parent < 13 else -1)
        first, last, column = tables.readers[:, c].tolist()
        assert [r for r in range(13) if c in tables.read[r, : tables.reads[r]]] == list(range(first, last))
        assert all(tables.read[r, column] == c for r in range(first, last))
    assert counts == (1, 2, 3, 7)[-len(counts) :]


def test_a_hierarchical_mlstm_is_one_graph_with_the_same_results(device):
    torch._dynamo.reset()
    inputs = on(draw("hmlstm", 33, state=False, steps=False), device, torch.float32).inputs

    def run(*x):
        return triton_hmlstm.hmlstm(*x, None, chunk_size=16)[0]

    expected, actual = run(*inputs), torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(actual, expected)
    for a, e in zip(*(torch.autograd.grad(x.square().sum(), inputs) for x in (actual, expected)), strict=True):
        torch.testing.assert_close(a, e)
