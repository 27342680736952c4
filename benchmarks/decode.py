"""DECODE: one token after the other, what that costs far into a sequence, and what narrow weights cost in accuracy."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks import lm
from benchmarks.cases import Case, Contestant, Ratio
from benchmarks.checks import TOLERANCE, DisagreementError
from benchmarks.measure import ROOT
from benchmarks.train import OPERATORS
from benchmarks.work import Work
from exlstm.layers.block import Style
from exlstm.models import LanguageModel
from exlstm.models.decoder import Decoder
from exlstm.ops.program import Weights

START = {"position": 1}
LARGE = Contestant("xlstm xLSTMLarge", "benchmarks.peers:decode_xlstm_large", START, START, peer="xlstm")
FUSED = replace(LARGE, name="xlstm xLSTMLarge, fused weights", arguments={**START, "weight_mode": "fused"})
PAPER = Contestant("xlstm xLSTMLMModel", "benchmarks.peers:decode_xlstm", START, START, peer="xlstm")
NARROW: dict[str, Weights] = {"int8": "int8", "bfloat16": "bfloat16"}

TRAINING = {"steps": 100}
BATCH, TIME = 8, 128  # of a training step, and of the text that accuracy is measured on


def exlstm(*, pattern: str, style: Style, position: int, weights: Weights = "full") -> Work:
    """Our decoder, after the model has read the first tokens in pieces."""
    model = lm.language_model(pattern, style).eval()
    state: Any = None
    with torch.no_grad():
        for begin in range(0, position, lm.PIECE):
            _, state = model(torch.randint(lm.VOCABULARY, (1, min(lm.PIECE, position - begin))), state)
    decoder = decoder_of(model, weights=weights)
    tokens = torch.randint(lm.VOCABULARY, (lm.DECODED, 1))
    if weights == "full":
        _agree(model, decoder, state, tokens[0])

    def decode() -> None:
        decoder.load(state)
        for token in tokens:
            decoder.step(token)

    return Work(decode, {"parameters": lm.parameters(model), "state_bytes": lm.state_bytes(state)}, lm.DECODED)


def exlstm_module(*, pattern: str, style: Style, position: int) -> Work:
    """Our model itself, called with single tokens and the state carried."""
    model = lm.language_model(pattern, style)
    return lm.decoding_work(model, model, position=position)


def exlstm_trained(*, pattern: str, style: Style, weights: Weights, steps: int) -> Work:
    """Our decoder after a short training on the sources of this project, byte by byte.

    The facts compare the logits for text that was not trained on with those of full weights, and the mean negative
    log likelihood of a byte, in nats.
    """
    text = torch.tensor(list(b"".join(path.read_bytes() for path in sorted((ROOT / "exlstm").rglob("*.py")))))
    model, held_out = lm.language_model(pattern, style), text[-BATCH * (TIME + 1) :].view(BATCH, TIME + 1)
    _train(model, text[: -BATCH * (TIME + 1)], steps)
    narrow, full = (_logits(decoder_of(model.eval(), batch=BATCH, weights=w), held_out) for w in (weights, "full"))
    loss, before = (float(cross_entropy(x.flatten(0, 1), held_out[:, 1:].flatten())) for x in (narrow, full))
    error = (narrow - full).abs()
    facts: Mapping[str, float] = {
        "largest_logit": float(full.abs().max()),
        "largest_logit_error": float(error.max()),
        "mean_logit_error": float(error.mean()),
        "loss_with_full_weights": before,
        "loss_change": loss - before,
    }
    decoder, token = decoder_of(model, weights=weights), held_out[:1, 0]
    return Work(lambda: decoder.step(token), {"parameters": lm.parameters(model), **facts})


def decoder_of(model: LanguageModel, *, batch: int = 1, weights: Weights) -> Decoder:
    """The decoder of a language model."""
    return Decoder(model.backbone, embedding=model.embedding, head=model.head, batch=batch, weights=weights)


def cases(quick: bool) -> list[Case]:
    """All cases of this group; `quick` ones are few and reach less far."""
    positions = (1, 64) if quick else (1, 1024, 16384)
    letters = "h" if quick else "mhsa"
    growing = [_growth(f"exlstm, pattern {x * lm.BLOCKS}", _ours(x, "large"), positions) for x in letters]
    if quick:
        return [_token(), *growing]
    return [_token(), *growing, _growth(LARGE.name, LARGE, positions), _accuracy()]


def _token() -> Case:
    large, paper = _ours("m", "large"), _ours("m", "paper")
    narrow = [
        replace(large, name=f"exlstm, {n}", arguments={**large.arguments, "weights": w}) for n, w in NARROW.items()
    ]
    module = replace(large, name="exlstm, the module itself", build="benchmarks.decode:exlstm_module")
    ratios = (
        Ratio(LARGE.name, large.name, at_least=3),
        Ratio(FUSED.name, large.name, at_least=3),
        *(Ratio(LARGE.name, contestant.name) for contestant in narrow),
        Ratio(PAPER.name, paper.name),
        Ratio(module.name, large.name),
    )
    title = f"one token, {lm.BLOCKS} blocks of width {lm.WIDTH}, B = 1"
    return Case(title, (large, *narrow, paper, module, LARGE, FUSED, PAPER), ratios)


def _growth(title: str, work: Contestant, positions: tuple[int, ...]) -> Case:
    first, *later = contestants = [
        replace(work, name=f"after {position}", arguments={**work.arguments, "position": position})
        for position in positions
    ]
    ratios = [Ratio(c.name, first.name, quantity) for quantity in ("time", "state size") for c in later]
    return Case(f"one token, {title}", tuple(contestants), tuple(ratios))


def _accuracy() -> Case:
    arguments = {"pattern": "mmshma", "style": "large", **TRAINING}
    contestants = tuple(
        Contestant(
            f"exlstm, {weights}",
            "benchmarks.decode:exlstm_trained",
            {**arguments, "weights": weights},
            {"steps": 1},
            checks=tuple(OPERATORS.values()),
        )
        for weights in NARROW.values()
    )
    return Case("accuracy of narrow weights (in the facts)", contestants)


def _ours(letter: str, style: Style) -> Contestant:
    return Contestant(
        f"exlstm, style {style}",
        "benchmarks.decode:exlstm",
        {"pattern": letter * lm.BLOCKS, "style": style, **START},
        START,
        checks=(OPERATORS[letter],) if letter in OPERATORS else (),
    )


@torch.no_grad()
def _agree(model: LanguageModel, decoder: Decoder, state: Any, token: Tensor) -> None:
    """Raise DisagreementError unless the decoder's next logits are the model's."""
    decoder.load(state)
    expected = model(token[:, None], state)[0][:, 0]
    error = float((decoder.step(token) - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE[torch.float32]:
        raise DisagreementError(f"the decoder's logits differ from the model's by {error:.1e}")


def _train(model: LanguageModel, text: Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        begin = torch.randint(len(text) - TIME - 1, (BATCH,)).tolist()
        tokens = torch.stack([text[b : b + TIME + 1] for b in begin])
        loss = cross_entropy(model(tokens[:, :-1])[0].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    """What it predicts after each of tokens [B, T + 1] but the last: [B, T, VOCABULARY]."""
    return torch.stack([decoder.step(token) for token in tokens[:, :-1].unbind(1)], 1)
