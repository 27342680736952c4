"""A decoder on a GPU takes the backbone's place at any step; without a GPU, in Triton's interpreter."""

import pytest
import torch
from torch import Tensor, nn

import exlstm.models.decoder as module
from exlstm.layers import map_state
from exlstm.models import Backbone, Decoder
from exlstm.ops.triton.launch import obstacle
from exlstm.ops.triton.program import TritonProgram
from tests.layers.layer_cases import OPTIONS, tensors

WIDTH, NUMBERS = 16, 11
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytestmark = pytest.mark.skipif(obstacle(DEVICE) is not None, reason="Triton cannot run here")


@pytest.fixture(autouse=True)
def _on_a_gpu(monkeypatch):
    """Decoders are programs of Triton's, be it in the interpreter."""

    def program_for(batch, dtype, device, weights):
        return TritonProgram(batch, dtype, device=device, weights=weights)

    monkeypatch.setattr(module, "program_for", program_for)


def stirred(part: nn.Module) -> nn.Module:
    """`part` with noise on every parameter, ready to evaluate."""
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return part.to(DEVICE).eval()


def backbone(pattern: str, style: str, **options) -> Backbone:
    return stirred(Backbone(pattern, WIDTH, 2, style=style, **({"levels": 3, "window": 4} | options)))


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, device=DEVICE)


def assert_near(actual, expected, tolerance: float = 1e-4) -> None:
    """As far apart as sums of float32 in other orders, of which some are divided by small differences."""
    for x, y in zip(tensors(actual), tensors(expected), strict=True):
        assert x.dtype == y.dtype
        assert float((x.float() - y.float()).norm()) <= tolerance * max(1.0, float(y.float().norm()))


def follow(model: Backbone, decoder: Decoder, state, x: Tensor, mask: Tensor, reset: Tensor) -> None:
    """Both take the steps x [B, T, width] one by one, and agree on each output and on the last state."""
    for t in range(x.shape[1]):
        with torch.no_grad():
            y, state = model(x[:, t : t + 1], state, mask=mask[:, t : t + 1], reset=reset[:, t : t + 1])
        assert_near(decoder.step(x[:, t], mask=mask[:, t], reset=reset[:, t]), y[:, 0] * mask[:, t, None])
    assert_near(decoder.state(), state)


@pytest.mark.parametrize("style", ["large", "paper"])
@pytest.mark.parametrize("pattern", ["ms", "ha"])
@pytest.mark.parametrize("batch", [1, 3])
def test_it_computes_what_the_backbone_computes_beyond_levels_and_window(pattern, style, batch):
    model, time = backbone(pattern, style), 6
    decoder, (_, state) = Decoder(model, batch=batch), model(inputs(batch, 5))
    decoder.load(state)
    mask, reset = torch.rand(batch, time, device=DEVICE) < 0.8, torch.rand(batch, time, device=DEVICE) < 0.1
    follow(model, decoder, state, inputs(batch, time), mask, reset)


@pytest.mark.parametrize("style", ["large", "paper"])
@pytest.mark.parametrize("batch", [1, 2])
def test_it_does_so_with_biases_and_other_sizes(style, batch):
    model, time = backbone("msha", style, options=OPTIONS[style], final_norm="biased"), 3
    mask = torch.ones(batch, time, dtype=torch.bool, device=DEVICE)
    follow(model, Decoder(model, batch=batch), None, inputs(batch, time), mask, ~mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 2])
def test_half_precision_is_as_near_to_float32_as_the_backbone_in_it(batch, dtype):
    model, time = backbone("m", "large"), 6
    embedding, head = stirred(nn.Embedding(NUMBERS, WIDTH)), stirred(nn.Linear(WIDTH, NUMBERS))
    tokens = torch.randint(NUMBERS, (batch, time), device=DEVICE)
    for part in (model, embedding, head):
        part.to(dtype).float()  # the weights as they will be
    exact = head(model(embedding(tokens))[0])
    usual = head.to(dtype)(model.to(dtype)(embedding.to(dtype)(tokens))[0])
    decoder = Decoder(model, embedding=embedding, head=head, batch=batch)
    logits = torch.stack([decoder.step(tokens[:, t]) for t in range(time)], 1)
    assert logits.dtype == dtype
    assert (logits.float() - exact).norm() <= 2 * (usual.float() - exact).norm()


