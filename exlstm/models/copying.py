"""Writing what the source says, word for word: a pointer-generator (arXiv 1704.04368).

What is written next is with one probability drawn from the vocabulary, and else copied from where the last read of the
memory looked. So names and numbers need not be learnt to be written, and the reads learn from the first step on where
to look.
"""

import math

import torch
from torch import Tensor, nn

from exlstm.layers.reading import Attended


class Copying(nn.Module):
    """Shares what is written between a vocabulary and a source: log p = log(c_0 p_vocabulary + sum_h c_h p_h).

    c = softmax(gate(y)), and p_h is the attention of head h to the tokens of the source, summed where they are the same
    token. So one head can point at what is to be copied while the others read what else is of use.

    Args:
        width: of what is written from, y.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 1 + heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """An eighth is copied at first, evenly by all heads."""
        nn.init.zeros_(self.gate.weight)
        with torch.no_grad():
            self.gate.bias[0] = 2.0
            self.gate.bias[1:] = -math.log(len(self.gate.bias) - 1)

    def forward(self, logits: Tensor, y: Tensor, attended: Attended, source: Tensor) -> Tensor:
        """The log probabilities of the next token.

        Args:
            logits: of the vocabulary [B, T, V].
            y: [B, T, width].
            attended: attention to the source's steps, by T steps.
            source: tokens int64 [B, S].

        Returns:
            [B, T, V], at least float32.
        """
        own, by_head = self._shares(y)
        weight = by_head * attended.weight.to(by_head.dtype)
        copied = weight.new_zeros(*logits.shape)
        for head in range(weight.shape[1]):
            at = attended.of(source)
            at = at[:, head if at.shape[1] > 1 else 0].expand(weight[:, head].shape)
            copied.scatter_add_(-1, at, weight[:, head])
        return torch.logaddexp(own[..., None] + logits.to(own.dtype).log_softmax(-1), _log(copied))

    def of_labels(self, y: Tensor, attended: Attended, source: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The log of the share left to the vocabulary, and of the copies' share times the probability they give to
        `labels` int64 [B, T]; both [B, T]."""
        own, by_head = self._shares(y)
        hits = attended.of(source) == labels[:, None, :, None]
        copied = by_head * (attended.weight.to(by_head.dtype) * hits)
        return own, _log(copied.sum((1, -1)))

    def _shares(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The log of the vocabulary's share [B, T], and the share of each head [B, H, T, 1]."""
        gate = self.gate(y)
        log = gate.to(torch.promote_types(gate.dtype, torch.float32)).log_softmax(-1)
        return log[..., 0], log[..., 1:].exp().transpose(1, 2)[..., None]


def _log(probability: Tensor) -> Tensor:
    """The logarithm, finite for 0 and with a gradient of 0 there."""
    return probability.clamp(min=torch.finfo(probability.dtype).tiny).log()
