"""Each instruction of a step program computes what its operator computes, at sizes that fit no vector."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from exlstm.layers.attention import AttentionState, windowed_attention
from exlstm.ops import HMLSTMState, MLSTMState, SLSTMState, hmlstm, mlstm, slstm
from exlstm.ops.cpu.build import find_compiler
from exlstm.ops.cpu.step import CPUProgram
from exlstm.ops.program import Program, Ring
from exlstm.ops.triton import launch
from exlstm.ops.triton.program import TritonProgram

KINDS = ("C++", "Triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=KINDS)
def new(request):
    """How to make a program for so many rows, of either kind: `new(batch, weights=)`."""
    return _in_cpp if request.param == "C++" else _in_triton


def _in_cpp(batch: int, dtype: torch.dtype = torch.float64, **options) -> Program:
    if find_compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    return CPUProgram(batch, dtype, **options)


def _in_triton(batch: int, **options) -> Program:
    if reason := launch.obstacle(DEVICE):
        pytest.skip(reason)
    return TritonProgram(batch, torch.float32, device=DEVICE, **options)


def random(p: Program, *shape: int) -> torch.Tensor:
    """Random numbers as the program's registers hold them."""
    return torch.randn(*shape, dtype=p.dtype, device=p.device)


def filled(x: torch.Tensor) -> torch.Tensor:
    """The register `x` with random numbers in it."""
    return x.copy_(torch.randn_like(x))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the rounding of sums of some hundred numbers of that type."""
    tolerance = 1e-11 if actual.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(actual, expected.to(actual), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("outputs", [1, 7, 16, 25, 40, 64, 100, 129])
@pytest.mark.parametrize("batch", [1, 2, 3, 6])
def test_linear_maps_every_row_at_any_size(new, batch, outputs):
    for inputs, blocks in ((1, 1), (13, 3), (32, 2)):
        p = new(batch)
        x, weight, bias, before = filled(p.register(blocks * inputs)), random(p, blocks, outputs, inputs), None, None
        if blocks > 1:
            bias, before = random(p, blocks, outputs), filled(p.register(blocks * outputs))
        y = p.linear(x, weight, bias, add=before)
        p.run()
        expected = torch.einsum("bki,koi->bko", x.unflatten(1, (blocks, inputs)), weight)
        if bias is not None and before is not None:
            expected = expected + bias + before.unflatten(1, (blocks, outputs))
        close(y, expected.flatten(1))


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
def test_narrow_weights_are_off_by_half_a_unit_at_most(new, weights):
    for outputs, batch in itertools.product((1, 25, 40, 64, 129), (1, 3)):
        p = new(batch, weights=weights)
        x, weight = filled(p.register(30)), random(p, 2, outputs, 15)
        weight[0, 0] = 0
        y, exact = p.linear(x, weight), p.linear(x, weight, exact=True)
        p.run()
        # A unit is a 127th of the row's largest weight in int8, the eighth significant bit of each in bfloat16.
        largest = weight.abs().amax(-1, keepdim=True).expand_as(weight)
        unit = largest / 127 if weights == "int8" else weight.abs() / 2**7
        if isinstance(p, TritonProgram) and weights == "bfloat16" and batch > 1:  # x and y are rounded as well
            unit = 4 * unit
        bound = torch.einsum("bki,koi->bko", x.abs().unflatten(1, (2, 15)), unit / 2).flatten(1)
        slack = 1e-9 if p.dtype == torch.float64 else 1e-4  # of the products themselves
        assert ((y - exact).abs() <= bound * (1 + slack) + slack).all()
        assert (y[:, 0] == 0).all()
        if not (isinstance(p, TritonProgram) and weights == "int8" and batch > 1):  # which takes them in full
            assert (y != exact).any()


@pytest.mark.parametrize("batch", [1, 2])
def test_results_can_go_beside_one_another(new, batch):
    p = new(batch)
    x, first, second, out = filled(p.register(6)), random(p, 3, 4, 2), random(p, 3, 5, 2), p.register(27)
    p.linear(x, first, out=out, stride=9)
    p.linear(x, second, out=out[:, 4:], stride=9)
    p.run()
    expected = torch.einsum("bki,koi->bko", x.unflatten(1, (3, 2)), torch.cat([first, second], 1))
    close(out, expected.flatten(1))


@pytest.mark.parametrize("width", [5, 16, 36, 1030])
def test_elementwise_instructions_and_norms(new, width):
    p = new(3)
    x, other = filled(p.register(width)), filled(p.register(width))
    weight, table, tokens = random(p, width), random(p, 7, width), p.register(dtype=torch.int64)
    tokens.copy_(torch.tensor([6, 0, 3]))
    pairs = [
        (p.embed(tokens, table), table[tokens]),
        (p.norm(x, weight, 1e-3), F.layer_norm(x, (width,), weight, None, 1e-3)),
        (p.norm(x, weight, 1e-3, centred=False), F.rms_norm(x, (width,), weight, 1e-3)),
        (p.gate("silu", x, other), F.silu(x) * other),
        (p.gate("gelu", x, other), F.gelu(x) * other),
        (p.gate("sigmoid", x), x.sigmoid()),
        (p.multiply_add(x, other), x + other),
        (p.multiply_add(x, other, weight), x + weight * other),
        (p.soft_cap(x, 2.0), 2 * (x / 2).tanh()),
    ]
    p.run()
    for actual, expected in pairs:
        close(actual, expected)


def test_a_norm_of_heads_norms_each_by_itself(new):
    p = new(2)
    x, weight = filled(p.register(3 * 7)), random(p, 21)
    y = p.norm(x, weight, 1e-5, heads=3)
    p.run()
    close(y, F.layer_norm(x.unflatten(1, (3, 7)), (7,), None, None, 1e-5).flatten(1) * weight)


@pytest.mark.parametrize("size", [3, 4])
def test_small_blocks_are_mapped_by_themselves(new, size):
    p = new(2)
    x, weight = filled(p.register(5 * size)), random(p, 5, size, size)
    y = p.headwise(x, weight, out=p.register(5 * size))
    p.run()
    close(y, torch.einsum("bki,kio->bko", x.unflatten(1, (5, size)), weight).flatten(1))


def test_gelu_and_gates_in_float32_are_exact_to_rounding():
    p = _in_cpp(1, torch.float32)
    x = p.register(4001)
    x.copy_(torch.linspace(-20, 20, 4001))
    results = {kind: p.gate(kind, x) for kind in ("silu", "gelu", "sigmoid")}
    p.run()
    for kind, actual in results.items():
        exact = {"silu": F.silu, "gelu": F.gelu, "sigmoid": torch.sigmoid}[kind](x.double())
        # The error function is good to 1.5e-7, as are exponentials; what is multiplied by x errs in proportion.
        assert ((actual - exact).abs() <= 3e-7 * (1 + x.abs())).all()


@pytest.mark.parametrize(("dk", "dv"), [(5, 3), (16, 70), (8, 16)])
@pytest.mark.parametrize("kind", ["mlstm", "hmlstm"])
def test_matrix_memories_step_as_their_operators(new, kind, dk, dv):
    p = new(batch := 3)
    heads, levels, time = 2, 4, 20  # beyond the 8 steps of which the third level tells two halves apart
    place = {"dtype": p.state_dtype, "device": p.device}
    q, k, v, i, f, level = (p.register(heads * n) for n in (dk, dk, dv, 1, 1, levels))
    if kind == "mlstm":
        state = MLSTMState.empty(batch, heads, dk, dv, **place)
        h = p.mlstm(q, k, v, i, f, state)
    else:
        state = HMLSTMState.empty(batch, heads, levels, dk, dv, **place)
        h = p.hmlstm(q, k, v, i, f, level, state)
    registers = (q, k, v, i, f) if kind == "mlstm" else (q, k, v, i, f, level)
    sequences = [3 * random(p, batch, time, r.shape[1]) for r in registers]
    mask = torch.rand(batch, time, device=p.device) < 0.9
    outputs = []
    for t in range(time):
        for register, x in zip(registers, sequences, strict=True):
            register.copy_(x[:, t])
        p.run(mask[:, t])
        outputs.append(h.clone())
    by_head = [x.unflatten(-1, (heads, -1)) for x in sequences]
    by_head[3:5] = sequences[3:5]
    operator = mlstm if kind == "mlstm" else hmlstm
    expected, final = operator(*(x.double() for x in by_head), mask=mask, backend="reference")
    found, expected = torch.stack(outputs, 1)[mask], expected.flatten(2)[mask]
    if found.dtype == torch.float64:
        close(found, expected)
    else:  # what they are divided by may be a small difference of large numbers: then float32 can do no better
        usual, _ = operator(*by_head, mask=mask, backend="reference")
        assert (found - expected).norm() <= 4 * (usual.flatten(2)[mask] - expected).norm()
    for ours, theirs in zip(state, final, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("cap", [None, 0.5])
def test_slstm_steps_as_its_operator_from_an_empty_and_from_a_held_memory(new, cap):
    batch, heads, width, time = 2, 3, 5, 12
    p = new(batch)
    gates = p.register(heads * 4 * width)
    state = SLSTMState.empty(batch, heads, width, dtype=p.state_dtype, device=p.device)
    h = p.slstm(gates, state, forget_cap=cap)
    x = 4 * random(p, batch, time, heads, 4, width)
    for t in range(time):
        gates.copy_(x[:, t].flatten(1))
        p.run()
    nothing = torch.zeros(4, heads, width, width, dtype=torch.float64, device=p.device)
    expected, final = slstm(x.double().transpose(2, 3), nothing, forget_cap=cap, backend="reference")
    close(h, expected[:, -1].flatten(1))
    for ours, theirs in zip(state, final, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("wrong", [7, -1, 2**40, -(2**62)])
@pytest.mark.parametrize(("batch", "width"), [(1, 1030), (3, 1030), (17, 5)])
def test_a_token_out_of_range_changes_no_state_in_triton(batch, width, wrong):
    p = _in_triton(batch)
    state = SLSTMState(*(filled(p.register(1, width)).abs_() for _ in range(4)))
    h = p.slstm(filled(p.register(4 * width)), state)
    # Nor what instructions before it change, and whichever of several tables it is for.
    tokens, table = [p.register(dtype=torch.int64) for _ in range(2)], random(p, 7, width)
    embedded = [p.embed(x, table) for x in tokens]
    right, mask = torch.arange(batch, device=p.device) % 7, torch.arange(batch, device=p.device) % 2 == 0
    for x in tokens:
        x.copy_(right)
    for bad, given in itertools.product((0, 1), (None, mask)):
        before = [part.clone() for part in state]
        tokens[bad][-1] = wrong
        p.run(given)
        assert all(map(torch.equal, state, before))
        close(embedded[bad], table[:1].expand(batch, width))
        tokens[bad].copy_(right)
        p.run(given)
        changed = (h != before[-1].flatten(1)).any(1)
        assert torch.equal(changed, torch.ones_like(mask) if given is None else mask)
        close(embedded[bad], table[right])


@pytest.mark.parametrize(("slots", "width"), [(0, 4), (1, 4), (6, 2), (20, 40)])
def test_attention_sees_a_window_and_distances_alone(new, slots, width):
    batch, heads, time = 2, 3, 2 * slots + 3
    p = new(batch)
    q, k, v = (p.register(heads * width) for _ in range(3))
    ring = Ring(
        p.register(heads, slots, width),
        p.register(heads, slots, width),
        p.register(slots, dtype=torch.bool),
        p.register(dtype=torch.int64),
    )
    y = p.attend(q, k, v, ring)
    x = random(p, 3, batch, time, heads, width)
    outputs = []
    for t in range(time):
        for register, value in zip((q, k, v), x[:, :, t].flatten(2), strict=True):
            register.copy_(value)
        p.run()
        outputs.append(y.clone())
    nothing = AttentionState(*random(p, 2, batch, slots, heads, width), torch.zeros(batch, slots, device=p.device))
    document = torch.cat([nothing.held, torch.ones(batch, time, device=p.device)], 1).long()
    expected = windowed_attention(x[0], torch.cat([nothing.k, x[1]], 1), torch.cat([nothing.v, x[2]], 1), document)
    close(torch.stack(outputs, 1), expected.flatten(2))
    assert bool(ring.held.all())