@pytest.mark.parametrize(("weights", "bound"), [("bfloat16", 2**-8), ("int8", 1 / 127)])
def test_narrow_weights_cost_little(weights, bound):
    model, x = backbone("m", "large"), inputs(1, 6)
    full, narrow = (Decoder(model, batch=1, weights=w) for w in ("full", weights))
    exact, rounded = (torch.stack([d.step(x[:, t]) for t in range(6)], 1) for d in (full, narrow))
    # Independent errors of at most `bound` / 2 of the largest weight in each of four products, one after the other.
    assert 0 < (rounded - exact).norm() < 4 * bound * exact.norm()


@pytest.mark.parametrize(
    ("pattern", "batch", "wrong", "how"),
    [
        ("m", 1, NUMBERS, ()),
        ("ha", 2, -1, ()),
        ("ms", 2, -(2**62), ("mask",)),
        ("ms", 2, 2**40, ("reset",)),
        ("ms", 2, -1, ("mask", "reset")),
    ],
)
def test_a_wrong_token_is_refused_and_changes_no_state(pattern, batch, wrong, how):
    model, embedding = backbone(pattern, "large"), stirred(nn.Embedding(NUMBERS, WIDTH))
    decoder, (_, state) = Decoder(model, embedding=embedding, batch=batch), model(inputs(batch, 5))
    decoder.load(state)
    chosen = {"mask": torch.tensor([True, False]), "reset": torch.tensor([False, True])}
    options = {name: chosen[name][:batch].to(DEVICE) for name in how}
    for refusals in (2, 1):  # a program's first run and its second are unlike all later ones
        tokens, before = torch.randint(NUMBERS, (batch,), device=DEVICE), decoder.state()
        for _ in range(refusals):
            bad = tokens.clone()
            bad[0] = wrong
            with pytest.raises(ValueError, match=rf"from 0 to {NUMBERS - 1}, as the embedding has them, got \[{wrong}"):
                decoder.step(bad, **options)
            assert_near(decoder.state(), before, tolerance=0)
        with torch.no_grad():
            y, state = model(embedding(tokens)[:, None], state)
        assert_near(decoder.step(tokens), y[:, 0])
    assert_near(decoder.state(), state)


def test_what_stands_in_a_masked_row_is_no_wrong_token():
    model, embedding = backbone("m", "paper"), stirred(nn.Embedding(NUMBERS, WIDTH))
    decoder, tokens = Decoder(model, embedding=embedding, batch=2), torch.tensor([3, NUMBERS], device=DEVICE)
    with torch.no_grad():
        y, _ = model(embedding(tokens[:1])[:, None])
    found = decoder.step(tokens, mask=tokens < NUMBERS)
    assert_near(found, torch.cat([y[:, 0], torch.zeros_like(y[:, 0])]))


def test_rows_can_be_chosen_and_it_can_begin_anew():
    model, x = backbone("msha", "large"), inputs(3, 6)
    decoder, rows = Decoder(model, batch=3), torch.tensor([2, 0, 2], device=DEVICE)
    first = decoder.step(x[:, 0])
    for t in range(1, 5):
        decoder.step(x[:, t])
    before = decoder.state()
    decoder.select(rows)
    assert_near(decoder.state(), map_state(lambda part: part[rows], before), tolerance=0)
    decoder.load(None)
    assert_near(decoder.step(x[:, 0]), first, tolerance=0)


def test_on_a_gpu_triton_is_taken_unless_another_backend_is_asked_for(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(module.triton, "obstacle", lambda device: None)
    made = []
    monkeypatch.setattr(module, "TritonProgram", lambda *of, **options: made.append((of, options)))
    of = 1, torch.bfloat16, torch.device("cuda")
    monkeypatch.setenv("EXLSTM_BACKEND", "torch")
    assert module.program_for(*of) is None
    assert not made
    for asked in ("triton", "auto"):
        monkeypatch.setenv("EXLSTM_BACKEND", asked)
        module.program_for(*of)
    monkeypatch.delenv("EXLSTM_BACKEND")
    module.program_for(*of, weights="int8")
    assert [options["weights"] for _, options in made] == ["full", "full", "int8"]
    assert made[-1] == (of[:2], {"device": of[2], "weights": "int8"})
