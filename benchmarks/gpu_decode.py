"""What the card can do, and how near to it a model comes that writes one token after the other.

A step must read every weight once, and read and write the memories; so its bytes over its time, as a share of the rate
at which the card copies, say how much is wasted.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.gpu_work import Clock, event_clock, measure
from exlstm.models.backbone import Backbone
from exlstm.models.decoder import Decoder

COPIED = 2**31  # bytes
SIZE = 8192
STEPS = 8  # that are compared with the backbone's
TOKENS = 16  # of the prompt


class Sizes(NamedTuple):
    """Of a language model; these are 1.32 B weights, in the style of xLSTM-7B."""

    width: int = 2048
    blocks: int = 22
    heads: int = 4
    vocabulary: int = 50304


LARGE = Sizes()
SMALL = LARGE._replace(blocks=2)  # with the same kernels


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
def decode(
    batch: int, rate: float, *, sizes: Sizes = LARGE, device: str = "cuda", clock: Clock = event_clock
) -> dict[str, Any]:
    """A step of a language model in bfloat16 by `Decoder`, and the choice of the likeliest token.

    `rate` is that of `rates("copy")`, of which the share is one.
    """
    model = _model(sizes, device)
    decoder = _decoder(model, batch)
    prompt = torch.randint(sizes.vocabulary, (batch, TOKENS + 1), device=device)
    _, begun = model.backbone(model.embedding(prompt[:, :-1]))
    decoder.load(begun)
    tokens = [prompt[:, -1]]
    while len(tokens) <= STEPS:
        logits = decoder.step(tokens[-1])
        tokens.append(logits.argmax(-1))
    whole, _ = model.backbone(model.embedding(torch.stack(tokens[:-1], 1)), begun)
    expected = model.head(whole[:, -1]).float()
    difference = float((logits.float() - expected).norm() / expected.norm())

    def step() -> None:
        tokens[-1] = decoder.step(tokens[-1]).argmax(-1)

    found = measure([step], clock)
    weights = sum(p.nbytes for p in model.parameters()) - model.embedding.weight.nbytes
    held = sum(x.nbytes for x in _leaves(decoder.state()))
    moved = weights + 2 * held
    return found | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": weights,
        "state_bytes": held,
        "bytes": moved,
        "bandwidth": moved / found["seconds"],
        "share": moved / found["seconds"] / rate,
        "logits_differ": difference,
        "passed": difference < 0.1,
    }


@torch.no_grad()
def compiled(batch: int, *, sizes: Sizes = SMALL, device: str = "cuda") -> dict[str, Any]:
    """Take two steps, and so compile, on disk, what `decode` takes its steps by."""
    model = _model(sizes, device)
    decoder = _decoder(model, batch)
    tokens = torch.zeros(batch, dtype=torch.int64, device=device)
    model.backbone(model.embedding(tokens[:, None].expand(-1, TOKENS)))
    for _ in range(2):
        decoder.step(tokens)
    return {"compiled": True}


def _decoder(model: "_Model", batch: int) -> Decoder:
    return Decoder(model.backbone, embedding=model.embedding, head=model.head, batch=batch)


class _Model(nn.Module):
    """What a language model computes; ours would need packages that a bare machine has not."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.backbone = Backbone(f"(m)x{sizes.blocks}", sizes.width, sizes.heads, style="large")
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)


def _model(sizes: Sizes, device: str) -> _Model:
    """Random weights, drawn on the device: initialising 1.3 B of them elsewhere takes half a minute."""
    with torch.device("meta"):
        model = _Model(sizes).to(torch.bfloat16)
    model = model.to_empty(device=device).eval()
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


def _leaves(state: Any) -> list[Tensor]:
    """The tensors in nested tuples."""
    if isinstance(state, Tensor):
        return [state]
    return [x for part in state or () for x in _leaves(part)]
