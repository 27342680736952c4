"""The language model: tokens in, logits of the next token out, state carried."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from exlstm.layers.block import ADDED, BlockOptions, Style
from exlstm.layers.init import small_init_
from exlstm.models import generation
from exlstm.models.backbone import Backbone, BackboneState, FinalNorm
from exlstm.models.decoder import Decoder
from exlstm.models.generation import GREEDY, Generated, Sampling
from exlstm.models.losses import linear_cross_entropy
from exlstm.models.saving import Pretrained
from exlstm.ops.checks import check_shape
from exlstm.ops.program import Weights

PIECE = 1024
"""Tokens of a prompt that are read at once."""


@dataclass(frozen=True)
class LanguageModelConfig:
    """What a language model is made of."""

    vocabulary: int
    """Tokens there are: 0 to vocabulary - 1."""
    pattern: str = "mmmmmh"
    """The blocks, see `parse_pattern`."""
    width: int = 256
    heads: int = 4
    style: Style = "paper"
    dropout: float = 0.0
    levels: int = 12
    """Levels of hierarchical memories."""
    window: int = 256
    """Steps that attention sees."""
    tied: bool = False
    """The head's weight is the embedding's."""
    soft_cap: float | None = None
    """Logits x become soft_cap * tanh(x / soft_cap), as xLSTM-7B has them with 30; None: they are left alone."""
    options: BlockOptions = field(default=BlockOptions(), metadata=ADDED)
    """In what the blocks differ from those of the style."""
    final_norm: FinalNorm = field(default="plain", metadata=ADDED)
    """The norm after the blocks: "plain", "biased" or "none"."""

    def __post_init__(self) -> None:
        if self.vocabulary < 2:
            raise ValueError(f"expected vocabulary of at least 2, received {self.vocabulary}")
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"expected soft_cap above 0 or None, received {self.soft_cap}")


class LanguageModel(Pretrained):
    """Embedding, `Backbone`, head.

    `LanguageModel(config)` or `LanguageModel(vocabulary=256, pattern="mmsh", ...)` with the fields of
    `LanguageModelConfig`. `logits, state = model(tokens, state, mask=, reset=)`.
    """

    config_class: ClassVar[type] = LanguageModelConfig
    model_type: ClassVar[str] = "language_model"
    config: LanguageModelConfig

    def __init__(self, config: LanguageModelConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = c = replace(config, **fields) if config else LanguageModelConfig(**fields)
        self.embedding = nn.Embedding(c.vocabulary, c.width)
        self.dropout = nn.Dropout(c.dropout)
        self.backbone = Backbone(
            c.pattern,
            c.width,
            c.heads,
            style=c.style,
            dropout=c.dropout,
            levels=c.levels,
            window=c.window,
            options=c.options,
            final_norm=c.final_norm,
        )
        self.head = nn.Linear(c.width, c.vocabulary, bias=False)
        if c.tied:
            self.head.weight = self.embedding.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Embedding and head; the backbone has begun its own."""
        small_init_(self.embedding.weight, self.config.width)
        if not self.config.tied:
            small_init_(self.head.weight, self.config.width)

    def forward(
        self,
        tokens: Tensor,
        state: BackboneState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        targets: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, BackboneState | None]:
        """Logits of the token after each, or the loss where that token is known.

        Args:
            tokens: int64 [B, T].
            state: what the call for the piece before returned; None at the beginning.
            mask: bool [B, T]; False steps count as absent, whatever token stands there.
            reset: bool [B, T]; a new document begins at a True step.
            targets: int64 [B, T], the token after each, `IGNORED` where none counts.
            return_state: False where nothing goes on from the last token; the state is None then.

        Returns:
            logits [B, T, vocabulary], or with `targets` their mean cross-entropy in nats, for which not all logits are
            held at once; and the state after the last step.

        Raises:
            ValueError: shapes or dtypes do not fit, or a token is out of range.
        """
        self._check(tokens)
        x = self.dropout(self.embedding(tokens if mask is None else tokens.masked_fill(~mask, 0)))
        y, state = self.backbone(x, state, mask=mask, reset=reset, return_state=return_state)
        if targets is None:
            return self._cap(self.head(y)), state
        if self.config.soft_cap is None:
            return linear_cross_entropy(y, self.head.weight, targets), state
        return cross_entropy(self._cap(self.head(y)).flatten(0, 1).float(), targets.flatten()), state

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        most: int = 256,
        sampling: Sampling = GREEDY,
        stop: Sequence[int] = (),
        state: BackboneState | None = None,
        seed: int | None = None,
        weights: Weights = "full",
    ) -> Generated:
        """Continue each prompt by up to `most` tokens; a row ends with the first token of `stop`, which is kept.

        Args:
            prompts: tokens of each row, at least one; of any lengths.
            state: of the rows after what precedes the prompts; None at the beginning.
            seed: of sampling; None: torch's own generator.
            weights: "full", "bfloat16" or "int8", see `Decoder`.

        Returns:
            the new tokens of each row, and the state after them, from which a later call may go on: it has read
            all of them but each row's last, which is to be the first of the next prompt.

        Raises:
            ValueError: a prompt is empty, or an argument is out of range.
        """
        reader = self.prefill(prompts, state, weights=weights)
        return generation.generate(reader, most=most, sampling=sampling, stop=stop, seed=seed)

    @torch.no_grad()
    def stream(
        self,
        prompt: Sequence[int],
        *,
        most: int = 256,
        sampling: Sampling = GREEDY,
        stop: Sequence[int] = (),
        state: BackboneState | None = None,
        seed: int | None = None,
        weights: Weights = "full",
    ) -> Iterator[int]:
        """The tokens of `generate` for one prompt, each as soon as it is there; arguments as there."""
        reader = self.prefill([prompt], state, weights=weights)
        for (token,) in generation.steps(reader, most=most, sampling=sampling, stop=stop, seed=seed):
            assert token is not None
            yield token

    def read(
        self, prompts: Sequence[Sequence[int]], state: BackboneState | None = None
    ) -> tuple[Tensor, BackboneState | None]:
        """The logits [B, vocabulary] after the last token of each prompt, and the state; prompts as in `generate`."""
        tokens, mask = generation.left_padded(prompts)
        tokens, mask = tokens.to(self.embedding.weight.device), mask.to(self.embedding.weight.device)
        logits = tokens.new_zeros(0)
        for piece, present in zip(tokens.split(PIECE, 1), mask.split(PIECE, 1), strict=True):
            self._check(piece)
            x = self.embedding(piece)
            y, state = self.backbone(x, state, mask=None if bool(present.all()) else present)
            logits = self._cap(self.head(y[:, -1]))
        return logits, state

    @torch.no_grad()
    def prefill(
        self, prompts: Sequence[Sequence[int]], state: BackboneState | None = None, *, weights: Weights = "full"
    ) -> generation.Reader:
        """Read the prompts and be ready for a token a row at a time, as `generate` does: for loops of one's own.

        Args:
            prompts, state, weights: as in `generate`.

        Returns:
            the logits after the prompts, and a `Decoder` that holds the state: `reader.next(tokens)` reads one more
            token a row. It has the weights as they are now; make another after they change.

        Raises:
            ValueError: a prompt is empty, or an argument is out of range.
        """
        training = self.training
        self.eval()
        try:
            logits, state = self.read(prompts, state)
        finally:
            self.train(training)
        decoder = Decoder(self.backbone, embedding=self.embedding, head=self.head, batch=len(prompts), weights=weights)
        decoder.load(state)
        return generation.Reader(decoder, logits, self._cap)

    def _check(self, tokens: Tensor) -> None:
        check_shape("tokens", tokens, (None, None), "[B, T]")
        if tokens.dtype != torch.int64:
            raise ValueError(f"tokens must be int64, got {tokens.dtype}; convert them with .long()")
        if torch.compiler.is_compiling():  # values are not known then
            return
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.vocabulary:
            raise ValueError(
                f"tokens must be from 0 to {self.config.vocabulary - 1}, as this model's vocabulary has them, got "
                f"{int(tokens.min())} to {int(tokens.max())}; encode the text with the model's own tokenizer"
            )

    def _cap(self, logits: Tensor) -> Tensor:
        cap = self.config.soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)
