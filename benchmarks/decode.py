"""DECODE: one token after the other, and what that costs far into a sequence."""

from dataclasses import replace

from benchmarks import lm
from benchmarks.cases import Case, Contestant, Ratio
from benchmarks.train import OPERATORS
from benchmarks.work import Work
from exlstm.layers.block import Style

START = {"position": 1}
LARGE = Contestant("xlstm xLSTMLarge", "benchmarks.peers:decode_xlstm_large", START, START, peer="xlstm")
FUSED = replace(LARGE, name="xlstm xLSTMLarge, fused weights", arguments={**START, "weight_mode": "fused"})
PAPER = Contestant("xlstm xLSTMLMModel", "benchmarks.peers:decode_xlstm", START, START, peer="xlstm")


def exlstm(*, pattern: str, style: Style, position: int) -> Work:
    """Our model, called with single tokens and the state carried."""
    model = lm.LanguageModel(pattern, style)
    return lm.decoding_work(model, model, position=position)


def cases(quick: bool) -> list[Case]:
    """All cases of this group; `quick` ones are few and reach less far."""
    positions = (1, 64) if quick else (1, 1024, 16384)
    letters = "h" if quick else "mhsa"
    growing = [_growth(f"exlstm, pattern {x * lm.BLOCKS}", _ours(x, "large"), positions) for x in letters]
    return [_token(), *growing] if quick else [_token(), *growing, _growth(LARGE.name, LARGE, positions)]


def _token() -> Case:
    large, paper = _ours("m", "large"), _ours("m", "paper")
    ratios = (
        Ratio(LARGE.name, large.name, at_least=3),
        Ratio(FUSED.name, large.name, at_least=3),
        Ratio(PAPER.name, paper.name),
    )
    return Case("one token, 6 blocks of width 256, B = 1", (large, paper, LARGE, FUSED, PAPER), ratios)


def _growth(title: str, work: Contestant, positions: tuple[int, ...]) -> Case:
    first, *later = contestants = [
        replace(work, name=f"after {position}", arguments={**work.arguments, "position": position})
        for position in positions
    ]
    ratios = [Ratio(c.name, first.name, quantity) for quantity in ("time", "state size") for c in later]
    return Case(f"one token, {title}", tuple(contestants), tuple(ratios))


def _ours(letter: str, style: Style) -> Contestant:
    return Contestant(
        f"exlstm, style {style}",
        "benchmarks.decode:exlstm",
        {"pattern": letter * lm.BLOCKS, "style": style, **START},
        START,
        checks=(OPERATORS[letter],) if letter in OPERATORS else (),
    )
