"""EXPORT: one token after the other by exported graphs, beside the model itself and its decoder."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import lm
from benchmarks.cases import Case, Contestant, Ratio
from benchmarks.checks import DisagreementError
from benchmarks.decode import START
from benchmarks.train import OPERATORS
from benchmarks.work import Work
from exlstm.interop.export.check import BOUND, named, stream
from exlstm.interop.export.formats import To, Weights, load, write
from exlstm.interop.export.language import language_graphs
from exlstm.layers.block import Style

SMALL = {"pattern": "m"}  # a trace of few blocks, to load the packages
RUNTIMES: dict[str, tuple[To, str]] = {"ONNX Runtime": ("onnx", "onnxruntime"), "OpenVINO": ("openvino", "openvino")}


def exported(*, pattern: str, style: Style, to: To, weights: Weights = "full") -> Work:
    """Our model's graph `step` in another runtime, with its state carried from call to call as numpy arrays."""
    model = lm.language_model(pattern, style).eval()
    graph = next(graph for graph in language_graphs(model) if graph.name == "step")
    with tempfile.TemporaryDirectory() as folder:
        path = write(graph, Path(folder), to, weights=weights)
        session = load(path, graph, to, threads=torch.get_num_threads())
    tokens = torch.randint(lm.VOCABULARY, (lm.DECODED, 1))
    if weights == "full" and not (apart := stream(graph, session, ([token] for token in tokens))).largest <= BOUND:
        raise DisagreementError(f"the graph differs from the model by {apart}")
    given = [token.numpy() for token in tokens]
    empty = named(graph.inputs[1:], graph.empty_state(1))
    carried = [(before.name, after.name) for before, after in zip(graph.inputs[1:], graph.outputs[1:], strict=True)]

    def decode() -> None:
        state = empty
        for token in given:
            found = session({"tokens": token} | state)
            state = {before: found[after] for before, after in carried}

    size = sum(array.nbytes for array in empty.values())
    return Work(decode, {"parameters": lm.parameters(model), "state_bytes": size}, lm.DECODED)


def cases(quick: bool) -> list[Case]:
    """All cases of this group; `quick` ones are few and small."""
    if quick:
        return [_case("m", "large")]
    return [_case("m" * lm.BLOCKS, "large"), _case("m" * lm.BLOCKS, "paper"), _case("mmshma", "paper")]


def _case(pattern: str, style: Style) -> Case:
    model = {"pattern": pattern, "style": style}
    checks = tuple(dict.fromkeys(OPERATORS[letter] for letter in pattern if letter in OPERATORS))
    decoder = Contestant("exlstm, Decoder", "benchmarks.decode:exlstm", model | START, START, checks=checks)
    ours = [
        replace(decoder, name="exlstm, the module itself", build="benchmarks.decode:exlstm_module"),
        decoder,
        replace(decoder, name="exlstm, Decoder, int8", arguments={**decoder.arguments, "weights": "int8"}),
    ]
    others = [
        Contestant(
            f"{runtime}{', int8' if weights == 'int8' else ''}",
            "benchmarks.export:exported",
            {**model, "to": to, "weights": weights},
            SMALL,
            peer="nncf" if (to, weights) == ("openvino", "int8") else package,
            checks=checks,
        )
        for runtime, (to, package) in RUNTIMES.items()
        for weights in ("full", "int8")
    ]
    ratios = tuple(Ratio(contestant.name, decoder.name) for contestant in (*ours, *others) if contestant != decoder)
    return Case(f"one token, exported, {pattern} in style {style}, width {lm.WIDTH}, B = 1", (*ours, *others), ratios)
