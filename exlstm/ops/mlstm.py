"""mLSTM: an LSTM cell with a matrix memory and exponential gating (xLSTM, arXiv 2405.04517, equations 19 to 27)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.backends import resolve
from exlstm.ops.checks import check_float, check_shape, check_steps, check_time, state_dtype

EPS = 1e-6
InputGate = Literal["exp", "sigmoid"]


def normaliser_floor(m: Tensor) -> Tensor:
    """exp(-m), the least denominator of a read, bounded so that neither it nor its gradient overflows.

    Where the bound binds, h is below exp(-80) in size (float32), far less than the eps of any sum it enters.
    """
    return (-m).clamp(max=largest_floor(m.dtype)).exp()


def largest_floor(dtype: torch.dtype) -> float:
    """The logarithm of the bound of `normaliser_floor`."""
    return 80.0 if dtype == torch.float32 else 700.0


class MLSTMState(NamedTuple):
    """The memory of an mLSTM between two steps; float32, or float64 for float64 inputs."""

    C: Tensor  # [B, H, DK, DV] matrix memory, scaled by exp(-m)
    n: Tensor  # [B, H, DK] normaliser, scaled by exp(-m)
    m: Tensor  # [B, H] stabiliser: the largest log weight so far

    @classmethod
    def empty(
        cls, batch: int, heads: int, dk: int, dv: int, *, dtype: torch.dtype, device: torch.device
    ) -> "MLSTMState":
        """A memory that holds nothing."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(batch, heads, *shape, dtype=dtype, device=device)

        return cls(zeros(dk, dv), zeros(dk), zeros())

    @classmethod
    def empty_for(cls, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> "MLSTMState":
        """A memory that holds nothing, for a call of `mlstm`."""
        batch, _, heads, dk = q.shape
        return cls.empty(batch, heads, dk, v.shape[-1], dtype=state_dtype(q, k, v, i, f), device=q.device)


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState | None = None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    chunk_size: int | None = None,
    input_gate: InputGate = "exp",
    backend: str = "auto",
) -> tuple[Tensor, MLSTMState]:
    """Run an mLSTM over a sequence.

        m_t = max(log f_t + m_{t-1}, i_t)
        C_t = exp(log f_t + m_{t-1} - m_t) C_{t-1} + exp(i_t - m_t) k_t v_t^T        (n_t likewise, of k_t alone)
        h_t = (C_t^T q_t / sqrt(DK)) / (max(|n_t . q_t| / sqrt(DK), exp(-m_t)) + 1e-6)

    Args:
        q: queries [B, T, H, DK].
        k: keys [B, T, H, DK].
        v: values [B, T, H, DV].
        i: input gate pre-activations [B, T, H].
        f: forget gate pre-activations [B, T, H]; the forget gate is sigmoid(f).
        state: the memory before the first step; None is an empty one.
        mask: bool [B, T]; a False step leaves the memory untouched and outputs 0.
        reset: bool [B, T]; the memory is emptied before a True step, masked or not.
        chunk_size: steps worked on at once by the chunkwise backends; None chooses. Results do not depend on it.
        input_gate: "exp", or "sigmoid" for mLSTMsig (arXiv 2503.14376): weight sigmoid(i_t), no normaliser, no m.
        backend: "auto", "reference", "torch", "cpu" or "triton".

    Returns:
        h [B, T, H, DV] in the dtype of v, and the memory after the last step.

    Raises:
        ValueError: shapes or dtypes do not fit, or the backend cannot run here.
    """
    check_shape("q", q, (None, None, None, None), "[B, T, H, DK]")
    check_shape("k", k, q.shape, "[B, T, H, DK]")
    check_float(q=q, k=k)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    state = _checked(k, v, i, f, state, mask, reset, input_gate, state_dtype(q, k, v, i, f))
    run = resolve("mlstm", backend, q.device)
    return run(q, k, v, i, f, state, mask=mask, reset=reset, chunk_size=chunk_size, input_gate=input_gate)


def mlstm_state(
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState | None = None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    input_gate: InputGate = "exp",
    backend: str = "auto",
) -> MLSTMState:
    """The memory that `mlstm` returns, without its outputs: for a prompt whose outputs nobody reads, or one part of a
    sequence that several processes share.

    Arguments as there. Nothing is read, and no memories of chunks are kept.

    Returns:
        the memory after the last step.

    Raises:
        ValueError: shapes or dtypes do not fit, or the backend cannot run here.
    """
    state = _checked(k, v, i, f, state, mask, reset, input_gate, state_dtype(k, v, i, f))
    run = resolve("mlstm_state", backend, k.device)
    after: MLSTMState = run(k, v, i, f, state, mask=mask, reset=reset, input_gate=input_gate)
    return after


def _checked(
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState | None,
    mask: Tensor | None,
    reset: Tensor | None,
    input_gate: InputGate,
    dtype: torch.dtype,
) -> MLSTMState | None:
    """Raise ValueError unless the arguments fit each other; the state in `dtype`."""
    check_shape("k", k, (None, None, None, None), "[B, T, H, DK]")
    batch, time, heads, dk = k.shape
    check_time(time)
    check_shape("v", v, (batch, time, heads, None), "[B, T, H, DV]")
    check_shape("i", i, (batch, time, heads), "[B, T, H]")
    check_shape("f", f, (batch, time, heads), "[B, T, H]")
    check_float(k=k, v=v, i=i, f=f)
    check_steps("mask", mask, batch, time)
    check_steps("reset", reset, batch, time)
    if input_gate not in ("exp", "sigmoid"):
        raise ValueError(f"input_gate must be 'exp' or 'sigmoid', got {input_gate!r}")
    if state is None:
        return None
    check_shape("state.C", state.C, (batch, heads, dk, v.shape[-1]), "[B, H, DK, DV]")
    check_shape("state.n", state.n, (batch, heads, dk), "[B, H, DK]")
    check_shape("state.m", state.m, (batch, heads), "[B, H]")
    check_float(k=k, C=state.C, n=state.n, m=state.m)
    state = MLSTMState(*(x.to(dtype) for x in state))
    if input_gate == "sigmoid":  # which has neither n nor m
        state = MLSTMState(state.C, torch.zeros_like(state.n), torch.zeros_like(state.m))
    return state
