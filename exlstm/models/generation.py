"""Choosing tokens from logits, one after another: greedy, by sampling, or by beam search."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; what is left at its default does nothing."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float | None = None
    """Only the likeliest tokens whose probabilities reach p together (nucleus, arXiv 1904.09751)."""
    min_p: float | None = None
    """Only tokens at least p times as likely as the likeliest (arXiv 2407.01082)."""
    repetition_penalty: float = 1.0
    """Positive logits of tokens already generated are divided by it, negative ones multiplied (arXiv 1909.05858)."""

    def __post_init__(self) -> None:
        for name, value, good, wanted in (
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "at least 0"),
            ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "at least 1, or None"),
            ("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1, or None"),
            ("min_p", self.min_p, self.min_p is None or 0 <= self.min_p <= 1, "from 0 to 1, or None"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf, "above 0"),
        ):
            if not good:
                raise ValueError(f"expected {name} {wanted}, received {value}")


GREEDY = Sampling(temperature=0.0)


class Steps(Protocol):
    """What takes one token a row and keeps the state, such as a `Decoder`."""

    def step(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor: ...

    def select(self, rows: Tensor) -> None: ...

    def state(self) -> Any: ...


class Reader(NamedTuple):
    """A model that has read its prompts."""

    steps: Steps
    logits: Tensor  # [B, V] of the first new token
    finish: Callable[[Tensor], Tensor] = lambda logits: logits  # from what `steps` returns to logits

    def next(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read one token a row, int64 [B], where `mask` [B] is True: logits [B, V]."""
        return self.finish(self.steps.step(tokens, mask=mask))


class Generated(NamedTuple):
    """What came of generating."""

    tokens: list[list[int]]
    state: Any


def generate(
    reader: Reader, *, most: int, sampling: Sampling = GREEDY, stop: Sequence[int] = (), seed: int | None = None
) -> Generated:
    """Up to `most` tokens for every row, each ending with the first token of `stop`."""
    rows: list[list[int]] = [[] for _ in reader.logits]
    for tokens in steps(reader, most=most, sampling=sampling, stop=stop, seed=seed):
        for row, token in zip(rows, tokens, strict=True):
            if token is not None:
                row.append(token)
    return Generated(rows, reader.steps.state())


def steps(
    reader: Reader, *, most: int, sampling: Sampling = GREEDY, stop: Sequence[int] = (), seed: int | None = None
) -> Iterator[list[int | None]]:
    """One token a row at a time, None for rows that have ended, until all have or there are `most`."""
    if most < 1:
        raise ValueError(f"expected most of at least 1 token, received {most}")
    logits = reader.logits
    generator = None if seed is None else torch.Generator(logits.device).manual_seed(seed)
    ends = torch.tensor([*stop], dtype=torch.int64, device=logits.device)
    alive = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for count in range(most):
        tokens = choose(logits, sampling, seen=seen, generator=generator)
        seen[alive, tokens[alive]] = True
        yield [token if there else None for token, there in zip(tokens.tolist(), alive.tolist(), strict=True)]
        alive = alive & ~torch.isin(tokens, ends)
        if count + 1 == most or not bool(alive.any()):
            return
        logits = reader.next(tokens, None if bool(alive.all()) else alive)


def choose(
    logits: Tensor, sampling: Sampling, *, seen: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """The next token of every row, int64 [B], from logits [B, V] and the tokens already there, bool [B, V]."""
    logits = _exact(logits)
    if sampling.repetition_penalty != 1 and seen is not None:
        less = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, less, logits)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = narrowed(logits / sampling.temperature, sampling)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def narrowed(logits: Tensor, sampling: Sampling) -> Tensor:
    """The logits [B, V] with -inf for tokens that top_k, top_p or min_p leave out, in this order."""
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # the likeliest token has nothing before it
        out = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= sampling.top_p)
        logits = logits.masked_fill(out, -math.inf)
    if sampling.min_p:
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(sampling.min_p), -math.inf)
    return logits


