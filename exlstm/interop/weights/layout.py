"""Layouts of weights as tables, and the one code that converts by them.

A table has a `Row` for every tensor of ours: what it is called there, what it is called here, and the `Map` between.
Shapes are not in it: those of ours are the model's, and those of theirs follow by the map.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.interop.weights.maps import ONES, SAME, Map, narrowed
from exlstm.models import LanguageModel, LanguageModelConfig
from exlstm.models.saving import build, tensors_of
from exlstm.models.weight_files import Planned, WeightFiles, differences


class Row(NamedTuple):
    """A line of a table."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    map: Map = SAME


class Table(NamedTuple):
    """What their config and the names of their tensors say."""

    config: LanguageModelConfig
    rows: Sequence[Row]
    """The first is the embedding."""


def row(theirs: str | Iterable[str], ours: str | Iterable[str], map: Map = SAME) -> Row:
    """A row of one or several names."""
    return Row(_names(theirs), _names(ours), map)


def rows_of(
    theirs: str | Iterable[str], ours: str | Iterable[str], map: Map = SAME, *, bias: bool = False
) -> Iterator[Row]:
    """The rows of modules: their weights and, with `bias`, their biases."""
    for kind in ("weight", "bias") if bias else ("weight",):
        yield row((f"{n}.{kind}" for n in _names(theirs)), (f"{n}.{kind}" for n in _names(ours)), map)


def below(theirs: str, ours: str, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows with these words before their names."""
    for each in rows:
        yield row((theirs + n for n in each.theirs), (ours + n for n in each.ours), each.map)


def blocks_of(names: Iterable[str], before: str, said: int, where: str) -> int:
    """How many blocks there are, which the config says too: a model is not built on its word alone.

    Raises:
        ValueError: the tensors have another number of blocks.
    """
    numbers = {found[1] for name in names if (found := re.match(re.escape(before) + r"(\d{1,6})\.", name))}
    if len(numbers) != said:
        raise ValueError(f"{where} says {said} blocks, and the weights have {len(numbers)}; one of them is not whole")
    return said


def in_files(files: WeightFiles) -> dict[str, Planned]:
    """The tensors of files, read when they are asked for."""
    return {name: Planned(x.shape, x.dtype, partial(files.read, name)) for name, x in files.items()}


def to_ours(table: Table, theirs: Mapping[str, Planned], where: Path) -> dict[str, Planned]:
    """The tensors of our model from theirs.

    Raises:
        ValueError: names the tensors that are missing, unknown, misshapen or no floats.
    """
    own = skeleton(table.config)
    assert sorted(name for each in table.rows for name in each.ours) == sorted(own)
    wanted = {
        name: made
        for each in table.rows
        for name, made in zip(each.theirs, each.map.back([own[n] for n in each.ours]), strict=True)
        if not each.map.alike or name in theirs or not set(each.theirs) & theirs.keys()
    }
    _check(wanted, theirs, where)
    usual = theirs[_present(table.rows[0], theirs)[0]]
    made: dict[str, Planned] = {}
    for each in table.rows:
        if each.map is ONES:
            shape = tuple(own[each.ours[0]].shape)
            made[each.ours[0]] = Planned(shape, usual.dtype, partial(torch.ones, shape, dtype=usual.dtype))
            continue
        names = _present(each, theirs)
        if each.map.alike and not equal(theirs, *names):
            raise ValueError(f"the config in {where.parent} ties {' and '.join(names)}, whose numbers differ")
        sources = [theirs[name] for name in names]
        planned = _planned(sources, each.map.forth, [own[n] for n in each.ours])
        if each.map.settles_dtype:
            planned = [_now(narrowed(x.make(), usual.dtype)) for x in planned]
        made |= zip(each.ours, planned, strict=True)
    return {name: made[name] for name in own}


def to_theirs(table: Table, ours: Mapping[str, Planned]) -> dict[str, Planned]:
    """The tensors of their model from ours."""
    own = skeleton(table.config)
    made: dict[str, Planned] = {}
    for each in table.rows:
        shapes = each.map.back([own[n] for n in each.ours])
        planned = _planned([ours[n] for n in each.ours], each.map.back, shapes)
        if each.map.settles_dtype:
            planned = [_now(x.make()) for x in planned]
        made |= zip(each.theirs, planned, strict=True)
    return made


def equal(tensors: Mapping[str, Planned], *names: str) -> bool:
    """Whether those of these tensors that there are have the same numbers."""
    found = [tensors[name] for name in names if name in tensors]
    return all(x.shape == found[0].shape and torch.equal(x.make(), found[0].make()) for x in found[1:])


def skeleton(config: LanguageModelConfig) -> dict[str, Tensor]:
    """Our model's tensors by name, without their numbers."""
    return tensors_of(build(lambda: LanguageModel(config)))


def check_ours(config: LanguageModelConfig, found: Mapping[str, Planned], where: Path) -> None:
    """Raise ValueError unless these are the tensors of our model."""
    _check(skeleton(config), found, where)


def _check(wanted: Mapping[str, Any], found: Mapping[str, Planned], where: Path) -> None:
    if problems := differences(wanted, found):
        raise ValueError(f"{where} does not fit the config beside it: it {'; it '.join(problems)}")


def _present(each: Row, found: Mapping[str, Planned]) -> list[str]:
    return [name for name in each.theirs if name in found] if each.map.alike else [*each.theirs]


def _planned(
    sources: Sequence[Planned], change: Callable[[Sequence[Tensor]], Sequence[Tensor]], like: Sequence[Tensor]
) -> list[Planned]:
    """What `change` makes of tensors, of the shapes of `like`."""
    dtype = reduce(torch.promote_types, (source.dtype for source in sources))

    def make(place: int) -> Tensor:
        return change([source.make() for source in sources])[place]

    return [Planned(tuple(x.shape), dtype, partial(make, place)) for place, x in enumerate(like)]


def _now(x: Tensor) -> Planned:
    """A tensor that is there already."""
    return Planned(tuple(x.shape), x.dtype, lambda: x)


def _names(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
