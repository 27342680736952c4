"""What runs as one in a step program, and what must not."""

import pytest
import torch
from torch import Tensor, nn

from exlstm.layers.step import emit
from exlstm.models import Backbone
from exlstm.ops.triton.program import TritonProgram
from exlstm.ops.triton.program_nodes import Conv, Linear, Node, Vector

pytest.importorskip("triton")


def program(batch: int = 1) -> TritonProgram:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TritonProgram(batch, torch.float32, device=device)


def matrix(p: TritonProgram, outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs, device=p.device)


def plan_of(p: TritonProgram) -> list[Node]:
    p.run()
    return p._plan


@pytest.mark.parametrize(("style", "one", "several"), [("large", 5, 11), ("paper", 8, 10)])
def test_a_block_is_a_few_launches(style, one, several):
    for batch, launches in ((1, one), (2, several)):
        p = program(batch)
        x = p.register(16)
        for block in Backbone("mmm", 16, 2, style=style).to(p.device).blocks:
            x, _ = emit(block, p, x)
        assert len(plan_of(p)) == 3 * launches


def test_a_feed_forward_layer_of_one_row_is_two_launches_that_compute_it():
    p = program()
    x, up, down, weight = p.register(8), matrix(p, 20, 8), matrix(p, 8, 10), torch.randn(8, device=p.device)
    x.normal_()
    gate, value = p.linear(p.norm(x, weight, 1e-6, centred=False), up).chunk(2, 1)
    y = p.multiply_add(x, p.linear(p.gate("silu", gate, value), down))
    first, second = plan_of(p)
    assert isinstance(first, Linear)
    assert isinstance(second, Linear)
    assert (first.glu, first.made is not None, second.add is x) == ("silu", True, True)
    a, b = (nn.functional.rms_norm(x, (8,), weight, 1e-6) @ up.T).chunk(2, 1)
    torch.testing.assert_close(y, x + (nn.functional.silu(a) * b) @ down.T, rtol=1e-5, atol=1e-5)


def test_what_is_mapped_may_be_an_activation_alone():
    p = program()
    x, weight = p.register(6), matrix(p, 5, 6)
    x.normal_()
    y = p.linear(p.gate("sigmoid", x), weight)
    assert len(plan_of(p)) == 1
    torch.testing.assert_close(y, x.sigmoid() @ weight.T, rtol=1e-5, atol=1e-5)


def test_what_two_read_is_written():
    p = program()
    x, first = p.register(4), matrix(p, 4, 4)
    x.normal_()
    y = p.linear(x, first)
    capped, summed = p.soft_cap(y, 2.0), p.multiply_add(x, y)
    assert len(plan_of(p)) == 3
    torch.testing.assert_close(y, x @ first.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(capped, 2 * (y / 2).tanh(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(summed, x + y, rtol=1e-5, atol=1e-5)


def test_what_is_overwritten_in_between_is_read_before():
    p = program()
    x, first, second = p.register(4), matrix(p, 4, 4), matrix(p, 4, 4)
    x.normal_()
    before = x.clone()
    y = p.linear(x, first)
    p.linear(y[:, :0], second[:, :0], add=p.register(4), out=x)  # x becomes 0
    z = p.soft_cap(y, 2.0)
    assert len(plan_of(p)) == 3
    torch.testing.assert_close(z, 2 * (before @ first.T / 2).tanh(), rtol=1e-5, atol=1e-5)


def test_a_vector_that_is_mapped_and_added_is_written():
    p = program()
    x, weight = p.register(4), matrix(p, 4, 4)
    x.normal_()
    y = p.gate("silu", x)
    z = p.multiply_add(y, p.linear(y, weight))
    made, mapped = plan_of(p)
    assert isinstance(made, Vector)
    assert isinstance(mapped, Linear)
    expected = nn.functional.silu(x)
    torch.testing.assert_close(z, expected + expected @ weight.T, rtol=1e-5, atol=1e-5)


def test_a_norm_with_all_that_may_follow_is_one_vector():
    p = program(2)
    x, other, gate = (p.register(12).normal_() for _ in range(3))
    weight, factor = torch.randn(12, device=p.device), torch.randn(12, device=p.device)
    y = p.gate("sigmoid", gate, p.multiply_add(p.norm(x, weight, 1e-5, heads=3), other, factor))
    (vector,) = plan_of(p)
    assert isinstance(vector, Vector)
    normed = nn.functional.layer_norm(x.unflatten(1, (3, 4)), (4,), None, None, 1e-5).flatten(1) * weight
    torch.testing.assert_close(y, (normed + factor * other) * gate.sigmoid(), rtol=1e-5, atol=1e-5)


def test_a_convolution_is_activated_where_it_is_made():
    p = program(2)
    x, past = p.register(5), p.register(3, 5)
    p.gate("silu", p.conv(x, torch.randn(5, 4, device=p.device), torch.randn(5, device=p.device), past))
    (conv,) = plan_of(p)
    assert isinstance(conv, Conv)
    assert conv.kind == "silu"
