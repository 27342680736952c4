"""What every layer promises of time: state, mask, reset and causality."""

import copy

import pytest
import torch
from layer_cases import LAYERS, MIXERS, assert_same, inputs, steps, stirred, tensors
from torch.utils.checkpoint import checkpoint

from exlstm.layers import map_state

TIME = 37


@pytest.fixture(params=LAYERS)
def layer(request):
    return stirred(LAYERS[request.param]())


@pytest.mark.parametrize("sizes", [(1,) * TIME, (5, 1, 20, 2, 9), (36, 1)], ids=["steps", "pieces", "last step"])
def test_pieces_give_what_the_whole_gives(layer, sizes):
    x, mask, reset = inputs(3, TIME), steps(3, TIME, 0.7), steps(3, TIME, 0.15)
    whole, final = layer(x, mask=mask, reset=reset)
    state, outputs = None, []
    for piece in zip(*(s.split(sizes, 1) for s in (x, mask, reset)), strict=True):
        y, state = layer(piece[0], state, mask=piece[1], reset=piece[2])
        outputs.append(y)
    assert_same(torch.cat(outputs, 1), whole)
    assert_same(state, final)


def test_outputs_do_not_depend_on_whether_the_state_is_wanted(layer):
    x, mask, reset = inputs(3, TIME), steps(3, TIME, 0.7), steps(3, TIME, 0.15)
    _, before = layer(inputs(3, 5))
    for state, marks in ((None, {}), (before, {}), (None, {"mask": mask, "reset": reset})):
        y, nothing = layer(x, state, **marks, return_state=False)
        assert nothing is None
        assert_same(y, layer(x, state, **marks)[0])


