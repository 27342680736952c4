"""Which instructions of a step program run as one: a launch takes microseconds, in which a GPU could read megabytes.

Two nodes become one where the second alone reads what the first writes, which is then never written. The one stands
where the second stood, so nothing between may change what the first reads.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from exlstm.ops.triton.program_nodes import Conv, Linear, Node, Vector


def planned(nodes: Sequence[Node], *, one_row: bool) -> list[Node]:
    """The nodes to run, in this order. With a single row, linear maps are our own kernels, and take in much more."""
    plan = _Plan(nodes)
    for position, first in enumerate(plan.nodes):  # as they are when their turn comes
        reader = plan.only_reader(position)
        second = None if reader is None else plan.nodes[reader]
        if first is None or reader is None or not isinstance(second, Vector):
            continue
        if (one := _joined(first, second, one_row)) is not None and plan.undisturbed(position, reader):
            plan.put(position, None)
            plan.put(reader, one)
    if one_row:
        _make_what_is_mapped(plan)
    found = list(filter(None, plan.nodes))
    return _paired(found) if one_row else found


class _Plan:
    """Nodes by position, and who reads and writes each register."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes: list[Node | None] = [None] * len(nodes)
        self.readers: dict[int, set[int]] = defaultdict(set)
        self.writers: dict[int, set[int]] = defaultdict(set)
        for position, node in enumerate(nodes):
            self.put(position, node)

    def put(self, position: int, node: Node | None) -> None:
        """Let `node`, or nothing, be there."""
        if (before := self.nodes[position]) is not None:
            for x in before.reads:
                self.readers[_register(x)].discard(position)
            for x in before.writes:
                self.writers[_register(x)].discard(position)
        self.nodes[position] = node
        if node is not None:
            for x in node.reads:
                self.readers[_register(x)].add(position)
            for x in node.writes:
                self.writers[_register(x)].add(position)

    def only_reader(self, position: int) -> int | None:
        """Where the only reader of what a node, and no other, writes is; None if there is not exactly one, later on."""
        node = self.nodes[position]
        if node is None or self.writers[register := _register(node.writes[0])] != {position}:
            return None
        readers = self.readers[register]
        return next(iter(readers)) if len(readers) == 1 and min(readers) > position else None

    def undisturbed(self, position: int, until: int) -> bool:
        """Whether nodes between the two write nothing that the first reads."""
        node = self.nodes[position]
        reads = [] if node is None else node.reads
        return not any(position < writer < until for x in reads for writer in self.writers[_register(x)])


def _register(x: Tensor) -> int:
    """Which register x is part of."""
    return x.untyped_storage().data_ptr()


def _same(x: Tensor | None, y: Tensor | None) -> bool:
    """Whether both are the same part of one register."""
    if x is None or y is None:
        return False
    return (x.data_ptr(), x.shape, x.stride()) == (y.data_ptr(), y.shape, y.stride())


def _joined(first: Node, second: Vector, one_row: bool) -> Node | None:
    match first:
        case Vector():
            return _continued(first, second)
        case Conv() if second.x is None and _same(first.y, second.gate):
            return replace(first, y=second.y, kind=second.kind)
        case Linear() if len(first.matrix) == 1 and first.add is None and first.cap is None and first.glu is None:
            return _finished(first, second, one_row)
    return None


def _continued(first: Vector, second: Vector) -> Vector | None:
    """A vector that goes on where another ended."""
    if not _same(first.y, second.x) or second.weight is not None or first.gate is not None or first.cap is not None:
        return None
    if first.other is not None and second.other is not None:
        return None
    added = first if second.other is None else second
    return replace(first, y=second.y, other=added.other, factor=added.factor, cap=second.cap, gate=second.gate,
                   kind=second.kind)  # fmt: skip


def _finished(first: Linear, second: Vector, one_row: bool) -> Linear | None:
    """A linear map, and one thing that is done with its result."""
    more = (second.weight, second.factor, second.other, second.gate, second.cap)
    if sum(part is not None for part in more) != 1:
        return None
    if second.other is not None:
        for added, mapped in ((second.x, second.other), (second.other, second.x)):
            if _same(first.y, mapped):
                return replace(first, y=second.y, add=added)
    if one_row and second.cap is not None and _same(first.y, second.x):
        return replace(first, y=second.y, cap=second.cap)
    if one_row and second.gate is not None and first.y.shape[1] % 2 == 0:
        gate, x = first.y.chunk(2, 1)
        if _same(gate, second.gate) and _same(x, second.x):
            return replace(first, y=second.y, glu=second.kind)
    return None


def _make_what_is_mapped(plan: _Plan) -> None:
    """Linear maps make the vector that they read, where they are the only ones that do."""
    for position, vector in enumerate(plan.nodes):
        if not isinstance(vector, Vector) or len(plan.writers[_register(vector.y)]) != 1:
            continue
        readers = [(n, plan.nodes[n]) for n in sorted(plan.readers[_register(vector.y)])]
        maps = [
            (n, node)
            for n, node in readers
            if isinstance(node, Linear)
            and len(node.matrix) == 1
            and _same(node.x, vector.y)
            and (node.add is None or _register(node.add) != _register(vector.y))
            and n > position
            and plan.undisturbed(position, n)
        ]
        if maps and len(maps) == len(readers):
            for n, node in maps:
                plan.put(n, replace(node, made=vector))
            plan.put(position, None)


def _paired(nodes: list[Node]) -> list[Node]:
    """Two linear maps of one vector that follow one another are one launch."""
    plan: list[Node] = []
    for node in nodes:
        before = plan[-1] if plan else None
        if isinstance(before, Linear) and isinstance(node, Linear) and _fit(before, node):
            plan[-1] = replace(before, also=node)
        else:
            plan.append(node)
    return plan


def _fit(first: Linear, second: Linear) -> bool:
    """Whether they are of the same vector, and the second is no more than a linear map, if capped."""
    return (
        len(first.matrix) == len(second.matrix) == 1
        and first.made is second.made
        and _same(first.x, second.x)
        and first.also is None
        and second.add is None
        and second.glu is None
    )
