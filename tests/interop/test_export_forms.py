"""What models are traced as computes what they compute: operators over whole pieces, and stand-ins for what ONNX lacks.

Bounds as in tests/ops: 1e-9 in float64.
"""

import pytest
import torch

from exlstm.interop.export import decompositions
from exlstm.interop.export.forms import FORMS
from exlstm.interop.export.states import leaves, names, restored
from exlstm.layers.state import LayerState
from exlstm.ops import HMLSTMState, MLSTMState, mlstm
from exlstm.ops.backends import stand_ins
from tests.ops.cases import LENGTHS, assert_same, draw
from tests.ops.cases import leaves as floats


@pytest.mark.parametrize("operator", ["mlstm", "hmlstm"])
@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "mask"])
def test_a_piece_at_once_equals_the_reference(operator, time, state, masked):
    case = draw(operator, time, state=state)._replace(reset=None)
    case = case if masked else case._replace(mask=None)
    expected = case.whole("reference")
    with stand_ins(FORMS):
        found = case.whole("auto")
    assert_same(floats(found), floats(expected), 1e-9)
    if operator == "hmlstm":
        assert torch.equal(found[1].position, expected[1].position)


def test_outputs_do_not_depend_on_whether_the_memory_is_wanted():
    case = draw("hmlstm", 21)._replace(reset=None)
    with stand_ins(FORMS):
        h, nothing = case.whole("auto", return_state=False)
        assert nothing is None
        assert torch.equal(h, case.whole("auto")[0])


def test_a_hierarchical_memory_is_whole_after_pieces_of_odd_lengths():
    case = draw("hmlstm", 200)._replace(reset=None)
    with stand_ins(FORMS):
        found = case.in_pieces("auto", [1, 2, 9, 46, 110])
    assert_same(floats(found), floats(case.whole("reference")), 1e-9)


def test_stand_ins_serve_within_their_block_only():
    called = []

    def stand_in(*arguments, **options):
        called.append(options["chunk_size"])
        return "h", "state"

    case = draw("mlstm", 2, state=False, steps=False)
    with stand_ins({"mlstm": stand_in}):
        assert mlstm(*case.inputs, chunk_size=7, backend="reference") == ("h", "state")
    assert called == [7]
    assert isinstance(mlstm(*case.inputs)[1], MLSTMState)


def test_log_sigmoid_is_exact_at_every_size_in_float32():
    x = torch.cat([torch.linspace(-200, 200, 4001), torch.linspace(5, 17, 1000), torch.tensor([0.0, torch.inf])])
    exact = torch.nn.functional.logsigmoid(x.double())
    error = (decompositions.log_sigmoid(x).double() - exact).abs() / exact.abs().clamp(min=1e-37)
    assert float(error.max()) <= 4 * torch.finfo(torch.float32).eps


def test_the_largest_so_far_and_where_it_is():
    x = torch.randint(-50, 50, (3, 77)).float().cumsum(1)
    found, place = decompositions.cummax(x, 1)
    assert torch.equal(found, x.cummax(1).values)
    assert torch.equal(x.gather(1, place), found)


def test_the_median_of_what_is_not_nan():
    x = torch.randn(40, 15).masked_fill(torch.rand(40, 15) < 0.6, torch.nan)
    x[0] = torch.nan
    found, expected = decompositions.nanmedian(x, 1, True), x.nanmedian(1, keepdim=True)
    torch.testing.assert_close(found[0], expected.values, rtol=0, atol=0, equal_nan=True)
    assert decompositions.nanmedian(x, 1)[0].shape == (40,)


@pytest.mark.parametrize("dim", [0, 1, -1, -2])
def test_a_stable_order_keeps_that_of_equals(dim):
    x = torch.randint(0, 3, (9, 11), dtype=torch.uint8)
    order = decompositions.stable_argsort(x, stable=True, dim=dim)
    assert torch.equal(order, x.argsort(dim=dim, stable=True))


def test_tensors_of_a_state_have_names_and_come_back_in_their_places():
    one, two = torch.zeros(1), torch.ones(2)
    memory = HMLSTMState(*(torch.full((1,), float(n)) for n in range(5)))
    state = (LayerState(None, MLSTMState(one, two, one)), memory, (LayerState(two, one),))
    assert names(state, "state") == [
        *("state.0.cell.C", "state.0.cell.n", "state.0.cell.m"),
        *("state.1.C", "state.1.n", "state.1.m", "state.1.log_decay", "state.1.position"),
        *("state.2.0.conv", "state.2.0.cell"),
    ]
    again = restored(state, [x + 10 for x in leaves(state)])
    assert again[0].conv is None
    assert torch.equal(again[1].position, torch.tensor([14.0]))
    assert torch.equal(again[2][0].conv, two + 10)
