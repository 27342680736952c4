"""OPS: the operators against those of peers, and how their cost grows with the length of a sequence."""

from dataclasses import replace

import torch
from torch import nn

from benchmarks.cases import Case, Contestant, Ratio
from benchmarks.work import Work, mlstm_inputs, operator_work
from exlstm import ops

CHUNK = 64
LEVELS = 12
SMALL = {"time": 128}

MEMORIES = {"heads": 4, "dk": 64, "dv": 64}
GROWING = (
    Contestant("exlstm mlstm", "benchmarks.ops:mlstm", MEMORIES, checks=("mlstm",)),
    Contestant("exlstm hmlstm", "benchmarks.ops:hmlstm", MEMORIES, checks=("hmlstm",)),
    Contestant("exlstm slstm", "benchmarks.ops:slstm", {"heads": 4, "width": 64}, checks=("slstm",)),
    Contestant(
        "mlstm_kernels native_custbw",
        "benchmarks.peers:mlstm_kernels",
        {**MEMORIES, "kernel": "native_custbw"},
        peer="mlstm_kernels",
    ),
)
ATTENTION = Contestant("torch attention", "benchmarks.peers:torch_attention", {"heads": 4, "width": 64})


def mlstm(
    *, batch: int, time: int, heads: int, dk: int, dv: int, backward: bool, chunk_size: int | None = None
) -> Work:
    """Our mLSTM. Its operations are those of the chunkwise form with chunks of 64, whatever really runs."""
    inputs = mlstm_inputs(batch, time, heads, dk, dv)
    operations = batch * time * heads * (4 * dk * dv + 2 * CHUNK * (dk + dv))
    shape = (batch, time, heads, dv) if backward else None
    return operator_work(lambda: ops.mlstm(*inputs, chunk_size=chunk_size)[0], inputs, shape, operations=operations)


def hmlstm(*, batch: int, time: int, heads: int, dk: int, dv: int, backward: bool) -> Work:
    """Our hierarchical mLSTM."""
    inputs = (*mlstm_inputs(batch, time, heads, dk, dv), torch.randn(batch, time, heads, LEVELS))
    shape = (batch, time, heads, dv) if backward else None
    return operator_work(lambda: ops.hmlstm(*inputs)[0], inputs, shape)


def slstm(*, batch: int, time: int, heads: int, width: int, backward: bool, project: bool = False) -> Work:
    """Our sLSTM; with `project`, the product that makes its pre-activations of inputs as wide as its outputs."""
    r = torch.randn(4, heads, width, width) / width**0.5
    shape = (batch, time, heads, width) if backward else None
    if not project:
        x = torch.randn(batch, time, 4, heads, width)
        return operator_work(lambda: ops.slstm(x, r)[0], (x, r), shape)
    x = torch.randn(batch, time, heads * width)
    layer = nn.Linear(heads * width, 4 * heads * width)
    return operator_work(
        lambda: ops.slstm(layer(x).unflatten(-1, (4, heads, width)), r)[0], (x, r, *layer.parameters()), shape
    )


def cases(quick: bool) -> list[Case]:
    """All cases of this group; `quick` ones are few and small."""
    if quick:
        shape = {"batch": 1, "time": 128, "heads": 2, "dk": 16, "dv": 16}
        return [
            _mlstm(shape, True, at_least=1),
            _slstm(2, 64, 2, 16, True),
            _hmlstm(128, None),
            *_growth(GROWING[1], (64, 128), tokens=128, modes=(False,)),
        ]
    wide = {"batch": 1, "time": 4096, "heads": 4, "dk": 128, "dv": 256}
    middle = {"batch": 1, "time": 4096, "heads": 4, "dk": 64, "dv": 128}
    short = {"batch": 4, "time": 512, "heads": 4, "dk": 64, "dv": 64}
    lengths = (256, 1024, 4096, 16384, 65536)
    return [
        _mlstm(wide, False, operations_at_most=1.6),
        _mlstm(wide, True, at_least=6, memory_at_least=4),
        _mlstm(middle, False),
        _mlstm(middle, True, at_least=3),
        _mlstm(short, False),
        _mlstm(short, True, at_least=2),
        _slstm(16, 512, 4, 128, False, at_least=2.5),
        _slstm(16, 512, 4, 128, True, at_least=2),
        _slstm(1, 512, 4, 64, False, at_least=2),
        _slstm(1, 512, 4, 64, True),
        _hmlstm(4096, 1.7),
        _hmlstm(65536, 2.5),
        _chunks(64, 64),
        _chunks(128, 256),
        *(case for work in GROWING for case in _growth(work, lengths)),
        *_growth(ATTENTION, lengths[:-1]),  # at 65,536 one call takes minutes
    ]


