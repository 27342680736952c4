"""sLSTM: a scalar-memory LSTM cell with exponential gating and memory mixing (arXiv 2405.04517, equations 8 to 18)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.backends import resolve
from exlstm.ops.checks import check_float, check_shape, check_steps, check_time, state_dtype


class SLSTMState(NamedTuple):
    """The memory of an sLSTM between two steps, each [B, H, D]; float32, or float64 for float64 inputs."""

    c: Tensor  # cell, scaled by exp(-m)
    n: Tensor  # normaliser, scaled by exp(-m); 0 where the memory is empty, at least 1 elsewhere
    m: Tensor  # stabiliser
    h: Tensor  # output of the last step

    @classmethod
    def empty(cls, batch: int, heads: int, width: int, *, dtype: torch.dtype, device: torch.device) -> "SLSTMState":
        """A memory that holds nothing."""
        return cls(*torch.zeros(4, batch, heads, width, dtype=dtype, device=device))


def slstm(
    x: Tensor,
    r: Tensor,
    state: SLSTMState | None = None,
    *,
    forget_cap: float | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, SLSTMState]:
    """Run an sLSTM over a sequence.

        g_t = x_t[g] + h_{t-1} r[g]                       for the gates g = i, f, z, o
        m_t = max(log f_t + m_{t-1}, i_t)                 (m_t = i_t where the memory is empty)
        c_t = exp(log f_t + m_{t-1} - m_t) c_{t-1} + exp(i_t - m_t) tanh(z_t)        (n_t likewise, of 1)
        h_t = sigmoid(o_t) c_t / n_t                      with log f_t = logsigmoid(min(f_t, forget_cap))

    Args:
        x: pre-activations from the input [B, T, 4, H, D], gates in the order i, f, z, o, bias included.
        r: recurrent weights [4, H, D, D], from h_{t-1} (first D) to the gate (last D).
        state: the memory before the first step; None is an empty one.
        forget_cap: bound of the forget gates' pre-activations, recurrence included, from above; None for none.
        mask: bool [B, T]; a False step leaves the memory untouched and outputs 0.
        reset: bool [B, T]; the memory is emptied before a True step, masked or not.
        backend: "auto", "reference", "torch", "cpu" or "triton".

    With x in bfloat16 or float16, "triton" rounds both operands of products with r to that; "cpu" to bfloat16, where
    the processor multiplies it.

    Returns:
        h [B, T, H, D] in the dtype of x, and the memory after the last step.

    Raises:
        ValueError: shapes or dtypes do not fit, the cap is NaN, or the backend cannot run here.
    """
    check_shape("x", x, (None, None, 4, None, None), "[B, T, 4, H, D]")
    batch, time, _, heads, width = x.shape
    check_time(time)
    check_shape("r", r, (4, heads, width, width), "[4, H, D, D]")
    check_float(x=x, r=r)
    check_steps("mask", mask, batch, time)
    check_steps("reset", reset, batch, time)
    cap = math.inf if forget_cap is None else float(forget_cap)
    if math.isnan(cap):
        raise ValueError("forget_cap must be a number or None, got nan")
    dtype = state_dtype(x, r)
    if state is None:
        state = SLSTMState.empty(batch, heads, width, dtype=dtype, device=x.device)
    else:
        for name, value in zip(SLSTMState._fields, state, strict=True):
            check_shape(f"state.{name}", value, (batch, heads, width), "[B, H, D]")
            check_float(**{"x": x, f"state.{name}": value})
        state = SLSTMState(*(s.to(dtype) for s in state))
    return resolve("slstm", backend, x.device)(x, r, state, forget_cap=cap, mask=mask, reset=reset)
