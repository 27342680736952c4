"""The graphs of a forecaster: from a window of a series to its patches, and from patches and a state to quantiles."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exlstm.data.series import Batch
from exlstm.data.series.seasonality import HARMONICS
from exlstm.interop.export.graph import BATCH, Axis, Graph, Port
from exlstm.interop.export.states import leaves, restored
from exlstm.models import Forecaster
from exlstm.models.forecast_network import LEVELS, ForecastNetwork, Member, SeriesKind, calendar_width
from exlstm.models.relations import Relations, relate

PATCHES = Axis("patches")


def forecast_graphs(forecaster: Forecaster) -> list[Graph]:
    """The graphs `prepare`, from a window to the patches of context and horizon, and `chunk` and `step`, which take
    any number of patches, or one, to their quantiles.

    Raises:
        ValueError: the forecaster was not fitted.
    """
    kind, network = forecaster.series, forecaster.network
    assert network is not None
    with torch.no_grad():
        nothing = torch.zeros(1, 1, forecaster.config.width)
        state = tuple(member.backbone(nothing)[1] for member in _members(network))
    width, columns = forecaster.config.width, next(_members(network)).embed.linear.in_features
    ahead = Axis("ahead", before=kind.context // kind.patch)
    inputs = _prepared(kind, columns, width, ahead)
    return [
        Graph(
            name="prepare",
            about="Windows of series, seen relative to their own past, in patches: of the context, then ahead.",
            module=_Prepare(network),
            given=_window(kind),
            made=inputs,
        ),
        Graph(
            name="chunk",
            about="The next patches, any number of them: quantiles of their steps.",
            module=_Continue(network, state, single=False),
            given=_prepared(kind, columns, width, PATCHES),
            made=(Port("quantiles", (BATCH, PATCHES, kind.patch, len(LEVELS))),),
            state=state,
        ),
        Graph(
            name="step",
            about="One patch, which must be present: quantiles of its steps.",
            module=_Continue(network, state, single=True),
            given=tuple(port for port in _prepared(kind, columns, width, None) if port.name != "present"),
            made=(Port("quantiles", (BATCH, kind.patch, len(LEVELS))),),
            state=state,
        ),
    ]


def forecast_facts(forecaster: Forecaster) -> dict[str, Any]:
    """What a consumer of the graphs needs to know besides."""
    kind = forecaster.series
    return {
        "levels": LEVELS,
        "horizon": kind.horizon,
        "patch": kind.patch,
        "context_patches": kind.context // kind.patch,
        "history": kind.history,
        "frequency": kind.frequency,
        "cycles": kind.cycles if calendar_width(kind) else (),
        "future": kind.columns.future,
        "past": kind.columns.past,
        "static": [name for name in kind.columns.static if name not in dict(kind.categories)],
        "categories": dict(kind.categories),
    }


def window_inputs(kind: SeriesKind, batch: Batch) -> list[Tensor]:
    """The inputs of `prepare` that stand for a batch of windows; the horizon is filled up to whole patches."""
    fill = -batch.horizon % kind.patch

    def unknown(x: Tensor, mask: Tensor) -> Tensor:
        return x.masked_fill(~mask, torch.nan)

    def filled(x: Tensor, value: float = 0.0) -> Tensor:
        return F.pad(x, (0, 0, 0, fill), value=value)

    found = {
        "y": unknown(batch.y, batch.mask)[:, : batch.context],
        "inside": F.pad(batch.inside, (0, fill)),
        "phase": filled(_phases(kind, batch.calendar)),
        "future": filled(unknown(batch.future, batch.future_mask), torch.nan),
        "past": unknown(batch.past, batch.past_mask),
        "static": batch.static,
        "static_codes": batch.static_codes,
    }
    return [found[port.name] for port in _window(kind)]


def _window(kind: SeriesKind) -> tuple[Port, ...]:
    steps, columns = Axis("ahead", each=kind.patch, before=kind.history), kind.columns
    cycles = len(kind.cycles) if calendar_width(kind) else 0
    ports = (
        Port("y", (BATCH, kind.history)),
        Port("inside", (BATCH, steps), torch.bool),
        Port("phase", (BATCH, steps, cycles)),
        Port("future", (BATCH, steps, len(columns.future))),
        Port("past", (BATCH, kind.history, len(columns.past))),
        Port("static", (BATCH, kind.numeric_statics)),
        Port("static_codes", (BATCH, len(kind.categories)), torch.int64),
    )
    return tuple(port for port in ports if port.shape[-1] != 0)


def _prepared(kind: SeriesKind, columns: int, width: int, patches: Axis | None) -> tuple[Port, ...]:
    """What `prepare` gives and the others take, for so many patches, or one."""
    many = () if patches is None else (patches,)
    ports = (
        Port("patches", (BATCH, *many, columns)),
        Port("present", (BATCH, *many), torch.bool),
        Port("about", (BATCH, width)),
        Port("base", (BATCH, *many, kind.patch)),
        Port("scale", (BATCH,)),
        Port("lagged", (BATCH, *many, kind.patch, kind.other_lags)),
    )
    return tuple(port for port in ports if port.shape[-1] != 0)


class _Prepare(nn.Module):
    """A window to the inputs of the recurrent part; NaN is what is not known."""

    def __init__(self, network: ForecastNetwork) -> None:
        super().__init__()
        self.network, self.kind = network, network.series
        self.names = [port.name for port in _window(self.kind)]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        kind, given = self.kind, dict(zip(self.names, inputs, strict=True))
        batch = self._batch(given)
        relations = relate(batch.y, batch.mask, batch.horizon, kind.context, kind.lags)
        patches, present = self.network.patches(batch, relations)
        # What lies after the horizon asked for, and only that, is outside of the series but not yet 0.
        inside = batch.inside[:, -relations.base.shape[1] :].unflatten(1, (-1, kind.patch))
        steps, calendar = patches.split([patches.shape[-1] - calendar_width(kind), calendar_width(kind)], -1)
        steps = steps.unflatten(-1, (kind.patch, -1)) * inside[..., None]
        about = self.network.describe_series(batch.static, batch.static_codes)
        base = relations.base.unflatten(1, (-1, kind.patch))
        made = (torch.cat([steps.flatten(-2), calendar], -1), present, about, base, relations.scale)
        if not kind.other_lags:
            return made
        lagged = torch.cat([relations.offsets, relations.carried], -1)
        return (*made, lagged.unflatten(1, (-1, kind.patch)))

    def _batch(self, given: dict[str, Tensor]) -> Batch:
        y, inside = given["y"], given["inside"]
        context, horizon = y.shape[1], inside.shape[1] - y.shape[1]
        nothing, rows = y.new_zeros(*inside.shape, 0), y.new_zeros(y.shape[0], 0)
        y, mask = _known(y[..., None], inside[:, :context])
        future, future_mask = _known(given.get("future", nothing), inside)
        past, past_mask = _known(given.get("past", nothing[:, :context]), inside[:, :context])
        numbers = torch.zeros_like(inside[:, 0], dtype=torch.int64)  # of series and origin: not read
        return Batch(
            y=torch.cat([y[..., 0], y.new_zeros(y.shape[0], horizon)], 1),
            mask=torch.cat([mask[..., 0], torch.zeros_like(inside[:, context:])], 1),
            inside=inside,
            calendar=_calendar(self.kind, given["phase"], inside) if "phase" in given else nothing,
            future=future,
            future_mask=future_mask,
            past=past,
            past_mask=past_mask,
            static=given.get("static", rows),
            static_codes=given.get("static_codes", rows.long()),
            series=numbers,
            origin=numbers,
        )


class _Continue(nn.Module):
    """Patches and state to quantiles and state: the mean of all members, each of which has a state."""

    def __init__(self, network: ForecastNetwork, like: Any, *, single: bool) -> None:
        super().__init__()
        self.network, self.like, self.single = network, like, single

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        kind = self.network.series
        names = [p.name for p in _prepared(kind, 1, 1, None) if not (self.single and p.name == "present")]
        given, before = dict(zip(names, inputs, strict=False)), inputs[len(names) :]
        if self.single:
            given |= {name: given[name][:, None] for name in ("patches", "base", "lagged") if name in given}
        base = given["base"].flatten(1)
        lagged = given["lagged"].flatten(1, 2) if "lagged" in given else base[..., None][..., :0]
        # The fields that a read-out does not look at are filled with anything.
        relations = Relations(base, base, given["scale"], base, base, base, lagged, lagged[..., :0])
        quantiles, after = [], []
        for member, state in zip(_members(self.network), restored(self.like, before), strict=True):
            x = member.embed(given["patches"]) + given["about"][:, None]
            y, state = member.backbone(x, state, mask=given.get("present"))
            quantiles.append(member.read_out(y, relations, base.shape[1]))
            after.append(state)
        mean = torch.stack(quantiles, 1).mean(1).unflatten(1, (-1, kind.patch))
        return (mean[:, 0] if self.single else mean, *leaves(tuple(after)))


def _members(network: ForecastNetwork) -> Any:
    """The members, as what they are."""
    return iter(member for member in network.members if isinstance(member, Member))


def _known(x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Columns [B, T, K] with 0 for NaN and outside of the series, and where they are known."""
    known = ~x.isnan() & inside[..., None]
    return torch.where(known, x, 0.0), known


