"""A linear classifier of bags, solved rather than trained: what single words and short runs of them say."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exlstm.data.text.bags import Bags, occurrences, stack_bags

STRENGTH = 20.0
"""Of the data against the penalty: half the squared weights are added to this many times the sum of the losses."""
_LEAST = 2  # bags that a bucket must be in to be known; what is in one alone says nothing of others
_ITERATIONS = 100
_AT_ONCE = 1024


class BagLinear(nn.Module):
    """Logistic regression of bags: `logits = linear(bags)`, [B, classes].

    Entries weigh (1 + log count) times how rare their bucket is, and a row's weights have length 1, as with TF-IDF.
    All of it comes from `solve`; no gradient reaches it. It knows nothing at first.
    """

    weight: Tensor
    bias: Tensor
    rarity: Tensor

    def __init__(self, buckets: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(buckets, classes))
        self.register_buffer("bias", torch.zeros(classes))
        self.register_buffer("rarity", torch.zeros(buckets))

    def forward(self, bags: Bags) -> Tensor:
        weights = self.entries(bags)
        if torch.compiler.is_exporting():  # a trace of embedding_bag does not take a batch of one
            return (weights[:, None] @ self.weight[bags.buckets])[:, 0] + self.bias
        return F.embedding_bag(bags.buckets, self.weight, per_sample_weights=weights, mode="sum") + self.bias

    def entries(self, bags: Bags) -> Tensor:
        """The weights of a bag's entries [B, N]."""
        much = torch.where(bags.counts > 0, 1 + bags.counts.clamp(min=1).log(), 0)
        return F.normalize(much.to(self.rarity.dtype) * self.rarity[bags.buckets], dim=-1)

    @torch.no_grad()
    def solve(self, bags: Sequence[Counter[int]], labels: Sequence[int], weights: Tensor | None = None) -> None:
        """Find the weights with the least loss on some bags and their labels, by L-BFGS.

        Args:
            labels: of each bag, from 0 to classes - 1.
            weights: of each class in the loss [classes]; None: all count 1.
        """
        found = occurrences(bags, len(self.rarity))
        known = (found >= _LEAST).nonzero()[:, 0]
        self.rarity.zero_()
        self.rarity[known] = (((1 + len(bags)) / (1 + found[known])).log() + 1).to(self.rarity)
        target = torch.tensor([*labels])
        share = torch.ones(len(target)) if weights is None else weights.cpu()[target]
        weight, bias = _least_loss(self._entries(bags, known), target, share, len(known), len(self.bias))
        self.weight.zero_()
        self.weight[known.to(self.weight.device)] = weight.to(self.weight)
        self.bias.copy_(bias)

    def _entries(self, bags: Sequence[Counter[int]], known: Tensor) -> "_Entries":
        """The entries of all bags at the known buckets, which are numbered anew."""
        place = torch.full((len(self.rarity),), -1)
        place[known] = torch.arange(len(known))
        parts = []
        for begin in range(0, len(bags), _AT_ONCE):
            some = stack_bags(bags[begin : begin + _AT_ONCE])
            weights = self.entries(some.to(self.rarity.device)).float().cpu()
            at = (some.counts > 0) & (place[some.buckets] >= 0)
            parts.append((at.nonzero()[:, 0] + begin, place[some.buckets[at]], weights[at]))
        return _Entries(*(torch.cat(each) for each in zip(*parts, strict=True)))


class _Entries(NamedTuple):
    """A sparse matrix: the places and values of what is not 0."""

    rows: Tensor
    columns: Tensor
    values: Tensor

    def times(self, height: int) -> Callable[[Tensor], Tensor]:
        """The function that multiplies this matrix, `height` rows of it, by one [columns, n]."""
        order = self.rows.argsort(stable=True)
        columns, values = self.columns[order], self.values[order]
        offsets = torch.bincount(self.rows, minlength=height).cumsum(0).roll(1)
        offsets[0] = 0
        return lambda x: F.embedding_bag(columns, x, offsets, per_sample_weights=values, mode="sum")


def _least_loss(entries: _Entries, target: Tensor, share: Tensor, columns: int, classes: int) -> tuple[Tensor, Tensor]:
    """Weights [columns, classes] and biases [classes] of the logistic regression of `target` on the rows of entries."""
    weight, bias = torch.zeros(columns, classes), torch.zeros(classes)
    if columns == 0:
        return weight, bias
    one_hot = F.one_hot(target, classes).float()
    forth = entries.times(len(target))
    back = _Entries(entries.columns, entries.rows, entries.values).times(columns)
    penalty = 1 / (STRENGTH * len(target))
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, history_size=5, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        logits = forth(weight) + bias
        error = (logits.softmax(-1) - one_hot) * share[:, None] / len(target)
        weight.grad = back(error) + penalty * weight
        bias.grad = error.sum(0)
        mean = (F.cross_entropy(logits, target, reduction="none") * share).mean()
        return float(mean + penalty / 2 * weight.square().sum())

    solver.step(loss)
    return weight, bias
