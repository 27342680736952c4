"""What the operators promise of states, masks, resets and arguments, whatever the backend."""

import pytest
import torch
from torch.nn.functional import logsigmoid

from exlstm.ops import hmlstm, mlstm, slstm
from tests.ops.cases import BATCH, DK, DV, HEADS, LEVELS, assert_same, draw, leaves

ALL = [(o, b) for o in ("mlstm", "hmlstm", "slstm") for b in ("reference", "torch", "cpu")]
TOLERANCE = 1e-9  # see test_backends_agree


@pytest.mark.parametrize(("operator", "backend"), ALL)
@pytest.mark.parametrize("cuts", [[1], [64], [1, 2, 3, 50], [37, 101]])
def test_running_in_pieces_equals_running_whole(operator, backend, cuts):
    case = draw(operator, 130)
    assert_same(leaves(case.in_pieces(backend, cuts)), leaves(case.whole(backend)), TOLERANCE)


@pytest.mark.parametrize(("operator", "backend"), ALL)
def test_single_steps_equal_running_whole(operator, backend):
    case = draw(operator, 70)
    assert_same(leaves(case.in_pieces(backend, range(1, 70))), leaves(case.whole(backend)), TOLERANCE)


@pytest.mark.parametrize(("operator", "backend"), ALL)
@pytest.mark.parametrize("left", [0, 5, 64])
def test_padding_on_either_side_changes_nothing(operator, backend, left):
    case = draw(operator, 40, steps=False)
    padded = [torch.cat([torch.randn_like(x)[:, :1].repeat_interleave(left, 1), x, x[:, :9]], 1) for x in case.inputs]
    mask = torch.zeros(BATCH, left + 40 + 9, dtype=torch.bool)
    mask[:, left : left + 40] = True
    h, state = case.whole(backend)
    h_padded, state_padded = case._replace(inputs=tuple(padded), mask=mask).whole(backend)
    assert_same([h_padded[:, left : left + 40], *leaves(state_padded)], [h, *leaves(state)], TOLERANCE)
    assert not bool(h_padded[~mask].any())


@pytest.mark.parametrize(("operator", "backend"), ALL)
def test_documents_packed_in_a_row_equal_documents_alone(operator, backend):
    case = draw(operator, 60, state=False, steps=False)
    reset = torch.zeros(BATCH, 60, dtype=torch.bool)
    reset[:, [0, 17, 44]] = True
    packed, state = case._replace(reset=reset).whole(backend)
    alone = []
    for begin, end in ((0, 17), (17, 44), (44, 60)):
        part = case._replace(inputs=tuple(x[:, begin:end] for x in case.inputs))
        h, last = part.whole(backend)
        alone.append(h)
    assert_same([packed, *leaves(state)], [torch.cat(alone, 1), *leaves(last)], TOLERANCE)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_a_forget_cap_bounds_what_reaches_the_forget_gates(backend):
    case = draw("slstm", 40)
    (x,), silent = case.inputs, torch.zeros(4, HEADS, DK, DK, dtype=torch.float64)
    bounded = torch.cat([x[:, :, :1], x[:, :, 1:2].clamp(max=0.5), x[:, :, 2:]], 2)
    capped = case._replace(shared=(silent,)).whole(backend, forget_cap=0.5)
    assert_same(leaves(capped), leaves(case._replace(inputs=(bounded,), shared=(silent,)).whole(backend)), TOLERANCE)
    with_recurrence = leaves(case.whole(backend, forget_cap=0.5))[0]  # capped after the recurrent part is added
    assert not torch.allclose(with_recurrence, leaves(case._replace(inputs=(bounded,)).whole(backend))[0])


@pytest.mark.parametrize(("operator", "backend"), ALL)
def test_a_reset_on_an_absent_step_still_empties_the_memory(operator, backend):
    case = draw(operator, 5, steps=False)
    mask, reset = torch.ones(BATCH, 5, dtype=torch.bool), torch.zeros(BATCH, 5, dtype=torch.bool)
    mask[:, 3:], reset[:, 4] = False, True
    _, state = case._replace(mask=mask, reset=reset).whole(backend)
    assert not any(bool(x.any()) for x in leaves(state))


@pytest.mark.parametrize(("operator", "backend"), ALL)
def test_a_row_without_any_step_keeps_its_state(operator, backend):
    case = draw(operator, 5, steps=False)
    mask = torch.rand(BATCH, 5) < 0.5
    mask[1] = False
    _, state = case._replace(mask=mask).whole(backend)
    for before, after in zip(case.state, state, strict=True):
        assert torch.equal(before[1], after[1])
    mask[:] = False
    h, state = case._replace(mask=mask).whole(backend)
    assert not bool(h.any())
    assert_same(leaves(state), leaves(case.state), 0.0)


@pytest.mark.parametrize(("operator", "backend"), ALL)
def test_a_batch_without_any_step_sends_back_nothing_instead_of_an_error(operator, backend):
    case = draw(operator, 5, state=False, steps=False)
    h, _ = case._replace(mask=torch.zeros(BATCH, 5, dtype=torch.bool)).whole(backend)
    slopes = torch.autograd.grad(h.sum(), case.inputs, allow_unused=True)
    assert not any(bool(slope.any()) for slope in slopes if slope is not None)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("time", [1, 70])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("steps", [False, True])