def _calendar(kind: SeriesKind, phase: Tensor, inside: Tensor) -> Tensor:
    """`calendar_features` [B, T, K] from how much of each cycle has passed [B, T, cycles], from 0 to 1."""
    angles = [
        2 * math.pi * k * phase[..., n] for n, cycle in enumerate(kind.cycles) for k in range(1, HARMONICS[cycle] + 1)
    ]
    waves = [wave for angle in angles for wave in (angle.sin(), angle.cos())]
    return torch.stack(waves, -1) * inside[..., None]


def _phases(kind: SeriesKind, calendar: Tensor) -> Tensor:
    """How much of each cycle has passed [B, T, cycles], from `calendar_features`."""
    firsts, place = [], 0
    for cycle in kind.cycles if calendar.shape[-1] else ():
        firsts.append(torch.atan2(calendar[..., place], calendar[..., place + 1]) / (2 * math.pi))
        place += 2 * HARMONICS[cycle]
    return torch.stack(firsts, -1) if firsts else calendar[..., :0]


def quantiles_of(kind: SeriesKind, quantiles: Tensor, horizon: int) -> Tensor:
    """Quantiles [B, horizon, levels] of the steps ahead, from those of all patches [B, N, patch, levels]."""
    return quantiles[:, kind.context // kind.patch :].flatten(1, 2)[:, :horizon]


def of_patches(prepared: Sequence[Tensor], which: int | slice) -> list[Tensor]:
    """The inputs of `chunk`, or for a single patch of `step`, that are some of the patches that `prepare` made."""
    patches, present, about, base, scale, *lagged = prepared
    single = isinstance(which, int)
    kept = [] if single else [present[:, which]]
    return [patches[:, which], *kept, about, base[:, which], scale, *(x[:, which] for x in lagged)]
