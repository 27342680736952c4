"""Biases, other sizes and other norms do what their formulas say, and what makes no sense is refused."""

import pytest
import torch
from layer_cases import HEADS, WIDTH, assert_same, inputs, stirred
from torch.nn import functional as F

from exlstm.layers import MLSTM, Block, BlockOptions, GatedMLP, LayerNorm, MLSTMLarge, MultiHeadNorm, RMSNorm
from exlstm.layers.conv import CausalConv1d
from exlstm.ops import mlstm


def reads(q, k, v, i, f):
    """Of a flat memory [B, T, H, D], by the loop."""
    q, k, v = (y.unflatten(-1, (HEADS, -1)) for y in (q, k, v))
    return mlstm(q, k, v, i, f, backend="reference")[0]


def test_an_mlstm_layer_with_biases():
    layer = stirred(MLSTM(WIDTH, HEADS, inner=40, kernel=3, block=5, bias=True, norm_bias=True, eps=1e-3))
    x, cell = inputs(2, 9), layer.cell
    inner, z = layer.up(x).chunk(2, -1)
    assert isinstance(layer.conv, CausalConv1d)
    c = F.silu(layer.conv(inner)[0])
    q, k, v = layer.q(c), layer.k(c), layer.v(inner)
    everything = torch.cat([q, k, v], -1)
    h = reads(q, k, v, cell.input_gate(everything), cell.forget_gate(everything))
    expected = layer.down((cell.norm(h) + layer.skip * c) * F.silu(z))
    assert_same(layer(x)[0], expected)
    for bias in (layer.up.bias, layer.q.bias, layer.k.bias, layer.v.bias, layer.down.bias, cell.norm.bias):
        assert bias is not None
        with torch.no_grad():
            bias.add_(1)
        assert (layer(x)[0] - expected).abs().max() > 1e-3
        with torch.no_grad():
            bias.sub_(1)


def test_an_mlstm_layer_of_the_large_model_with_biases():
    layer = stirred(MLSTMLarge(WIDTH, HEADS, keys=6, values=20, soft_cap=3.0, bias=True, norm_bias=True, eps=1e-3))
    x, cell = inputs(2, 9), layer.cell
    q, k, v, o = layer.qkvo(x).split([6, 6, 20, 20], -1)
    i, f = (3 * torch.tanh(gate(x) / 3) for gate in (cell.input_gate, cell.forget_gate))
    expected = layer.out(torch.sigmoid(o) * cell.norm(reads(q, k, v, i, f)))
    assert_same(layer(x)[0], expected)


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_a_norm_with_a_bias_adds_it(kind):
    norm, x = stirred(kind(WIDTH, bias=True)), inputs(2, 3)
    plain = kind(WIDTH).double()
    plain.weight = norm.weight
    assert_same(norm(x), plain(x) + norm.bias)
    assert norm.float()(x.float()).dtype == torch.float32


def test_a_norm_of_heads_with_a_bias_adds_it():
    norm, h = stirred(MultiHeadNorm(WIDTH, bias=True)), inputs(2, 3).unflatten(-1, (HEADS, -1))
    plain = MultiHeadNorm(WIDTH).double()
    plain.weight = norm.weight
    assert_same(norm(h), plain(h) + norm.bias)


def test_a_feed_forward_part_with_biases():
    layer, x = stirred(GatedMLP(WIDTH, 20, activation="gelu", bias=True)), inputs(2, 3)
    gate, up = F.linear(x, layer.gate_up.weight, layer.gate_up.bias).chunk(2, -1)
    assert_same(layer(x), F.linear(F.gelu(gate) * up, layer.down.weight, layer.down.bias))


def test_biases_are_zero_at_first():
    options = BlockOptions(bias=True, mlp_bias=True, norm_bias=True)
    for style in ("paper", "large"):
        block = Block(WIDTH, HEADS, style=style, options=options)
        given = {name for name, _ in Block(WIDTH, HEADS, style=style).named_parameters()}
        added = [p for name, p in block.named_parameters() if name not in given]
        assert len(added) > 5
        assert all(bool((p == 0).all()) for p in added)


def test_sizes_are_those_asked_for():
    block = Block(WIDTH, HEADS, kind="s", options=BlockOptions(slstm_heads=4, slstm_kernel=0, hidden=20))
    assert block.mixer.recurrent_weight.shape == (4, 4, 4, 4)
    assert block.mixer.conv is None
    assert block.mlp.down.weight.shape == (WIDTH, 20)
    assert Block(WIDTH, HEADS, kind="s", options=BlockOptions(hidden=0)).mlp is None
    lean = BlockOptions(hidden=20, slstm_hidden=0, slstm_dense=True)
    assert Block(WIDTH, HEADS, kind="s", options=lean).mlp is None
    assert Block(WIDTH, HEADS, kind="s", options=lean).mixer.input_weight.shape == (4, HEADS, WIDTH, WIDTH // HEADS)
    assert Block(WIDTH, HEADS, kind="a", options=lean).mlp.down.weight.shape == (WIDTH, 20)
    assert Block(WIDTH, HEADS, style="large", options=BlockOptions(eps=1e-3)).mlp_norm.eps == 1e-3


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"hidden": -1}, "expected hidden of at least 0, received -1"),
        ({"kernel": 0}, "expected kernel of at least 1, received 0"),
        ({"eps": 0.0}, "expected eps above 0, received 0.0"),
        ({"gate_soft_cap": float("nan")}, "expected gate_soft_cap above 0, received nan"),
        ({"activation": "relu"}, "expected activation 'silu', 'gelu' or None, received 'relu'"),
    ],
)
def test_options_that_make_no_sense_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        BlockOptions(**fields)


@pytest.mark.parametrize(
    ("style", "fields"),
    [("large", {"inner": 32}), ("large", {"kernel": 3}), ("paper", {"keys": 8}), ("paper", {"gate_soft_cap": 3.0})],
)
def test_options_of_the_other_style_are_refused(style, fields):
    (name,) = fields
    with pytest.raises(ValueError, match=f"blocks of style '{style}' have no {name}"):
        Block(WIDTH, HEADS, style=style, options=BlockOptions(**fields))


def test_sizes_that_the_heads_cannot_share_are_refused():
    for make in (lambda: MLSTM(WIDTH, 3, inner=64), lambda: MLSTMLarge(WIDTH, 2, keys=7)):
        with pytest.raises(ValueError, match="multiple of heads"):
            make()
    with pytest.raises(ValueError, match="multiple of the block"):
        MLSTM(WIDTH, 2, inner=64, block=7)
