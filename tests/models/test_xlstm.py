import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from exlstm.layers import map_state
from exlstm.models import XLSTM

ARGUMENTS = {
    "input_size": st.integers(1, 7),
    "hidden_size": st.sampled_from([1, 2, 4, 6, 8]),
    "num_layers": st.integers(1, 2),
    "bias": st.booleans(),
    "batch_first": st.booleans(),
    "bidirectional": st.booleans(),
}


@st.composite
def pairs(draw):
    """The arguments of an LSTM, and it and its stand-in made of them."""
    arguments = {name: draw(values) for name, values in ARGUMENTS.items()}
    pattern = draw(st.sampled_from(["m", "s", "h", "ms"]))
    ours = XLSTM(**arguments, dtype=torch.float64, pattern=pattern, levels=3)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return nn.LSTM(**arguments, dtype=torch.float64), ours


def sequences(lstm: nn.LSTM, lengths: list[int]) -> list[torch.Tensor]:
    return [torch.randn(length, lstm.input_size, dtype=torch.float64) for length in lengths]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(pair=pairs(), batch=st.integers(1, 3), time=st.integers(1, 9))
def test_outputs_have_the_shapes_of_nn_lstm(pair, batch, time):
    lstm, ours = pair
    shape = (batch, time) if lstm.batch_first else (time, batch)
    for x in (torch.randn(*shape, lstm.input_size).double(), torch.randn(time, lstm.input_size).double()):
        expected, (h, _) = lstm(x)
        y, state = ours(x)
        assert y.shape == expected.shape
        assert y.dtype == expected.dtype
        assert len(state) == len(h)
        again, _ = ours(x, state)
        assert again.shape == expected.shape
        assert bool(y.isfinite().all())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(pair=pairs(), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_packed_sequences_give_what_each_gives_alone(pair, lengths):
    lstm, ours = pair
    rows = sequences(lstm, lengths)
    packed = pack_sequence(rows, enforce_sorted=False)
    y, state = ours(packed)
    expected = lstm(packed)[0]
    assert isinstance(y, PackedSequence)
    assert y.data.shape == expected.data.shape
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        torch.testing.assert_close(getattr(y, field), getattr(expected, field))
    padded, _ = pad_packed_sequence(y, batch_first=True)
    for row, x in enumerate(rows):
        alone, alone_state = ours(x)
        torch.testing.assert_close(padded[row, : len(x)], alone)
        torch.testing.assert_close(map_state(lambda s, row=row: s[row], state), alone_state)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(pair=pairs(), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_the_state_given_back_continues_the_sequence(pair, sizes):
    _, ours = pair
    x = torch.randn(sum(sizes), ours.input_size, dtype=torch.float64)
    whole, _ = ours(x)
    state, outputs = None, []
    for piece in x.split(sizes):
        y, state = ours(piece, state)
        outputs.append(y)
    # Layers after the first hear of the future in a bidirectional stack, as in nn.LSTM.
    if not ours.bidirectional:
        torch.testing.assert_close(torch.cat(outputs), whole)


def test_a_batch_gives_what_its_rows_give_in_every_layout():
    x = torch.randn(5, 3, 4)
    model = XLSTM(4, 8, 2, bidirectional=True, pattern="ms").eval()
    first = XLSTM(4, 8, 2, bidirectional=True, batch_first=True, pattern="ms").eval()
    first.load_state_dict(model.state_dict())
    y, _ = model(x)
    torch.testing.assert_close(first(x.transpose(0, 1))[0].transpose(0, 1), y)
    torch.testing.assert_close(model(x[:, 1])[0], y[:, 1])


@pytest.mark.parametrize("pattern", "msha")
def test_an_empty_batch_gives_an_empty_output(pattern):
    y, state = XLSTM(4, 8, pattern=pattern)(torch.randn(5, 0, 4))
    assert y.shape == (5, 0, 8)
    XLSTM(4, 8, pattern=pattern)(torch.randn(5, 0, 4), state)


def test_sorted_packing_is_kept():
    packed = pack_padded_sequence(torch.randn(6, 3, 4), torch.tensor([6, 4, 1]))
    y, _ = XLSTM(4, 8)(packed)
    assert y.sorted_indices is None
    assert y.unsorted_indices is None
    torch.testing.assert_close(y.batch_sizes, packed.batch_sizes)


def test_the_first_half_of_a_bidirectional_output_is_causal_and_the_second_anticausal():
    model, x = XLSTM(4, 8, bidirectional=True), torch.randn(9, 4)
    y = model(x)[0]
    x[5] += 1
    z = model(x)[0]
    torch.testing.assert_close(z[:5, :8], y[:5, :8])
    torch.testing.assert_close(z[6:, 8:], y[6:, 8:])
    assert (z[:5, 8:] != y[:5, 8:]).any()
    assert (z[6:, :8] != y[6:, :8]).any()


def test_truncated_backpropagation_detaches_the_state():
    model = XLSTM(3, 8, pattern="msha", window=4, levels=3)
    _, state = model(torch.randn(5, 2, 3))
    y, _ = model(torch.randn(5, 2, 3), map_state(torch.Tensor.detach, state))
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_dropout_falls_between_layers_in_training():
    model, x = XLSTM(3, 8, 2, dropout=0.5), torch.randn(5, 2, 3)
    assert (model(x)[0] != model(x)[0]).any()
    model.eval()
    torch.testing.assert_close(model(x)[0], model(x)[0], rtol=0, atol=0)


def test_code_written_for_nn_lstm_finds_its_attributes():
    lstm, ours = nn.LSTM(3, 8, 2, bidirectional=True), XLSTM(3, 8, 2, bidirectional=True)
    for name in (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
    ):
        assert getattr(ours, name) == getattr(lstm, name)
    assert ours.proj_size == lstm.proj_size
    ours.flatten_parameters()
    assert repr(ours).startswith("XLSTM(\n  3, 8, num_layers=2, bidirectional=True")


def test_device_and_dtype_are_those_asked_for():
    model = XLSTM(3, 8, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}
    assert {p.dtype for p in XLSTM(3, 8).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: XLSTM(0, 8), "at least 1, got 0, 8 and 1"),
        (lambda: XLSTM(3, 8, 0), "at least 1"),
        (lambda: XLSTM(3, 8, dropout=1.5, num_layers=2), "between 0 and 1, got 1.5"),
        (lambda: XLSTM(3, 8, proj_size=4), "proj_size is not supported"),
        (lambda: XLSTM(3, 8, pattern="lstm"), "pattern must be"),
        (lambda: XLSTM(3, 9, heads=2, pattern="s"), "multiple of heads"),
        (lambda: XLSTM(3, 8)(torch.randn(5, 2, 4)), "3 channels"),
        (lambda: XLSTM(3, 8)(torch.randn(5)), "without a batch"),
        (lambda: XLSTM(3, 8)(torch.randn(0, 2, 3)), "at least one time step"),
        (
            lambda: XLSTM(3, 8)(torch.randn(5, 2, 3), (torch.zeros(1, 2, 8), torch.zeros(1, 2, 8))),
            "does not fit",
        ),
        (lambda: XLSTM(3, 8)(torch.randn(5, 2, 3), XLSTM(3, 8)(torch.randn(5, 3, 3))[1]), "shape"),
    ],
)
def test_impossible_arguments_and_inputs_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_dropout_without_a_layer_to_act_on_warns_like_nn_lstm():
    with pytest.warns(UserWarning, match="num_layers=1"):
        XLSTM(3, 8, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        XLSTM(3, 8, 2, dropout=0.5)