def test_pieces_give_the_gradients_of_the_whole(layer):
    x, mask, weight = inputs(2, 12), steps(2, 12, 0.8), inputs(2, 12)
    whole = layer(x, mask=mask)[0]
    head, state = layer(x[:, :5], mask=mask[:, :5])
    tail = layer(x[:, 5:], state, mask=mask[:, 5:])[0]
    parameters = list(layer.parameters())
    expected = torch.autograd.grad((whole * weight).sum(), parameters)
    assert_same(torch.autograd.grad((torch.cat([head, tail], 1) * weight).sum(), parameters), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activations_computed_anew_give_the_same_gradients(layer, reentrant):
    x, parameters = inputs(2, 12).requires_grad_(), list(layer.parameters())
    expected = torch.autograd.grad(layer(x)[0].square().sum(), [x, *parameters])
    checkpoint(lambda x: layer(x)[0], x, use_reentrant=reentrant).square().sum().backward()
    assert_same([x.grad, *(parameter.grad for parameter in parameters)], expected)


def test_masked_steps_count_as_absent_wherever_they_lie(layer):
    x, mask = inputs(4, TIME), steps(4, TIME, 0.6)
    mask[0] = torch.arange(TIME) < 20
    mask[1] = torch.arange(TIME) >= 20
    mask[2] = False
    y, state = layer(x, mask=mask)
    for row in (0, 1, 3):
        alone, alone_state = layer(x[row : row + 1, mask[row]])
        assert_same(y[row, mask[row]], alone[0])
        assert_same(map_state(lambda s, row=row: s[row : row + 1], state), alone_state)
    assert all(bool((s[2] == 0).all()) for s in tensors(state))


@pytest.mark.parametrize("name", MIXERS)
def test_masked_steps_output_zero(name):
    mask = steps(3, TIME, 0.5)
    y, _ = stirred(MIXERS[name]())(inputs(3, TIME), mask=mask)
    assert (y[~mask] == 0).all()


def test_reset_starts_afresh_even_on_a_masked_step(layer):
    x, mask = inputs(2, TIME), torch.ones(2, TIME, dtype=torch.bool)
    reset = torch.zeros_like(mask)
    reset[0, 11], reset[1, 20] = True, True
    mask[1, 20] = False
    _, before = layer(inputs(2, 7))
    y, state = layer(x, before, mask=mask, reset=reset)
    for row, start in ((0, 11), (1, 21)):
        alone, alone_state = layer(x[row : row + 1, start:])
        assert_same(y[row, start:], alone[0])
        assert_same(map_state(lambda s, row=row: s[row : row + 1], state), alone_state)


def test_the_future_does_not_change_the_past(layer):
    x = inputs(2, TIME)
    changed = x.clone()
    changed[:, 20:] += 1
    y, _ = layer(x)
    z, _ = layer(changed)
    assert_same(z[:, :20], y[:, :20])
    assert (z[:, 20] != y[:, 20]).any()


def test_rows_of_a_batch_do_not_see_each_other(layer):
    x = inputs(3, TIME)
    y, _ = layer(x)
    x[0] += 1
    z, _ = layer(x)
    assert_same(z[1:], y[1:])


def test_gradients_reach_every_parameter(layer):
    x = inputs(2, TIME).requires_grad_()
    y, _ = layer(x)
    (y * torch.randn_like(y)).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_reach_every_parameter_at_the_start(name):
    layer = LAYERS[name]().double()
    (layer(inputs(2, TIME))[0] * inputs(2, TIME)).sum().backward()
    dead = [name for name, parameter in layer.named_parameters() if not (parameter.grad != 0).any()]
    assert not dead


def test_gradients_flow_through_the_carried_state(layer):
    x = inputs(1, 3).requires_grad_()
    _, state = layer(x)
    carried = [s for s in tensors(state) if s.is_floating_point() and s.numel()]
    if carried:
        y, _ = layer(inputs(1, 1), state)
        y.square().sum().backward()
        assert (x.grad != 0).any()


def test_the_state_keeps_no_more_memory_alive_after_a_longer_sequence(layer):
    with torch.no_grad():
        states = [tensors(layer(inputs(1, time))[1]) for time in (TIME, 4 * TIME)]
    short, long = ({s.untyped_storage().data_ptr(): s.untyped_storage().nbytes() for s in state} for state in states)
    # A stabiliser may be a view of those of all chunks: a few numbers.
    assert sum(long.values()) <= 1.1 * sum(short.values())


@pytest.mark.parametrize("name", LAYERS)
def test_float32_agrees_with_float64(name):
    layer = stirred(LAYERS[name]())
    x, mask, reset = inputs(2, TIME), steps(2, TIME, 0.8), steps(2, TIME, 0.1)
    expected, _ = layer(x, mask=mask, reset=reset)
    y, state = layer.float()(x.float(), mask=mask, reset=reset)
    assert y.dtype == torch.float32
    assert {s.dtype for s in tensors(state)} <= {torch.float32, torch.bool, torch.int64}
    error = (y - expected)[mask].abs().max() / expected[mask].abs().max()
    assert error < 1e-3


@pytest.mark.parametrize("name", LAYERS)
def test_bfloat16_autocast_agrees_with_float32_and_can_be_trained(name):
    layer = LAYERS[name]()
    x = inputs(2, TIME).float()
    expected, _ = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head, state = layer(x[:, :20])
        tail, _ = layer(x[:, 20:], state)
    y = torch.cat([head, tail], 1).float()
    y.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())
    # A dozen roundings to 8 bits, which add up like independent errors.
    assert (y - expected).square().mean().sqrt() < 12**0.5 * 2**-8 * expected.square().mean().sqrt()


def test_copies_are_independent_and_equal(layer):
    twin = copy.deepcopy(layer)
    x = inputs(1, 9)
    assert_same(twin(x), layer(x), 0.0)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    twin.load_state_dict(layer.state_dict())
    assert_same(twin(x), layer(x), 0.0)


def test_the_state_of_another_batch_is_refused(layer):
    _, state = layer(inputs(2, 3))
    if any(s.numel() for s in tensors(state)):
        with pytest.raises(ValueError, match="shape"):
            layer(inputs(3, 3), state)
