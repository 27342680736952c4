"""TRAIN: a training step of a small language model, against models of the same size."""

from dataclasses import replace

from benchmarks import lm
from benchmarks.cases import Case, Contestant, Ratio
from benchmarks.work import Work
from exlstm.layers.block import Style

OPERATORS = {"m": "mlstm", "s": "slstm", "h": "hmlstm"}


def exlstm(*, pattern: str, style: Style, batch: int, time: int, precision: str) -> Work:
    """Our model."""
    model = lm.language_model(pattern, style)
    return lm.training_work(model, lambda x: model(x)[0], batch=batch, time=time, precision=precision)


def cases(quick: bool) -> list[Case]:
    """All cases of this group; `quick` ones are few and small."""
    if quick:
        return [_case("m" * lm.BLOCKS, "paper", 64, ("float32",))]
    models: tuple[tuple[str, Style], ...] = (("mmmmmm", "paper"), ("msmmmm", "paper"), ("mmmmmm", "large"))
    # At 2048 xlstm, whose training forms T x T matrices, takes minutes a step, and one precision must do.
    return [_case(pattern, style, 512, ("float32", "bfloat16")) for pattern, style in models] + [
        _case(pattern, style, 2048, ("float32",), against_xlstm=False) for pattern, style in models
    ]


def _case(pattern: str, style: Style, time: int, precisions: tuple[str, ...], *, against_xlstm: bool = True) -> Case:
    parameters = lm.parameters(lm.language_model(pattern, style))
    operators = tuple(OPERATORS[kind] for kind in sorted(set(pattern)))
    ours = Contestant("exlstm", "benchmarks.train:exlstm", {"pattern": pattern, "style": style}, checks=operators)
    if style == "paper":
        slstm_at = [index for index, kind in enumerate(pattern) if kind == "s"]
        xlstm = Contestant("xlstm", "benchmarks.peers:train_xlstm", {"slstm_at": slstm_at}, peer="xlstm")
    else:
        xlstm = Contestant("xlstm", "benchmarks.peers:train_xlstm_large", peer="xlstm")
    llama = Contestant("Llama", "benchmarks.peers:train_llama", {"parameters": parameters}, peer="transformers")
    contestants = [
        replace(
            contestant,
            name=f"{contestant.name}, {precision}",
            arguments={**contestant.arguments, "batch": 4, "time": time, "precision": precision},
            small={"time": 64},
        )
        for contestant in ((ours, xlstm, llama) if against_xlstm else (ours, llama))
        for precision in precisions
    ]
    ratios = [
        Ratio("exlstm, float32", "Llama, float32", at_most=1.1 if time < 2048 else 1),
        Ratio("exlstm, float32", "Llama, float32", "memory"),
    ]
    if against_xlstm:
        ratios += [
            Ratio("xlstm, float32", "exlstm, float32", at_least=2 if style == "paper" else None),
            Ratio("xlstm, float32", "exlstm, float32", "memory"),
        ]
    if "bfloat16" in precisions:
        ratios += [
            Ratio("exlstm, float32", "exlstm, bfloat16", at_least=1.7),
            Ratio("xlstm, bfloat16", "exlstm, bfloat16"),
            Ratio("exlstm, bfloat16", "Llama, bfloat16"),
        ]
    title = f"training step, 4 x {time}, {pattern} in style {style}, {parameters / 1e6:.1f} M parameters"
    return Case(title, tuple(contestants), tuple(ratios))