def test_outputs_and_their_gradients_do_not_depend_on_whether_the_memory_is_wanted(backend, time, state, steps):
    case = draw("hmlstm", time, state=state, steps=steps)
    alone = case._replace(operator=lambda *x, **options: hmlstm(*x, return_state=False, **options)[:1])
    for found, expected in zip(*(x.outputs_and_gradients(backend, slice(1)) for x in (alone, case)), strict=True):
        assert_same(found, expected[: len(found)], 0.0)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("levels", [1, 2, 5, 12])
def test_hmlstm_with_level_zero_is_mlstm(backend, levels):
    case = draw("mlstm", 200, state=False)
    level = torch.zeros(BATCH, 200, HEADS, levels, dtype=torch.float64)
    expected, flat = mlstm(*case.inputs, mask=case.mask, reset=case.reset, backend="reference")
    h, state = hmlstm(*case.inputs, level, mask=case.mask, reset=case.reset, backend=backend)
    assert_same([h], [expected], TOLERANCE)
    # The slots together are the flat memory: sum_b exp(m_b) C_b = exp(m) C.
    summed = (state.m.exp()[..., None, None] * state.C).sum(2)
    assert_same([summed], [flat.m.exp()[..., None, None] * flat.C], TOLERANCE)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("levels", [1, 2, 4, 9])
def test_hmlstm_is_its_dense_definition(backend, levels):
    """The T x T form of the definition, written out."""
    time = 130
    q, k, v, i, f, _ = draw("hmlstm", time, state=False, steps=False).inputs
    level = torch.randn(BATCH, time, HEADS, levels, dtype=torch.float64)
    F = logsigmoid(f).cumsum(1).permute(0, 2, 1)
    t = torch.arange(time)
    xor = t[:, None] ^ t
    which = torch.where(xor == 0, 0, 1 + xor.clamp(min=1).double().log2().floor().long()).clamp(max=levels - 1)
    chosen = level.permute(0, 2, 1, 3).gather(3, which.expand(BATCH, HEADS, time, time))
    log = F[..., :, None] - F[..., None, :] + i.permute(0, 2, 1)[..., None, :] + chosen
    log = log.masked_fill(t[:, None] < t, -torch.inf)
    m = torch.maximum(F, log.amax(-1))
    w = (log - m[..., None]).exp() * torch.einsum("bthk,bshk->bhts", q, k) / DK**0.5
    floor = torch.maximum(w.sum(-1).abs(), (-m).exp()) + 1e-6
    expected = torch.einsum("bhts,bshd->bthd", w, v) / floor.permute(0, 2, 1)[..., None]
    h, _ = hmlstm(q, k, v, i, f, level, backend=backend)
    assert_same([h], [expected], TOLERANCE)


def test_slstm_first_step_takes_its_stabiliser_from_the_input_gate_per_element():
    case = draw("slstm", 1, steps=False)
    empty = case.state.n == 0
    assert bool(empty.any())
    assert not bool(empty.all())
    x, (r,) = case.inputs[0], case.shared
    i = x[:, 0, 0] + torch.einsum("bhd,hde->bhe", case.state.h, r[0])
    state = case.whole("torch")[1]
    assert_same([state.m[empty], state.n[empty]], [i[empty], torch.ones_like(i[empty])], 1e-12)


def good(operator):
    case = draw(operator, 4, state=False, steps=False)
    return [*case.inputs, *case.shared]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mlstm(good("mlstm")[0], *good("mlstm")[2:3], *good("mlstm")[2:]), r"k must have shape"),
        (lambda: mlstm(*(x[:, :0] for x in good("mlstm"))), "at least one time step"),
        (
            lambda: mlstm(*good("mlstm")[:3], *(x.long() for x in good("mlstm")[3:])),
            "must be of floating point",
        ),
        (lambda: mlstm(*good("mlstm"), mask=torch.ones(BATCH, 4)), "mask must be bool"),
        (
            lambda: mlstm(*good("mlstm"), reset=torch.ones(BATCH, 5, dtype=torch.bool)),
            "reset must have shape",
        ),
        (lambda: mlstm(*good("mlstm"), input_gate="relu"), "input_gate must be"),
        (lambda: mlstm(*good("mlstm"), backend="fast"), "backend must be"),
        (lambda: mlstm(*good("mlstm"), chunk_size=0), "chunk_size must be at least 1"),
        (lambda: hmlstm(*good("hmlstm"), chunk_size=48), "power of two"),
        (lambda: hmlstm(*good("hmlstm")[:5], torch.zeros(BATCH, 4, HEADS)), r"level must have shape"),
        (lambda: slstm(good("slstm")[0], torch.zeros(4, HEADS, DK, DV)), r"r must have shape \[4, H, D, D\]"),
        (
            lambda: slstm(good("slstm")[0], torch.zeros(4, HEADS, DK, DK), forget_cap=float("nan")),
            "forget_cap must be a number or None",
        ),
        (
            lambda: hmlstm(*good("hmlstm"), draw("hmlstm", 3).state._replace(m=torch.zeros(BATCH, HEADS, LEVELS + 1))),
            "state.m must have shape",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
