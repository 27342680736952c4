"""What becomes of the reads of a matrix memory: a norm for every head, a skip, and an output gate."""

from typing import Literal

from torch import Tensor

from exlstm.ops.backends import resolve
from exlstm.ops.checks import check_float, check_shape

OutputGate = Literal["silu", "sigmoid"]


def gated_norm(
    h: Tensor,
    weight: Tensor,
    gate: Tensor,
    *,
    skip: tuple[Tensor, Tensor] | None = None,
    activation: OutputGate = "silu",
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """(weight layer_norm(h) + skip) activation(gate), the norm taken of every head by itself.

    Args:
        h: reads [B, T, H, D].
        weight: of the norm [H D].
        gate: pre-activations [B, T, H D].
        skip: a weight [H D] and what it multiplies [B, T, H D]; None for no skip.
        activation: "silu" (arXiv 2405.04517, figure 11) or "sigmoid" (arXiv 2503.13427).
        eps: added to the variance.
        backend: "auto", "reference", "torch", "cpu" or "triton".

    Returns:
        [B, T, H D] in the dtype of h.

    Raises:
        ValueError: shapes or dtypes do not fit, or the backend cannot run here.
    """
    check_shape("h", h, (None, None, None, None), "[B, T, H, D]")
    batch, time, heads, width = h.shape
    check_shape("weight", weight, (heads * width,), "[H D]")
    check_shape("gate", gate, (batch, time, heads * width), "[B, T, H D]")
    check_float(h=h, weight=weight, gate=gate)
    if skip is not None:
        check_shape("the skip's weight", skip[0], (heads * width,), "[H D]")
        check_shape("the skip", skip[1], (batch, time, heads * width), "[B, T, H D]")
        check_float(h=h, weight=skip[0], skip=skip[1])
    if activation not in ("silu", "sigmoid"):
        raise ValueError(f"activation must be 'silu' or 'sigmoid', got {activation!r}")
    run = resolve("gated_norm", backend, h.device)
    return run(h, weight, gate, skip=skip, activation=activation, eps=eps)
