"""Attention to the last steps, with a state that does not grow."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exlstm.layers.init import small_init_, wang_init_
from exlstm.layers.linear import head_width
from exlstm.layers.state import check_state
from exlstm.layers.steps import Lookback
from exlstm.ops.checks import check_shape


class AttentionState(NamedTuple):
    """The steps that later ones can still see, oldest first."""

    k: Tensor  # [B, window - 1, H, D] keys, before rotation
    v: Tensor  # [B, window - 1, H, D] values
    held: Tensor  # bool [B, window - 1], False where there is nothing


class SlidingWindowAttention(nn.Module):
    """Softmax attention to the last `window` steps, the current one included, with rotary positions.

    `y, state = layer(x, state, mask=, reset=)` with x, y [B, T, width]. Masked steps count as absent and
    output 0; a reset hides all steps before it. Work and memory grow with T * window. Positions are counted
    within a window, as rotary scores depend on distances alone (arXiv 2104.09864): a stream may run for ever.

    Args:
        width: of inputs and outputs; its heads must be of even width.
        heads: attention heads.
        window: steps seen, the current one included.
        depth: blocks in the model, by which the output projection is scaled at first.
        causal: if False, the `window - 1` steps after a step are seen as well; no state then.
    """

    def __init__(self, width: int, heads: int, *, window: int = 256, depth: int = 1, causal: bool = True) -> None:
        super().__init__()
        if head_width(width, heads) % 2:
            raise ValueError(f"rotary positions need an even head width, got width {width}, heads {heads}")
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.heads, self.window, self.depth, self.causal = heads, window, depth, causal
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        small_init_(self.qkv.weight, self.qkv.in_features)
        wang_init_(self.out.weight, self.out.out_features, self.depth)

    def forward(
        self,
        x: Tensor,
        state: AttentionState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, AttentionState | None]:
        if not self.causal:
            return self._both_sides(x, state, mask, reset), None
        steps = Lookback(self.window - 1, x.shape[1], mask=mask, reset=reset)
        q, k, v = (steps.align(p).unflatten(-1, (self.heads, -1)) for p in self.qkv(x).chunk(3, -1))
        past = self._empty(k) if state is None else check_state(state, AttentionState)
        check_shape("state.k", past.k, (x.shape[0], self.window - 1, *k.shape[2:]), "[B, window - 1, H, D]")
        k, v = torch.cat([past.k.to(k), k], 1), torch.cat([past.v.to(v), v], 1)
        held = torch.cat([past.held, past.held.new_ones(x.shape[:2])], 1)
        document = held.long() if steps.document is None else steps.document + 1
        document = document.masked_fill(~held, 0)
        # With nothing before the sequence, its first step is the farthest there is to see.
        first = max(0, self.window - x.shape[1]) if state is None else 0
        y = windowed_attention(q, k[:, first:], v[:, first:], document[:, first:])
        after = AttentionState(*(steps.tail(e) for e in (k, v, held))) if return_state else None
        return self.out(steps.spread(y.flatten(-2))), after

    def _both_sides(self, x: Tensor, state: AttentionState | None, mask: Tensor | None, reset: Tensor | None) -> Tensor:
        if state is not None:
            raise ValueError("attention to both sides carries no state: give it whole sequences and state=None")
        steps = Lookback(0, x.shape[1], mask=mask, reset=reset)
        q, k, v = (steps.align(p).unflatten(-1, (self.heads, -1)) for p in self.qkv(x).chunk(3, -1))
        held = torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else steps.align(mask)
        document = held.long() if steps.document is None else (steps.document + 1).masked_fill(~held, 0)
        # Absent steps stand last, as a document of their own: what they read is dropped.
        reach = (self.window if torch.compiler.is_exporting() else min(self.window, x.shape[1])) - 1
        k, v = (F.pad(e, (0, 0, 0, 0, reach, reach)) for e in (k, v))
        y = windowed_attention(q, k, v, F.pad(document, (reach, reach), value=-2), ahead=reach)
        return self.out(steps.spread(y.flatten(-2)))

    def _empty(self, k: Tensor) -> AttentionState:
        nothing = k.new_zeros(k.shape[0], self.window - 1, *k.shape[2:])
        return AttentionState(nothing, nothing, nothing.new_zeros(nothing.shape[:2], dtype=torch.bool))


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, document: Tensor, *, ahead: int = 0) -> Tensor:
    """Attention of T queries to the N - T - ahead steps before them, themselves and the `ahead` steps after them.

    Only steps of a query's own document are seen. Computed in blocks of as many queries as there are steps before
    one, each block against its own keys and those before and after it; in an export, which serves any T, in one.

    Args:
        q: [B, T, H, D].
        k, v: [B, N, H, D]; query t stands at key N - T - ahead + t.
        document: integers [B, N], equal within a document; -1 is none.

    Returns:
        [B, T, H, D].
    """
    time = q.shape[1]
    reach = k.shape[1] - time - ahead
    block = time if torch.compiler.is_exporting() else min(reach + 1, time)
    if block == time:
        q, k, v, keys = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), document[:, None]
    else:
        padding = -time % block
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q, k, v))
        document = F.pad(document, (0, padding), value=-1)
        q = q.unflatten(1, (-1, block)).transpose(2, 3).flatten(0, 1)  # [B * blocks, H, block, D]
        k, v = (x.unfold(1, block + reach + ahead, block).flatten(0, 1).transpose(2, 3) for x in (k, v))
        keys = document.unfold(1, block + reach + ahead, block)  # [B, blocks, block + reach + ahead]
    place = torch.arange(block + reach + ahead, device=q.device)
    own = slice(reach, reach + block)
    distance = place[own, None] - place
    seen = (distance >= -ahead) & (distance <= reach) & (keys[..., own, None] == keys[..., None, :])

    q, k = rotate(q, place[own]), rotate(k, place)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen.flatten(0, 1)[:, None])
    return y.unflatten(0, keys.shape[:2]).transpose(2, 3).flatten(1, 2)[:, :time]


def rotate(x: Tensor, position: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary position embedding of x [..., T, D] (D even) at `position` [T]: pairs (d, d + D / 2) turn."""
    half, dtype = x.shape[-1] // 2, torch.promote_types(x.dtype, torch.float32)
    frequency = base ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angle = position[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
