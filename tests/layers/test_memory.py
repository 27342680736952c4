"""The hierarchical memory that is written and read: its definition, and that padding, batches and forms agree."""

import math

import pytest
import torch

from exlstm.layers import MemoryReader, MemoryWriter
from exlstm.layers.recall import read
from exlstm.layers.search import sparse_is_cheaper
from exlstm.layers.tree import store
from tests.ops.cases import assert_same, normal

WIDTH, HEADS = 12, 2


def random_layers(*, leaf=4, keep=2, levels=3):
    writer = MemoryWriter(WIDTH, HEADS, leaf=leaf)
    reader = MemoryReader(WIDTH, HEADS, keep=keep, levels=levels).eval()
    for layer in (writer, reader):
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.7)
    return writer.double(), reader.double()


@torch.no_grad()
def definition(k, v, log, q, level, *, leaf, keep, attend, whole=False):
    """One row, one head, one query, as a loop: k [S, DK], v [S, DV], log [S], q [DK], level [levels]."""
    steps, dk = len(k), k.shape[1]
    spans = [[range(a, min(a + leaf, steps)) for a in range(0, steps, leaf)]]
    if attend and len(spans[0]) <= keep:  # all that is there can be read: nothing is to be looked for
        return (q @ k.T / dk**0.5 + log).softmax(0) @ v
    while len(spans[-1]) > 1:
        below = spans[-1]
        spans.append([range(below[n].start, below[min(n + 1, len(below) - 1)].stop) for n in range(0, len(below), 2)])

    def node(span):
        rows = list(span)
        w = log[rows].softmax(0)
        n = (w[:, None] * k[rows]).sum(0)
        number = (q @ (k[rows].T * w) @ v[rows]) / dk**0.5
        return q @ n / dk**0.5 + log[rows].logsumexp(0), number / max((n @ q).abs() / dk**0.5, 1.0)

    kept, values = None, []
    for number in reversed(range(len(spans))):
        candidates = range(len(spans[number]))
        if kept is not None:
            candidates = [c for c in candidates if c // 2 in kept]
        scored = sorted(((*node(spans[number][c]), c) for c in candidates), key=lambda x: -float(x[0]))[:keep]
        if number == 0 and attend:
            read = [t for x in scored for t in spans[0][x[2]]] if not whole else [*range(steps)]
            values.append((q @ k[read].T / dk**0.5 + log[read]).softmax(0) @ v[read])
            continue
        kept = {x[2] for x in scored}
        scored = scored[: max(1, keep // 4)]
        weights = torch.stack([x[0] for x in scored]).softmax(0)
        values.append(sum(w * x[1] for w, x in zip(weights, scored, strict=True)))
    weights = torch.stack([level[min(n, len(level) - 1)] for n in range(len(spans))]).softmax(0)
    return sum(w * value for w, value in zip(weights, reversed(values), strict=True))


@pytest.mark.parametrize(("form", "whole"), [("dense", False), ("sparse", False), ("dense", True)])
@pytest.mark.parametrize(("steps", "keep"), [*((n, 2) for n in (1, 3, 4, 5, 9, 13, 32, 33)), (39, 8), (70, 9)])
@pytest.mark.parametrize(("dk", "dv"), [(3, 5), (16, 12)], ids=["matrices", "steps in the leaves"])
@pytest.mark.parametrize("attend", [True, False], ids=["attention in leaves", "matrices alone"])
def test_it_is_what_its_definition_says(form, whole, steps, keep, dk, dv, attend):
    k, v, log = normal(1, 1, steps, dk), normal(1, 1, steps, dv), normal(1, 1, steps)
    q, level = normal(1, 1, 6, dk), normal(1, 1, 6, 3)
    h, _ = read(store(k, v, log, 4, attend=attend), q, level, keep=keep, form=form, whole=whole)
    for t in range(6):
        row = (k[0, 0], v[0, 0], log[0, 0], q[0, 0, t], level[0, 0, t])
        expected = definition(*row, leaf=4, keep=keep, attend=attend, whole=whole)
        assert_same([h[0, 0, t]], [expected], 1e-10)


@pytest.mark.parametrize("steps", [5, 29, 64])
def test_both_forms_give_the_same_outputs_and_gradients(steps):
    writer, reader = random_layers()
    source, x = normal(3, steps, WIDTH), normal(3, 7, WIDTH)
    mask = torch.rand(3, steps) < 0.7
    mask[:, 0] = True
    parameters = [source, x, *writer.parameters(), *reader.parameters()]
    results = []
    for form in ("dense", "sparse"):
        y, trace = reader(writer(source, mask), x, form=form, trace=True)
        seen = trace.steps.over(steps)
        loss = sum((torch.linspace(-1, 1, z.numel(), dtype=torch.float64).view_as(z) * z).sum() for z in (y, seen))
        results.append([y, seen, *trace.nodes, trace.levels, *torch.autograd.grad(loss, parameters)])
    assert_same(*results, 1e-10)


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_a_memory_without_matrices_reads_the_same(form):
    k, v, log, q, level = (
        normal(1, 2, 50, 3),
        normal(1, 2, 50, 3),
        normal(1, 2, 50),
        normal(1, 2, 5, 3),
        normal(1, 2, 5, 3),
    )
    expected, h = (read(store(k, v, log, 4, matrices=x), q, level, keep=2, form=form)[0] for x in (True, False))
    assert_same([h], [expected], 1e-12)


def test_matrices_are_formed_for_sources_that_are_read_by_them():
    writer = MemoryWriter(32, 2, leaf=4, keep=2)
    for steps, formed in ((64, False), (4096, True)):
        levels = writer(torch.randn(1, steps, 32)).levels
        assert any(node.C is not None for node in levels) == formed
    assert sparse_is_cheaper(4096, 4096, 1, 16, 16)  # a flat memory, which is one matrix


def test_what_reads_gather_from_lies_so_that_nothing_is_copied():
    stored = MemoryWriter(32, 2, leaf=4)(torch.randn(2, 33, 32))
    matrices = [node.C for node in stored.levels if node.C is not None]
    assert matrices
    assert all(x.is_contiguous() for x in (stored.k, stored.v, stored.log, *stored.outline, *matrices))


@pytest.mark.parametrize("steps", [7, 8, 9, 40])
def test_learning_attends_to_all_steps(steps):
    writer, reader = random_layers(keep=2)
    source, x = normal(2, steps, WIDTH), normal(2, 3, WIDTH)
    mask = torch.arange(steps) < torch.tensor([steps, 5])[:, None]
    _, trace = reader.train()(writer(source, mask), x, trace=True)
    assert trace.steps is not None
    assert trace.nodes is not None
    seen = trace.steps.over(steps)
    assert bool(((seen > 0) == mask[:, None, None]).all())
    assert_same([seen.sum(-1)], [torch.ones(2, HEADS, 3, dtype=torch.float64)], 1e-12)
    assert_same([trace.nodes[0].sum(-1)], [seen.sum(-1)], 1e-12)
    assert all(int((weights > 0).sum(-1).max()) <= 1 for weights in trace.nodes[1:])


def test_low_levels_are_kept_as_steps_where_these_are_fewer_numbers():
    k, v, log = normal(1, 1, 64, 16), normal(1, 1, 64, 16), normal(1, 1, 64)
    levels = store(k, v, log, 4, attend=False).levels
    assert [node.C is None for node in levels] == [True, True, False, False, False]  # nodes of 4, 8, 16, 32, 64 steps


def test_padding_on_either_side_and_gaps_change_nothing():
    writer, reader = random_layers()
    source, x = normal(2, 11, WIDTH), normal(2, 4, WIDTH)
    expected, _ = reader(writer(source), x)
    for before, after in ((5, 0), (0, 40), (3, 9)):
        padded = torch.cat([torch.full((2, before, WIDTH), 9.0), source, torch.full((2, after, WIDTH), 7.0)], 1)
        mask = torch.zeros(2, before + 11 + after, dtype=torch.bool)
        mask[:, before : before + 11] = True
        assert_same([reader(writer(padded, mask), x)[0]], [expected], 1e-12)
    gaps = torch.stack([source, torch.zeros_like(source)], 2).flatten(1, 2)
    assert_same([reader(writer(gaps, torch.arange(22).expand(2, -1) % 2 == 0), x)[0]], [expected], 1e-12)


def test_a_batch_of_mixed_lengths_equals_one_by_one():
    writer, reader = random_layers()
    lengths = (1, 4, 5, 8, 9, 30)
    source, x = normal(6, 30, WIDTH), normal(6, 3, WIDTH)
    mask = torch.arange(30) < torch.tensor(lengths)[:, None]
    y, trace = reader(writer(source, mask), x, trace=True)
    for row, length in enumerate(lengths):
        alone, own = reader(writer(source[row : row + 1, :length]), x[row : row + 1], trace=True)
        assert_same([y[row : row + 1]], [alone], 1e-12)
        assert_same([trace.levels[row : row + 1, ..., : own.levels.shape[-1]]], [own.levels], 1e-12)


def test_an_empty_source_reads_as_nothing():
    writer, reader = random_layers()
    source, mask = normal(2, 6, WIDTH), torch.tensor([[True] * 6, [False] * 6])
    y, _ = reader(writer(source, mask), normal(2, 3, WIDTH))
    assert bool(y.isfinite().all())
    assert float(y[1].detach().abs().max()) == 0
    (gradient,) = torch.autograd.grad(y.sum(), [source])
    assert bool(gradient.isfinite().all())
    assert float(gradient[1].abs().max()) == 0


def test_a_read_keeps_few_nodes_and_their_weights_sum_to_one():
    writer, reader = random_layers(keep=2)
    _, trace = reader(writer(normal(2, 50, WIDTH)), normal(2, 5, WIDTH), trace=True)
    assert [x.shape[-1] for x in trace.nodes] == [13, 7, 4, 2, 1]
    assert trace.steps is not None
    seen = trace.steps.over(52)
    in_leaves = seen.unflatten(-1, (13, 4)).sum(-1)
    assert bool(((in_leaves > 0) == (trace.nodes[0] > 0)).all())
    assert_same([seen.sum(-1)], [torch.ones(2, HEADS, 5, dtype=torch.float64)], 1e-12)
    for level, weights in enumerate(trace.nodes):
        assert int((weights > 0).sum(-1).max()) <= (1 if level else 2)
        assert_same([weights.sum(-1)], [torch.ones(2, HEADS, 5, dtype=torch.float64)], 1e-12)


def test_a_sparse_read_does_not_grow_with_the_source():
    from torch.utils.flop_counter import FlopCounterMode

    writer, reader = random_layers()

    def flops(steps):
        stored = writer(torch.randn(1, steps, WIDTH, dtype=torch.float64))
        with FlopCounterMode(display=False) as counter:
            reader(stored, torch.randn(1, 1, WIDTH, dtype=torch.float64), form="sparse")
        return counter.get_total_flops()

    short, long, longer = (flops(4 * 2**n) for n in (3, 6, 9))
    assert longer - long == long - short  # three levels more each


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MemoryWriter(10, 3), "width must be a positive multiple of heads"),
        (lambda: MemoryWriter(8, 2, leaf=0), "leaf must be at least 1"),
        (lambda: MemoryWriter(8, 2, keep=0), "keep must be at least 1, or None"),
        (lambda: MemoryReader(8, 2, keep=0), "keep must be at least 1"),
        (lambda: MemoryWriter(8, 2)(torch.zeros(2, 3, 9)), "source must have shape"),
        (lambda: MemoryReader(8, 2)(MemoryWriter(8, 2)(torch.zeros(2, 3, 8)), torch.zeros(1, 3, 8)), "x must have"),
    ],
)
def test_bad_input_gets_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_weights_of_extreme_size_stay_finite():
    for scale in (-300.0, 300.0):
        log = torch.full((1, 1, 9), scale, dtype=torch.float64, requires_grad=True)
        stored = store(normal(1, 1, 9, 3), normal(1, 1, 9, 3), log, 4)
        h, _ = read(stored, normal(1, 1, 2, 3), normal(1, 1, 2, 1), keep=2)
        assert bool(h.isfinite().all())
        assert math.isfinite(float(torch.autograd.grad(h.sum(), log)[0].abs().max()))
