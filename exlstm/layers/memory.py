"""A hierarchical memory that is written once and read by context: a tree of matrix memories over a source.

The leaves are short segments of the source; a node above joins two below. Every node above a leaf holds what its steps
wrote, as the memory of an mLSTM does, and is found by the mean of their keys. A reader goes from coarse to fine: at
every level it scores the nodes below those it kept, keeps the best and reads the memories of the best of these; to the
steps of the leaves that are left it attends; in the end it mixes the levels. So what matters is found in O(log S) and
read exactly, and the rest in outline. A source of so few leaves that all are kept is attended to, and no more: what is
learnt there, which keys answer which query, is what finds nodes in longer ones. In training a longer source is attended
to as a whole too, as far as all products of queries and keys cost less than looking for nodes.
"""

import math

import torch
from torch import Tensor, nn

from exlstm.layers.init import small_init_, wang_init_
from exlstm.layers.linear import head_width
from exlstm.layers.norm import MultiHeadNorm
from exlstm.layers.reading import Trace
from exlstm.layers.recall import Form, read, sparse_is_cheaper
from exlstm.layers.steps import Lookback
from exlstm.layers.tree import Stored, store
from exlstm.ops.checks import check_shape, check_steps


class MemoryWriter(nn.Module):
    """Writes a source into a hierarchical memory: `stored = writer(source, mask)`.

    Args:
        width: of the source.
        heads: memories side by side.
        leaf: steps of a leaf; None keeps the whole source in one flat memory.
        keep: as the readers'; sources that they read in the dense form are then stored without matrices, which that
            form has no use for. None forms them for all sources.
    """

    def __init__(self, width: int, heads: int, *, leaf: int | None = 4, keep: int | None = None) -> None:
        super().__init__()
        head_width(width, heads)
        for name, value in (("leaf", leaf), ("keep", keep)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or None, got {value}")
        self.heads, self.leaf, self.keep = heads, leaf, keep
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.gate = nn.Linear(width, heads, bias=False)  # weights count by their ratios alone
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All steps weigh alike at first."""
        small_init_(self.kv.weight, self.kv.in_features)
        nn.init.zeros_(self.gate.weight)

    def forward(self, source: Tensor, mask: Tensor | None = None) -> Stored:
        """Write `source` [B, S, width]; steps where `mask` [B, S] is False are absent, whatever stands there."""
        check_shape("source", source, (None, None, self.kv.in_features), "[B, S, width]")
        check_steps("mask", mask, *source.shape[:2])
        # Absent steps go to the end, so that padding and gaps change no segment.
        steps = Lookback(0, source.shape[1], mask=mask, reset=None)
        source = steps.align(source if mask is None else source.masked_fill(~mask[..., None], 0))
        k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.kv(source).chunk(2, -1))
        log = self.gate(source).transpose(1, 2)
        log = log.to(torch.promote_types(log.dtype, torch.float32))
        if mask is not None:
            log = log.masked_fill(~steps.align(mask)[:, None], -math.inf)
        leaf, size = self.leaf or source.shape[1], k.shape[-1]
        matrices = self.keep is None or sparse_is_cheaper(source.shape[1], leaf, self.keep, size, size)
        return store(k, v, log, leaf, attend=self.leaf is not None, matrices=matrices)


class MemoryReader(nn.Module):
    """Reads a hierarchical memory by context: `y, trace = reader(stored, x)` with x, y [B, T, width].

    Args:
        width: of queries and outputs, and of the source that was written.
        heads: as the writer's; each chooses its nodes by itself.
        keep: nodes of a level that are kept, see `exlstm.layers.recall.read`.
        levels: levels told apart; all above share the last one's weight.
        norm: what every head read is normalised, as that of an mLSTM's memory is: for flat memories. Attention is not,
            whose sharpness tells how well something was found.
        depth: blocks in the model, by which the output projection is scaled at first.
    """

    def __init__(
        self, width: int, heads: int, *, keep: int = 128, levels: int = 12, norm: bool = False, depth: int = 1
    ) -> None:
        super().__init__()
        head_width(width, heads)
        for name, value in (("keep", keep), ("levels", levels)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.heads, self.keep, self.levels, self.depth = heads, keep, levels, depth
        self.query = nn.Linear(width, width, bias=False)
        self.level = nn.Linear(width, heads * levels)
        self.norm = MultiHeadNorm(width) if norm else nn.Flatten(-2)
        self.out = nn.Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The leaves have nearly all weight at first: attention learns soonest, and finds what is to be mixed in."""
        small_init_(self.query.weight, self.query.in_features)
        wang_init_(self.out.weight, self.out.out_features, self.depth)
        nn.init.zeros_(self.level.weight)
        if self.level.bias.is_meta:  # which has no numbers
            return
        with torch.no_grad():
            self.level.bias.view(self.heads, self.levels).copy_(5.0 * (torch.arange(self.levels) == 0))

    def forward(self, stored: Stored, x: Tensor, *, form: Form = "auto", trace: bool = False) -> tuple[Tensor, Trace]:
        """Read for every step of `x` [B, T, width].

        Args:
            stored: what a writer of as many heads and the same width returned.
            form: "dense" forms all T x S products, "sparse" reads the kept nodes alone; "auto" takes what costs less.
            trace: also tell which nodes were read.
        """
        check_shape("x", x, (stored.k.shape[0], None, self.query.in_features), "[B, T, width]")
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        level = self.level(x).unflatten(-1, (self.heads, self.levels)).transpose(1, 2)
        h, found = read(stored, q, level, keep=self.keep, form=form, whole=self.training, trace=trace)
        return self.out(self.norm(h.transpose(1, 2))), found
