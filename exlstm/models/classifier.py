"""The classifier: a sequence in, a class out."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from exlstm.data.text.bags import Bags
from exlstm.layers.block import Style
from exlstm.layers.init import small_init_
from exlstm.models.backbone import Backbone
from exlstm.models.bag_linear import BagLinear
from exlstm.models.saving import Pretrained
from exlstm.ops.checks import check_float, check_shape, check_steps, state_dtype


@dataclass(frozen=True)
class ClassifierConfig:
    """What a classifier is made of."""

    labels: tuple[str, ...]
    """The names of the classes."""
    vocabulary: int | None = None
    """Tokens there are, 0 to vocabulary - 1, where the sequences are tokens; else None."""
    features: int | None = None
    """Numbers in a step, where the sequences are numbers; else None."""
    pattern: str = "s"
    """The blocks, see `parse_pattern`."""
    width: int = 64
    heads: int = 4
    style: Style = "paper"
    dropout: float = 0.4
    """Probability with which numbers are dropped in training: of the steps, of what a block adds, of what is pooled."""
    step_dropout: float = 0.2
    """Probability with which whole steps are hidden in training."""
    levels: int = 12
    """Levels of hierarchical memories."""
    window: int = 256
    """Steps that attention sees."""
    members: int = 1
    """Networks side by side, each from a beginning of its own, whose opinions are averaged."""
    buckets: int = 0
    """Of the bags that a linear member reads beside the others; 0: there is none, and no bags."""
    grams: int = 2
    """Longest run of words that bags were made of."""

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise ValueError(f"expected labels of at least 2 classes, each once, received {', '.join(self.labels)!r}")
        if (self.vocabulary is None) == (self.features is None):
            raise ValueError(
                "expected either vocabulary, for sequences of tokens, or features, for sequences of numbers; received "
                f"vocabulary {self.vocabulary} and features {self.features}"
            )
        for name, least in (("vocabulary", 2), ("features", 1), ("members", 1), ("buckets", 0), ("grams", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"expected {name} of at least {least}, received {value}")
        if self.width % self.heads:
            raise ValueError(
                f"expected width to be a multiple of heads, received width {self.width} and heads {self.heads}"
            )


class Classifier(Pretrained):
    """Sequences [B, T], or [B, T, features], to logits [B, classes].

        members   each an embedding, bidirectional blocks, pooling over the steps, head
        linear    logistic regression of bags of what occurs in a sequence, on request

    Each learns by itself (`apart=True` gives the logits of each). The mean of the members' log-probabilities decides,
    and of it and the linear part's a mean in which the members have the share `share`, which `settle` finds on held-out
    sequences: what single words tell is not lost to blocks that know the training texts by heart. (arXiv 1606.07792
    trains both on one sum, where what one has learnt the other no longer learns.)

    `Classifier(config)` or `Classifier(labels=("no", "yes"), vocabulary=256, ...)` with the fields of
    `ClassifierConfig`.
    """

    config_class: ClassVar[type] = ClassifierConfig
    model_type: ClassVar[str] = "classifier"
    config: ClassifierConfig
    share: Tensor

    def __init__(self, config: ClassifierConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = c = replace(config, **fields) if config else ClassifierConfig(**fields)
        self.members = nn.ModuleList(Member(c) for _ in range(c.members))
        self.linear = BagLinear(c.buckets, len(c.labels)) if c.buckets else None
        self.register_buffer("share", torch.tensor(0.5 if c.buckets else 1.0))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, bags: Bags | None = None, apart: bool = False
    ) -> Tensor:
        """Logits of the classes.

        Args:
            x: tokens int64 [B, T], or float [B, T, features].
            mask: bool [B, T]; False steps count as absent, whatever stands there.
            bags: of each sequence; if and only if the config has `buckets`.
            apart: give the logits of each member, the linear one last.

        Returns:
            [B, classes], log-probabilities up to a number for each row; [B, members, classes] if `apart`.

        Raises:
            ValueError: shapes or dtypes do not fit, or a token is out of range.
        """
        check_steps("mask", mask, *x.shape[:2])
        if mask is not None:
            x = x.masked_fill(~mask.view(*mask.shape, *[1] * (x.dim() - 2)), 0)
        self._check(x)
        if (bags is None) != (self.linear is None):
            wanted = "bags, which this model's linear part reads" if bags is None else "no bags: config.buckets is 0"
            raise ValueError(f"expected {wanted}")
        opinions = [member(x, mask) for member in self.members]
        if self.linear is not None and bags is not None:
            opinions.append(self.linear(bags))
        logits = torch.stack(opinions, 1)
        return logits if apart else self.combine(logits)

    def combine(self, logits: Tensor) -> Tensor:
        """The logits [B, classes] that the logits of each member [B, members, classes] come to together."""
        sure = logits.to(state_dtype(logits)).log_softmax(-1)
        blocks = sure[:, : self.config.members].mean(1)
        return blocks if self.linear is None else sure[:, -1].lerp(blocks, self.share.to(blocks))

    @torch.no_grad()
    def settle(self, logits: Tensor, labels: Tensor) -> float:
        """Choose the share of the members that suits sequences they did not learn from best.

        Args:
            logits: of each member for some sequences [B, members, classes].
            labels: int64 [B], their classes.

        Returns:
            the mean cross-entropy of the labels with that share, in nats.
        """
        losses = {}
        for tenths in range(11) if self.linear is not None else [10]:
            self.share.fill_(tenths / 10)
            losses[tenths] = float(cross_entropy(self.combine(logits), labels))
        best = min(losses, key=lambda tenths: (losses[tenths], abs(tenths - 5)))
        self.share.fill_(best / 10)
        return losses[best]

    def _check(self, x: Tensor) -> None:
        c = self.config
        if c.vocabulary is None:
            check_shape("x", x, (None, None, c.features), "[B, T, features]")
            check_float(x=x)
            return
        check_shape("x", x, (None, None), "[B, T]")
        if x.dtype != torch.int64:
            raise ValueError(f"x must be int64 tokens, got {x.dtype}; convert them with .long()")
        if torch.compiler.is_compiling():  # values are not known then
            return
        if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < c.vocabulary:
            raise ValueError(
                f"tokens must be from 0 to {c.vocabulary - 1}, as this model's vocabulary has them, got "
                f"{int(x.min())} to {int(x.max())}; encode the text with the model's own tokenizer"
            )


class Member(nn.Module):
    """One network: `logits = member(x, mask)`, [B, classes]."""

    def __init__(self, c: ClassifierConfig) -> None:
        super().__init__()
        self.embedding: nn.Module
        if c.vocabulary is not None:
            self.embedding = nn.Embedding(c.vocabulary, c.width)
            small_init_(self.embedding.weight, c.width)
        else:
            assert c.features is not None
            self.embedding = nn.Linear(c.features, c.width)
        self.hide, self.dropout = nn.Dropout1d(c.step_dropout), nn.Dropout(c.dropout)
        self.backbone = Backbone(
            c.pattern,
            c.width,
            c.heads,
            style=c.style,
            dropout=c.dropout,
            levels=c.levels,
            window=c.window,
            bidirectional=True,
        )
        self.pooling = Pooling(c.width, c.heads)
        self.head = nn.Linear(2 * c.width, len(c.labels))
        small_init_(self.head.weight, 2 * c.width)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y, _ = self.backbone(self.dropout(self.hide(self.embedding(x))), mask=mask, return_state=False)
        return self.head(self.dropout(self.pooling(y, mask)))


class Pooling(nn.Module):
    """What is in the steps y [B, T, width] as one vector [B, 2 width]: a mean with learned weights, and the largest.

    Each head weighs the steps anew (arXiv 1703.03130), all alike at first. A row without steps gives 0.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, heads, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        score = self.score(y)
        score = score.to(state_dtype(score))
        if mask is None:
            mask = y.new_ones(y.shape[:2], dtype=torch.bool)
        absent, some = ~mask[..., None], mask.any(1)[:, None]
        # A row without steps would be NaN: it sees all of them, and what it found is dropped.
        weights = score.masked_fill(absent & some[..., None], -math.inf).softmax(1).to(y.dtype)
        mean = (weights[..., None] * y.unflatten(-1, (weights.shape[-1], -1))).sum(1).flatten(1)
        return torch.cat([mean, y.masked_fill(absent, -math.inf).amax(1)], 1).masked_fill(~some, 0)
