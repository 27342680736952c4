"""Encode, store, retrieve: a source is read, written to a memory, and read from it while a target is written."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from exlstm.layers import AttentionReader, AttentionWriter, MemoryReader, MemoryWriter
from exlstm.layers.block import Block, BlockOptions, Style
from exlstm.layers.init import small_init_
from exlstm.layers.norm import LayerNorm, RMSNorm
from exlstm.layers.reading import Trace
from exlstm.layers.state import map_state
from exlstm.layers.steps import Lookback
from exlstm.models import generation
from exlstm.models.backbone import Backbone
from exlstm.models.copying import Copying
from exlstm.models.generation import GREEDY, Generated, Sampling
from exlstm.models.losses import IGNORED, linear_cross_entropy
from exlstm.models.pattern import parse_pattern
from exlstm.models.saving import Pretrained
from exlstm.ops.checks import check_shape

MemoryKind = Literal["hierarchical", "flat", "attention"]


@dataclass(frozen=True)
class Seq2SeqConfig:
    """What a sequence-to-sequence model is made of."""

    vocabulary: int
    """Tokens of sources and targets: 0 to vocabulary - 1."""
    bos: int
    """Token that every target begins with; it is not part of what is written."""
    eos: int
    """Token that every target ends with."""
    encoder: str = "mm"
    """Blocks that read the source in both directions, see `parse_pattern`."""
    decoder: str = "mm"
    """Blocks that write the target; each is followed by a read of the memory."""
    width: int = 256
    heads: int = 4
    style: Style = "paper"
    dropout: float = 0.1
    memory: MemoryKind = "hierarchical"
    """A tree of matrix memories, its leaves read by attention; one flat matrix memory; or attention to all."""
    leaf: int = 4
    """Source tokens in a leaf of the tree."""
    keep: int = 128
    """Nodes of a level that a read keeps; sources of no more leaves are attended to as a whole."""
    copy: bool = True
    """Tokens of the source may be written as they stand, see `Copying`; not from a flat memory, which keeps none."""
    levels: int = 12
    """Levels told apart, of the tree and of hierarchical blocks."""
    window: int = 256
    """Steps that attention blocks see."""
    options: BlockOptions = field(default=BlockOptions(slstm_heads=1, slstm_kernel=0, slstm_dense=True, slstm_hidden=0))
    """In what blocks differ from those of the style. By the default sLSTM blocks have no convolution and no
    feed-forward part, their gates see all channels, and all their memories mix: they learn faster from pairs so, by
    steps and by time."""

    def __post_init__(self) -> None:
        if self.memory not in ("hierarchical", "flat", "attention"):
            raise ValueError(f"expected memory 'hierarchical', 'flat' or 'attention', received {self.memory!r}")
        for name in ("bos", "eos"):
            if not 0 <= getattr(self, name) < self.vocabulary:
                raise ValueError(
                    f"expected {name} from 0 to {self.vocabulary - 1}, a token of the vocabulary, "
                    f"received {getattr(self, name)}"
                )


class Source(NamedTuple):
    """A source that was read."""

    memory: Any  # what the writer wrote
    tokens: Tensor | None  # int64 [B, S], absent ones last, if they can be copied


class Seq2Seq(Pretrained):
    """Sources [B, S] to targets [B, T].

        encoder   bidirectional blocks over the source
        memory    what the encoder found, written once
        decoder   causal blocks over the target so far; each is followed by a read of the memory
        head      the next token, from the vocabulary or copied from where the last read looked

    `Seq2Seq(config)` or `Seq2Seq(vocabulary=..., bos=1, eos=2, ...)` with the fields of `Seq2SeqConfig`.
    """

    config_class: ClassVar[type] = Seq2SeqConfig
    model_type: ClassVar[str] = "seq2seq"
    config: Seq2SeqConfig

    def __init__(self, config: Seq2SeqConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = c = replace(config, **fields) if config else Seq2SeqConfig(**fields)
        options: dict[str, Any] = {
            "style": c.style,
            "dropout": c.dropout,
            "levels": c.levels,
            "window": c.window,
            "options": c.options,
        }
        self.embedding = nn.Embedding(c.vocabulary, c.width)
        self.dropout = nn.Dropout(c.dropout)
        self.encoder = Backbone(c.encoder, c.width, c.heads, bidirectional=True, **options)
        kinds = parse_pattern(c.decoder)
        depth = len(kinds)
        self.writer = _writer(c)
        self.blocks = nn.ModuleList(
            Block(c.width, c.heads, kind=kind, index=index, depth=depth, **options) for index, kind in enumerate(kinds)
        )
        self.read_norms = nn.ModuleList(_norm(c) for _ in kinds)
        self.readers = nn.ModuleList(_reader(c, depth) for _ in kinds)
        self.norm = _norm(c)
        self.head = nn.Linear(c.width, c.vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        self.copying = Copying(c.width, c.heads) if c.copy and c.memory != "flat" else None
        small_init_(self.embedding.weight, c.width)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        ignored: int = IGNORED,
        smoothing: float = 0.0,
    ) -> Tensor:
        """Scores [B, T, vocabulary] of the token after each of the target's, or the loss where that token is known.

        Scores are logits; log probabilities if tokens can be copied.

        Args:
            source: tokens int64 [B, S].
            target: tokens int64 [B, T], the first of them `bos`.
            source_mask: bool [B, S], target_mask bool [B, T]; False tokens count as absent.
            labels: int64 [B, T], the token after each, `ignored` where none counts: the result is then the mean
                cross-entropy in nats, of labels with `smoothing`, for which not all logits are held at once.
        """
        stored = self.encode(source, source_mask)
        y, _, traces = self._write(target, stored, mask=target_mask, return_state=False)
        if labels is None:
            return self._scores(y, stored, traces)
        copied, attended = None, traces[-1].steps
        if self.copying is not None and stored.tokens is not None and attended is not None:
            copied = self.copying.of_labels(y, attended, stored.tokens, labels)
        return linear_cross_entropy(y, self.head.weight, labels, ignored=ignored, smoothing=smoothing, other=copied)

    def encode(self, source: Tensor, mask: Tensor | None = None) -> Source:
        """Read sources int64 [B, S] and write them to memory."""
        x = self._embed("source", source, mask)
        if mask is not None:
            # Absent tokens go to the end, as memories have them.
            steps = Lookback(0, source.shape[1], mask=mask, reset=None)
            source, x, mask = (steps.align(part) for part in (source, x, mask))
        y, _ = self.encoder(x, mask=mask, return_state=False)
        return Source(self.writer(y, mask), None if self.copying is None else source)

    def decode(
        self,
        target: Tensor,
        stored: Source,
        state: tuple[Any, ...] | None = None,
        *,
        mask: Tensor | None = None,
        trace: bool = False,
    ) -> tuple[Tensor, tuple[Any, ...], list[Trace]]:
        """Go on with targets int64 [B, T]: scores [B, T, vocabulary], the state after, and what each block read.

        With `trace` that includes the nodes of a tree that were read.
        """
        y, after, traces = self._write(target, stored, state, mask=mask, trace=trace)
        return self._scores(y, stored, traces), after, traces

    def _write(
        self,
        target: Tensor,
        stored: Source,
        state: tuple[Any, ...] | None = None,
        *,
        mask: Tensor | None = None,
        trace: bool = False,
        return_state: bool = True,
    ) -> tuple[Tensor, tuple[Any, ...], list[Trace]]:
        """`decode` up to what the head makes scores of [B, T, width]."""
        x = self._embed("target", target, mask)
        states, traces = [], []
        for place, (block, norm, reader) in enumerate(zip(self.blocks, self.read_norms, self.readers, strict=True)):
            before = None if state is None else state[place]
            x, after = block(x, before, mask=mask, return_state=return_state)
            y, found = reader(stored.memory, norm(x), trace=trace)
            x = x + self.dropout(y)
            states.append(after)
            traces.append(found)
        return self.norm(x), tuple(states), traces

    def _scores(self, y: Tensor, stored: Source, traces: list[Trace]) -> Tensor:
        logits, attended = self.head(y), traces[-1].steps
        if self.copying is None or stored.tokens is None or attended is None:
            return logits
        return self.copying(logits, y, attended, stored.tokens)

    @torch.no_grad()
    def generate(
        self,
        sources: Sequence[Sequence[int]],
        *,
        most: int = 128,
        beams: int = 1,
        length_penalty: float = 1.0,
        sampling: Sampling = GREEDY,
        seed: int | None = None,
    ) -> Generated:
        """The target of each source: up to `most` tokens, `eos` included where it came.

        Args:
            sources: tokens of each source, at least one; of any lengths.
            beams: above 1, the likeliest target by beam search; `sampling` and `seed` then have no use.
            length_penalty: of beam search, see `beam_search`.

        Returns:
            the tokens, and the decoder's state (None after a beam search).

        Raises:
            ValueError: a source is empty, or an argument is out of range.
        """
        if beams > 1:
            found = self.beams(sources, beams=beams, most=most, length_penalty=length_penalty)
            return Generated([best[0][1] for best in found], None)
        reader = self._reader(sources, 1)
        return generation.generate(reader, most=most, sampling=sampling, stop=[self.config.eos], seed=seed)

    @torch.no_grad()
    def beams(
        self, sources: Sequence[Sequence[int]], *, beams: int, most: int = 128, length_penalty: float = 1.0
    ) -> list[list[tuple[float, list[int]]]]:
        """For each source its likeliest targets with their scores, best first; see `beam_search`."""
        return generation.beam_search(
            self._reader(sources, beams), beams=beams, most=most, stop=[self.config.eos], length_penalty=length_penalty
        )

    def _reader(self, sources: Sequence[Sequence[int]], beams: int) -> generation.Reader:
        device, training = self.embedding.weight.device, self.training
        self.eval()
        try:
            source, mask = (x.to(device) for x in generation.left_padded(sources))
            stored = self.encode(source, None if bool(mask.all()) else mask)
            stored = _repeated(stored, beams)
            first = torch.full((len(sources) * beams, 1), self.config.bos, device=device)
            logits, state, _ = self.decode(first, stored)
        finally:
            self.train(training)
        return generation.Reader(_Decoding(self, stored, state), logits[:, 0])

    def _embed(self, name: str, tokens: Tensor, mask: Tensor | None) -> Tensor:
        check_shape(name, tokens, (None, None), "[B, T]")
        return self.dropout(self.embedding(tokens if mask is None else tokens.masked_fill(~mask, 0)))


class _Decoding:
    """The decoder, one token a row at a time (see `generation.Steps`)."""

    def __init__(self, model: Seq2Seq, stored: Any, state: tuple[Any, ...]) -> None:
        self._model, self._stored, self._state = model, stored, state

    def step(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        training = self._model.training
        self._model.eval()
        try:
            logits, self._state, _ = self._model.decode(
                x[:, None], self._stored, self._state, mask=None if mask is None else mask[:, None]
            )
        finally:
            self._model.train(training)
        return logits[:, 0]

    def select(self, rows: Tensor) -> None:
        # Rows move among those of one source, whose memory they share.
        self._state = map_state(lambda part: part[rows], self._state)

    def state(self) -> tuple[Any, ...]:
        return self._state


def _norm(c: Seq2SeqConfig) -> nn.Module:
    norm, eps = (LayerNorm, 1e-5) if c.style == "paper" else (RMSNorm, 1e-6)
    return norm(c.width, eps=c.options.eps or eps)


def _writer(c: Seq2SeqConfig) -> nn.Module:
    if c.memory == "attention":
        return AttentionWriter(c.width, c.heads)
    if c.memory == "flat":
        return MemoryWriter(c.width, c.heads, leaf=None)
    return MemoryWriter(c.width, c.heads, leaf=c.leaf, keep=c.keep)


def _reader(c: Seq2SeqConfig, depth: int) -> nn.Module:
    if c.memory == "attention":
        return AttentionReader(c.width, c.heads, depth=depth)
    one = c.memory == "flat"
    keep, levels = (1, 1) if one else (c.keep, c.levels)
    return MemoryReader(c.width, c.heads, keep=keep, levels=levels, norm=one, depth=depth)


def _repeated(stored: Any, times: int) -> Any:
    """A memory with every row `times` times, side by side."""
    if isinstance(stored, Tensor):
        return stored.repeat_interleave(times, 0) if times > 1 else stored
    if isinstance(stored, tuple):
        parts = [_repeated(part, times) for part in stored]
        return type(stored)(*parts) if hasattr(stored, "_fields") else tuple(parts)
    return stored
