import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from exlstm.layers import SlidingWindowAttention
from exlstm.layers.attention import rotate


def dense(layer: SlidingWindowAttention, x: Tensor) -> Tensor:
    """The same attention with every score in one matrix and positions counted from the first step."""
    q, k, v = (p.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for p in layer.qkv(x).chunk(3, -1))
    place = torch.arange(x.shape[1])
    distance = place[:, None] - place
    seen = (distance >= (0 if layer.causal else 1 - layer.window)) & (distance < layer.window)
    y = F.scaled_dot_product_attention(rotate(q, place), rotate(k, place), v, attn_mask=seen)
    return layer.out(y.transpose(1, 2).flatten(-2))


@pytest.mark.parametrize("window", [1, 2, 7, 8, 50])
@pytest.mark.parametrize("time", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("causal", [True, False])
def test_it_equals_dense_attention_to_the_steps_in_the_window(window, time, causal):
    layer = SlidingWindowAttention(12, 3, window=window, causal=causal).double()
    x = 3 * torch.randn(2, time, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], dense(layer, x))


def test_attention_to_both_sides_sees_the_present_steps_of_its_own_document():
    layer = SlidingWindowAttention(12, 3, window=4, causal=False).double()
    x, mask = torch.randn(1, 30, 12, dtype=torch.float64), torch.rand(1, 30) < 0.7
    reset = torch.zeros(1, 30, dtype=torch.bool)
    reset[0, 11] = True
    y, state = layer(x, mask=mask, reset=reset)
    assert state is None
    assert (y[~mask] == 0).all()
    for part in (slice(0, 11), slice(11, 30)):
        present = mask[0, part]
        torch.testing.assert_close(y[:, part][:, present], dense(layer, x[:, part][:, present]))
    with pytest.raises(ValueError, match="carries no state"):
        layer(x, SlidingWindowAttention(12, 3, window=4).double()(x)[1])


def test_rotary_scores_depend_on_distance_only():
    q, k = torch.randn(2, 1, 8, dtype=torch.float64)
    scores = [(rotate(q, torch.tensor([at + 3])) * rotate(k, torch.tensor([at]))).sum() for at in (0, 1, 1000)]
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[0], scores[2])
    assert (rotate(q, torch.tensor([4])) * rotate(k, torch.tensor([0]))).sum() != scores[0]


class _Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return out


def test_no_buffer_grows_with_the_square_of_time():
    time, window = 4096, 16
    layer, x = SlidingWindowAttention(8, 2, window=window), torch.randn(1, time, 8, requires_grad=True)
    with _Largest() as largest:
        layer(x)[0].sum().backward()
    # Two windows of keys for every query, 2 heads of 4 channels.
    assert largest.elements <= 2 * window * time * 2


def test_the_state_stays_as_small_as_the_window():
    layer = SlidingWindowAttention(8, 2, window=16)
    _, state = layer(torch.randn(3, 100, 8))
    assert [tuple(s.shape) for s in state] == [(3, 15, 2, 4), (3, 15, 2, 4), (3, 15)]


def test_odd_head_widths_and_empty_windows_are_refused():
    with pytest.raises(ValueError, match="even head width"):
        SlidingWindowAttention(6, 2)
    with pytest.raises(ValueError, match="window must be at least 1"):
        SlidingWindowAttention(8, 2, window=0)
