"""Sequences cut into chunks of equal size."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Chunks:
    """`time` steps as chunks of `size` steps, the last of them filled up."""

    time: int
    size: int

    def split(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """[B, T, H, ...] to [N, B, H, L, ...], contiguous."""
        batch, _, heads, *rest = x.shape
        short = -self.time % self.size
        if short:
            x = pad(x, (*[0, 0] * len(rest), 0, 0, 0, short), value=fill)
        return (
            x.reshape(batch, (self.time + short) // self.size, self.size, heads, *rest)
            .permute(1, 0, 3, 2, *range(4, x.dim() + 1))
            .contiguous()
        )

    def join(self, x: Tensor) -> Tensor:
        """[N, B, H, L, D] to [B, T, H, D], without the filling."""
        return x.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, : self.time]
