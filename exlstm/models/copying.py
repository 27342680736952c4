"""Writing what the source says, word for word: a pointer-generator (arXiv 1704.04368).

What is written next is with one probability drawn from the vocabulary, and else copied from where the last read of the
memory looked. So names and numbers need not be learnt to be written, and the reads learn from the first step on where
to look.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exlstm.layers.reading import Attended


class Copying(nn.Module):
    """Shares what is written between a vocabulary and a source: log p = log((1 - c) p_vocabulary + c p_source).

    c = sigmoid(gate(y)), and p_source is the attention to the tokens of the source, summed where they are the same
    token, the mean of all heads.

    Args:
        width: of what is written from, y.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """An eighth is copied at first."""
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, -2.0)

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
        log_own, log_copied = self._shares(y)
        weight = attended.weight.to(log_own.dtype)
        copied = weight.new_zeros(*logits.shape)
        for head in range(weight.shape[1]):
            at = attended.of(source)
            at = at[:, head if at.shape[1] > 1 else 0].expand(weight[:, head].shape)
            copied.scatter_add_(-1, at, weight[:, head] / weight.shape[1])
        return torch.logaddexp(log_own + logits.to(log_own.dtype).log_softmax(-1), log_copied + _log(copied))

    def of_labels(self, y: Tensor, attended: Attended, source: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The log of the share left to the vocabulary, and of the copies' share times the probability they give to
        `labels` int64 [B, T]; both [B, T]."""
        log_own, log_copied = self._shares(y)
        hits = attended.of(source) == labels[:, None, :, None]
        copied = (attended.weight.to(log_own.dtype) * hits).sum(-1).mean(1)
        return log_own[..., 0], log_copied[..., 0] + _log(copied)

    def _shares(self, y: Tensor) -> tuple[Tensor, Tensor]:
        gate = self.gate(y)
        gate = gate.to(torch.promote_types(gate.dtype, torch.float32))
        return F.logsigmoid(-gate), F.logsigmoid(gate)


def _log(probability: Tensor) -> Tensor:
    """The logarithm, finite for 0 and with a gradient of 0 there."""
    return probability.clamp(min=torch.finfo(probability.dtype).tiny).log()
