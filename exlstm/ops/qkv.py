"""What an mLSTM layer of the xLSTM paper computes before its memory (arXiv 2405.04517, figure 11)."""

from typing import NamedTuple

from torch import Tensor

from exlstm.ops.backends import resolve
from exlstm.ops.checks import check_float, check_shape


class QKVGates(NamedTuple):
    """Inputs of a matrix memory."""

    c: Tensor  # [B, T, N] convolved inputs
    q: Tensor  # [B, T, N] queries of all heads
    k: Tensor  # [B, T, N] keys
    v: Tensor  # [B, T, N] values
    gates: Tensor  # [B, T, G] gate pre-activations, in the dtype of the gate weights


def qkv_gates(
    x: Tensor,
    past: Tensor,
    conv: tuple[Tensor, Tensor],
    projections: tuple[Tensor, Tensor, Tensor],
    gates: tuple[Tensor, Tensor],
    *,
    reach: Tensor | None = None,
    backend: str = "auto",
) -> QKVGates:
    """Causal convolution, block-diagonal projections and gates.

        c_t = silu(bias + sum_j weight[:, j] x_{t - K + 1 + j})
        q_t = c_t Wq,  k_t = c_t Wk,  v_t = x_t Wv                          (each in blocks of P channels)
        gates_t = [q_t, k_t, v_t] Wg^T + bias

    Args:
        x: inputs [B, T, N].
        past: [B, K - 1, N], the inputs before the first; zeros stand for none.
        conv: weight [N, K], whose last column meets the current step, and bias [N].
        projections: of queries, keys and values, each [N / P, P (in), P (out)].
        gates: weight [G, 3 N] and bias [G].
        reach: int64 [B, T], how many of the inputs before a step it may see; None for all.
        backend: "auto", "reference", "torch", "cpu" or "triton".

    Raises:
        ValueError: shapes or dtypes do not fit, or the backend cannot run here.
    """
    check_shape("x", x, (None, None, None), "[B, T, N]")
    batch, time, width = x.shape
    kernel = conv[0].shape[-1]
    block = projections[0].shape[-1]
    check_shape("the convolution's weight", conv[0], (width, None), "[N, K]")
    check_shape("the convolution's bias", conv[1], (width,), "[N]")
    check_shape("past", past, (batch, kernel - 1, width), "[B, K - 1, N]")
    for name, weight in zip("qkv", projections, strict=True):
        check_shape(f"the weight of {name}", weight, (width // block, block, block), "[N / P, P, P]")
    check_shape("the gates' weight", gates[0], (None, 3 * width), "[G, 3 N]")
    check_shape("the gates' bias", gates[1], (len(gates[0]),), "[G]")
    check_float(x=x, past=past, weight=conv[0], bias=conv[1], gate_weight=gates[0], gate_bias=gates[1])
    if reach is not None:
        check_shape("reach", reach, (batch, time), "[B, T]")
    return QKVGates(*resolve("qkv_gates", backend, x.device)(x, past, conv, projections, gates, reach=reach))