def _mlstm(
    shape: dict[str, int],
    backward: bool,
    *,
    at_least: float | None = None,
    memory_at_least: float | None = None,
    operations_at_most: float | None = None,
) -> Case:
    arguments = {**shape, "backward": backward}
    ours = Contestant("exlstm mlstm", "benchmarks.ops:mlstm", arguments, SMALL, checks=("mlstm",))
    peers = [
        Contestant(
            f"mlstm_kernels {kernel}",
            "benchmarks.peers:mlstm_kernels",
            {**arguments, "kernel": kernel},
            SMALL,
            peer="mlstm_kernels",
        )
        for kernel in ("native_autograd", "native_custbw")
    ]
    ratios = [Ratio(peer.name, ours.name, at_least=at_least) for peer in peers]
    if backward:
        ratios += [Ratio(peer.name, ours.name, "memory", at_least=memory_at_least) for peer in peers]
    contestants = [ours, *peers]
    if not backward:
        product = Contestant("torch large matrix product", "benchmarks.peers:torch_matrix_product", {"size": 2048})
        contestants.append(product)
        ratios.append(Ratio(ours.name, product.name, "time per operation", at_most=operations_at_most))
    title = f"mLSTM {_mode(backward)}, {shape['batch']} x {shape['time']}, {shape['heads']} heads"
    return Case(f"{title}, DK {shape['dk']}, DV {shape['dv']}", tuple(contestants), tuple(ratios))


def _slstm(batch: int, time: int, heads: int, width: int, backward: bool, *, at_least: float | None = None) -> Case:
    arguments = {"batch": batch, "time": time, "heads": heads, "width": width, "backward": backward}
    ours = Contestant("exlstm slstm", "benchmarks.ops:slstm", arguments, SMALL, checks=("slstm",))
    projected = replace(ours, name="exlstm slstm and input projection", arguments={**arguments, "project": True})
    lstm = Contestant(
        f"torch nn.LSTM({heads * width})",
        "benchmarks.peers:torch_lstm",
        {"batch": batch, "time": time, "width": heads * width, "backward": backward},
        SMALL,
    )
    return Case(
        f"sLSTM {_mode(backward)}, {batch} x {time}, {heads} heads x {width}",
        (ours, projected, lstm),
        (Ratio(lstm.name, ours.name, at_least=at_least), Ratio(lstm.name, projected.name)),
    )


def _hmlstm(time: int, at_most: float | None) -> Case:
    arguments = {"batch": 1, "time": time, "heads": 4, "dk": 64, "dv": 128, "backward": True}
    tree, flat = (
        Contestant(f"exlstm {name}", f"benchmarks.ops:{name}", arguments, SMALL, checks=(name,))
        for name in ("hmlstm", "mlstm")
    )
    return Case(
        f"hmlstm {_mode(True)}, 1 x {time}, 4 heads, DK 64, DV 128, {LEVELS} levels",
        (tree, flat),
        (Ratio(tree.name, flat.name, at_most=at_most), Ratio(tree.name, flat.name, "memory")),
    )


def _growth(
    work: Contestant, lengths: tuple[int, ...], *, tokens: int = 65536, modes: tuple[bool, ...] = (False, True)
) -> list[Case]:
    """The same number of tokens in fewer and longer sequences: forward as in a prefill, and with gradients."""
    found = []
    for backward in modes:
        first, *longer = contestants = [
            replace(
                work,
                name=f"T = {time}",
                arguments={**work.arguments, "batch": tokens // time, "time": time, "backward": backward},
                small={"batch": 1, **SMALL},
            )
            for time in lengths
        ]
        ratios = [Ratio(c.name, first.name, quantity) for quantity in ("time", "memory") for c in longer]
        title = f"growth of {work.name}, {_mode(backward)}, {tokens} tokens, 4 heads of width 64"
        found.append(Case(title, tuple(contestants), tuple(ratios)))
    return found


def _chunks(dk: int, dv: int) -> Case:
    """The rule by which the kernels choose their chunk size: 64, whatever the shapes are."""
    arguments = {"batch": 1, "time": 4096, "heads": 4, "dk": dk, "dv": dv, "backward": True}
    sizes = [
        Contestant(
            f"chunks of {size}", "benchmarks.ops:mlstm", {**arguments, "chunk_size": size}, SMALL, checks=("mlstm",)
        )
        for size in (CHUNK, 32, 96, 128)
    ]
    ratios = tuple(Ratio(other.name, sizes[0].name) for other in sizes[1:])
    return Case(f"chunk size, mLSTM {_mode(True)}, 1 x 4096, 4 heads, DK {dk}, DV {dv}", tuple(sizes), ratios)


def _mode(backward: bool) -> str:
    return "forward and backward" if backward else "forward"
