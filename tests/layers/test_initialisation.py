"""Weights begin as the papers say. A deviation estimated from n draws is off by less than 5 / sqrt(2 n)."""

import math

import pytest
import torch

from exlstm.layers import HMLSTM, MLSTM, SLSTM, Block, GatedMLP, MLSTMLarge, SlidingWindowAttention

WIDTH, DEPTH = 128, 6
SMALL, WANG = math.sqrt(2 / (5 * WIDTH)), 2 / (DEPTH * math.sqrt(WIDTH))


def assert_deviation(weight, expected):
    assert weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * weight.numel()))
    assert abs(weight.mean().item()) < 5 * expected / math.sqrt(weight.numel())


def test_projections_in_are_small_and_projections_out_shrink_with_depth():
    paper, large = MLSTM(WIDTH, 4, depth=DEPTH), MLSTMLarge(WIDTH, 4, depth=DEPTH)
    attention, mlp = SlidingWindowAttention(WIDTH, 4, depth=DEPTH), GatedMLP(WIDTH, 192, depth=DEPTH)
    for layer_in in (paper.up, large.qkvo, attention.qkv, mlp.gate_up):
        assert_deviation(layer_in.weight, SMALL)
    for layer_out in (paper.down, large.out, attention.out, mlp.down):
        assert_deviation(layer_out.weight, WANG)
    assert (paper.skip == 1).all()


def test_block_diagonal_projections_are_as_small_as_full_ones():
    layer = MLSTM(WIDTH, 4)
    for weight in (layer.q.weight, layer.k.weight, layer.v.weight, SLSTM(WIDTH, 4).input_weight):
        assert_deviation(weight, SMALL)
    assert_deviation(SLSTM(WIDTH, 4, dense=True).input_weight, SMALL)


@pytest.mark.parametrize("make", [MLSTM, MLSTMLarge, HMLSTM])
def test_gates_do_not_depend_on_the_input_at_first(make):
    cell = make(WIDTH, 4).cell
    assert (cell.input_gate.weight == 0).all()
    assert (cell.forget_gate.weight == 0).all()
    torch.testing.assert_close(cell.forget_gate.bias.detach(), torch.tensor([3.0, 4.0, 5.0, 6.0]))


def test_input_gates_begin_near_one_in_the_paper_and_nearly_closed_at_large_scale():
    assert_deviation(MLSTM(WIDTH, 64).cell.input_gate.bias, 0.1)
    assert (MLSTMLarge(WIDTH, 4).cell.input_gate.bias == -10).all()


def test_slstm_forgets_by_a_power_law_that_flattens_with_the_block():
    first, last = (SLSTM(WIDTH, 4, index=index, depth=DEPTH) for index in (0, DEPTH - 1))
    for layer in (first, last):
        i, f, z, o = layer.bias
        assert (i == 0).all()
        assert (z == 0).all()
        assert (o == 0).all()
        torch.testing.assert_close(f[:, [0, -1]], torch.tensor([5.0, -7.0]).expand(4, 2))
        assert (f.diff() < 0).all()
        assert (layer.recurrent_weight == 0).all()
    assert (last.bias[1, :, 1:-1] > first.bias[1, :, 1:-1]).all()


def test_a_hierarchical_memory_begins_as_a_flat_one():
    flat, tree = MLSTM(16, 2).double(), HMLSTM(16, 2, levels=3).double()
    missing, unexpected = tree.load_state_dict(flat.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("cell.level_gate") for name in missing)
    x = torch.randn(2, 50, 16, dtype=torch.float64)
    torch.testing.assert_close(tree(x)[0], flat(x)[0])


@pytest.mark.parametrize("kind", "msha")
def test_a_block_made_without_memory_can_be_filled_in_later(kind):
    with torch.device("meta"):
        block = Block(WIDTH, 4, kind=kind, depth=DEPTH)
    block.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(torch.nan)
    block.apply(lambda module: getattr(module, "reset_parameters", lambda: None)())
    usual = dict(Block(WIDTH, 4, kind=kind, depth=DEPTH).named_parameters())
    for name, parameter in block.named_parameters():
        tolerance = 10 / math.sqrt(2 * parameter.numel())
        assert parameter.std().item() == pytest.approx(usual[name].std().item(), rel=tolerance), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SLSTM(10, 4), "multiple of heads, got width 10, heads 4"),
        (lambda: MLSTMLarge(10, 4), "multiple of heads"),
        (lambda: MLSTM(10, 0), "heads must be at least 1"),
        (lambda: MLSTM(8, 2, levels=-1), "levels must be 0"),
        (lambda: HMLSTM(8, 2, levels=0), "for a flat memory use MLSTM"),
        (lambda: Block(8, 2, kind="x"), "kind must be"),
        (lambda: Block(8, 2, kind="h", levels=0), "levels of a hierarchical memory"),
        (lambda: Block(8, 2, style="huge"), "style must be 'paper' or 'large', got 'huge'"),
        (lambda: GatedMLP(8, 8, activation="relu"), "activation must be"),
    ],
)
def test_impossible_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