@dataclass
class _Hypotheses:
    """The best finished beams of one row."""

    most: int
    found: list[tuple[float, list[int]]] = field(default_factory=list)  # score and tokens, best first

    def add(self, score: float, tokens: list[int]) -> None:
        self.found = sorted([*self.found, (score, tokens)], key=lambda pair: -pair[0])[: self.most]

    def done(self, best_alive: float) -> bool:
        """Whether no living beam can become better than those found."""
        return len(self.found) == self.most and best_alive <= self.found[-1][0]


def beam_search(
    reader: Reader, *, beams: int, most: int, stop: Sequence[int], length_penalty: float = 1.0
) -> list[list[tuple[float, list[int]]]]:
    """The likeliest continuations of every row.

    A continuation ends with a token of `stop`, or after `most` tokens; its score is the sum of its tokens' log
    probabilities over length ** length_penalty. With one beam it is what greedy choice gives.

    Args:
        reader: of B * beams rows, those of one prompt side by side and all alike.

    Returns:
        for each of the B prompts up to `beams` pairs (score, tokens), best first.
    """
    if beams < 1 or most < 1:
        raise ValueError(f"expected beams and most of at least 1, received {beams} and {most}")
    rows, ends = len(reader.logits) // beams, set(stop)
    device = reader.logits.device
    found = [_Hypotheses(beams) for _ in range(rows)]
    tokens: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(rows)]
    # All beams begin alike: only the first counts.
    scores = _exact(reader.logits).new_full((rows, beams), -math.inf)
    scores[:, 0] = 0
    over = [False] * rows  # rows that can find nothing better: what others still look for is none of theirs
    logits = reader.logits
    for length in range(1, most + 1):
        vocabulary = logits.shape[-1]
        total = scores[..., None] + _exact(logits).log_softmax(-1).view(rows, beams, vocabulary)
        # Twice as many as there are beams: so many may end, and as many must live on.
        best, places = total.flatten(1).topk(min(2 * beams, beams * vocabulary))
        parents = torch.zeros(rows, beams, dtype=torch.int64, device=device)
        chosen = torch.zeros(rows, beams, dtype=torch.int64, device=device)
        scores = torch.full_like(scores, -math.inf)
        for row in (row for row in range(rows) if not over[row]):
            grown: list[list[int]] = []
            ranked = zip(best[row].tolist(), places[row].tolist(), strict=True)
            for rank, (score, place) in enumerate(ranked):
                beam, token = divmod(place, vocabulary)
                if score == -math.inf or len(grown) == beams:
                    break
                candidate = [*tokens[row][beam], token]
                if token in ends or length == most:
                    if rank < beams:
                        found[row].add(score / length**length_penalty, candidate)
                    continue
                parents[row, len(grown)], chosen[row, len(grown)] = beam, token
                scores[row, len(grown)] = score
                grown.append(candidate)
            tokens[row] = grown + [[] for _ in range(beams - len(grown))]
        best_alive = [score / length**length_penalty for score in scores[:, 0].tolist()]
        over = [ended or f.done(alive) for ended, f, alive in zip(over, found, best_alive, strict=True)]
        if length == most or all(over):
            break
        first = torch.arange(rows, device=device)[:, None] * beams
        reader.steps.select((first + parents).flatten())
        logits = reader.next(chosen.flatten())
    return [f.found for f in found]


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Prompts of any lengths as int64 [B, T], each at the end of its row, and where they stand, bool [B, T]."""
    if not len(prompts) or not all(len(prompt) for prompt in prompts):
        raise ValueError("expected at least one prompt and at least one token in each; begin with a document's first")
    time = max(map(len, prompts))
    tokens, mask = torch.zeros(len(prompts), time, dtype=torch.int64), torch.zeros(len(prompts), time, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, time - len(prompt) :] = torch.tensor([*prompt])
        mask[row, time - len(prompt) :] = True
    return tokens, mask


def _exact(logits: Tensor) -> Tensor:
    """In at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
