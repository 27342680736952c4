"""Exported models against the models themselves, on inputs that they are made for."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle

import torch
from torch import Tensor

from exlstm.data.series import Batch
from exlstm.interop.export.check import Difference, difference, named, stream, worst
from exlstm.interop.export.forecast import of_patches, quantiles_of, window_inputs
from exlstm.interop.export.formats import Session
from exlstm.interop.export.graph import piece
from exlstm.interop.export.writing import Exported
from exlstm.models import Forecaster
from exlstm.models.forecast_network import SeriesKind

LENGTHS = (1, 2, 7, 37, 64, 65, 129)
"""Of the pieces that a chunk graph is given, one after another."""


def try_language(exported: Exported, tokens: Tensor) -> dict[str, Difference]:
    """Read tokens [B, N] one by one and in pieces, all rows together and the first alone."""
    found = {}
    for name, pieces in (("step", tokens.unbind(1)), ("chunk", [*_cut(tokens)])):
        rows = [stream(exported.graphs[name], exported.session(name), ([p[:n]] for p in pieces)) for n in _rows(tokens)]
        found[name] = worst(rows)
    return found


def try_forecaster(exported: Exported, forecaster: Forecaster, batch: Batch, steps: int) -> dict[str, Difference]:
    """Forecast windows: in patches, in pieces of them, and one by one, again and again, for so many steps.

    "forecast" is the whole way, `prepare` and `chunk`, against the forecaster.
    """
    kind, graphs, found = forecaster.series, exported.graphs, dict[str, list[Difference]]()
    sessions = {name: exported.session(name) for name in graphs}
    for rows in _rows(batch.y):
        some = Batch(*(x[:rows] for x in batch))
        window = window_inputs(kind, some)
        prepared = piece(graphs["prepare"].module, window)
        patches = prepared[0].shape[1]
        cuts = ((int(part[0, 0]), int(part[0, -1]) + 1) for part in _cut(torch.arange(patches)[None]))
        pieces = {
            "prepare": [window],
            "chunk": [prepared, *(of_patches(prepared, slice(*cut)) for cut in cuts)],
            "step": (of_patches(prepared, n % patches) for n in range(steps)),
        }
        for name, given in pieces.items():
            found.setdefault(name, []).append(stream(graphs[name], sessions[name], given))
        with torch.no_grad():
            expected = forecaster.eval()(some).quantiles.mean(1)
        apart = difference(_forecast(exported, sessions, window, kind, some.horizon), expected)
        found.setdefault("forecast", []).append(Difference(apart, 0.0, 1))
    return {name: worst(each) for name, each in found.items()}


def _forecast(
    exported: Exported, sessions: Mapping[str, Session], window: Sequence[Tensor], kind: SeriesKind, horizon: int
) -> Tensor:
    """Quantiles [B, horizon, levels] by the exported graphs alone."""
    prepare, chunk = exported.graphs["prepare"], exported.graphs["chunk"]
    made = sessions["prepare"](named(prepare.given, window))
    state = named(chunk.inputs[len(chunk.given) :], chunk.empty_state(len(window[0])))
    return quantiles_of(kind, torch.from_numpy(sessions["chunk"](made | state)["quantiles"]), horizon)


def try_classifier(exported: Exported, inputs: Sequence[Tensor]) -> dict[str, Difference]:
    """Classify sequences, all together and the first alone."""
    graph, session = exported.graphs["classify"], exported.session("classify")
    return {"classify": worst([stream(graph, session, [[x[:n] for x in inputs]]) for n in _rows(inputs[0])])}


def _rows(x: Tensor) -> list[int]:
    """The sizes of batch to try."""
    return sorted({1, len(x)})


def _cut(steps: Tensor) -> Iterator[Tensor]:
    """`steps` [B, N] in pieces."""
    begin = 0
    for length in cycle(LENGTHS):
        if begin >= steps.shape[1]:
            return
        yield steps[:, begin : begin + length]
        begin += length
