"""What the card can do, and how near to it a model comes that writes one token after the other.

A step must read every weight once, and read and write the memories; so its bytes over its time, as a share of the rate
at which the card copies, say how much is wasted.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_work import Clock, event_clock, measure

COPIED = 2**31  # bytes
SIZE = 8192
WIDTH, BLOCKS, HEADS, VOCABULARY = 2048, 22, 4, 50304  # 1.32 B weights, in the style of xLSTM-7B
STEPS = 8  # in one graph, which ends with a copy of the memories


def rates(what: str, *, clock: Clock = event_clock) -> dict[str, Any]:
    """Bytes a second of a large copy on the device, both its reads and its writes; or operations a second."""
    if what == "copy":
        source = torch.randn(COPIED // 2, device="cuda", dtype=torch.bfloat16)
        target = torch.empty_like(source)
        found = measure([lambda: target.copy_(source)], clock)
        return found | {"rate": 2 * COPIED / found["seconds"]}
    a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found = measure([lambda: a @ b], clock)
    return found | {"rate": 2 * SIZE**3 / found["seconds"]}


@torch.no_grad()
def decode(batch: int, rate: float, *, blocks: int = BLOCKS, clock: Clock = event_clock) -> dict[str, Any]:
    """A step of a language model in bfloat16, captured with the choice of the likeliest token in a CUDA graph.

    `rate` is that of `rates("copy")`, of which the share is one.
    """
    model = _model(blocks)
    tokens = torch.randint(VOCABULARY, (batch, 1), device="cuda")
    state = _states(model, batch)
    first, begun = tokens.clone(), [x.clone() for x in _leaves(state)]
    read: list[Tensor] = []
    graph, logits = _captured(model, tokens, state, read)

    _restore(state, begun)
    tokens.copy_(first)
    graph.replay()
    told = logits.float().clone()
    _restore(state, begun)
    whole, _ = model.backbone(model.embedding(torch.cat([first, *read[:-1]], 1)), state)
    expected = model.head(whole[:, -1]).float()
    difference = float((told - expected).norm() / expected.norm())

    found = measure([graph.replay], clock)
    weights = sum(p.nbytes for p in model.parameters()) - model.embedding.weight.nbytes
    held = sum(x.nbytes for x in _leaves(state))
    moved = weights + 2 * held
    seconds = found["seconds"] / STEPS
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "lowest": found["lowest"] / STEPS,
        "highest": found["highest"] / STEPS,
        "calls": found["calls"] * STEPS,
        "weight_bytes": weights,
        "state_bytes": held,
        "bytes": moved,
        "bandwidth": moved / seconds,
        "share": moved / seconds / rate,
        "logits_differ": difference,
        "passed": difference < 0.1,
    }


def _model(blocks: int) -> Any:
    """Random weights, drawn on the GPU: initialising 1.3 B of them elsewhere takes half a minute."""
    from exlstm.models import LanguageModel

    with torch.device("meta"):
        model = LanguageModel(
            vocabulary=VOCABULARY, pattern=f"(m)x{blocks}", width=WIDTH, heads=HEADS, style="large"
        ).to(torch.bfloat16)
    model = model.to_empty(device="cuda").eval()
    torch.manual_seed(20260101)
    for name, parameter in model.named_parameters():
        if name.endswith("forget_gate.bias"):
            parameter.uniform_(3, 6)
        elif name.endswith("input_gate.bias"):
            parameter.fill_(-1)
        elif parameter.ndim == 1:
            parameter.fill_(1)
        else:
            parameter.normal_(0, 0.02)
    return model


def _states(model: Any, batch: int) -> Any:
    """The state after a few random tokens."""
    return model.backbone(model.embedding(torch.randint(VOCABULARY, (batch, 16), device="cuda")))[1]


def _captured(model: Any, tokens: Tensor, state: Any, read: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of STEPS steps from `tokens` and `state`, which it leaves as they are after them, and its last logits."""

    def steps() -> Tensor:
        read.clear()
        token, after = tokens, state
        for _ in range(STEPS):
            y, after = model.backbone(model.embedding(token), after)
            logits = model.head(y[:, -1])
            token = logits.argmax(-1, keepdim=True)
            read.append(token)
        tokens.copy_(token)
        _restore(state, _leaves(after))
        return logits

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        steps()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = steps()
    return graph, logits


def _restore(state: Any, values: list[Tensor]) -> None:
    for x, value in zip(_leaves(state), values, strict=True):
        x.copy_(value)


def _leaves(state: Any) -> list[Tensor]:
    """The tensors in nested tuples."""
    if isinstance(state, Tensor):
        return [state]
    return [x for part in state or () for x in _leaves(part)]
