"""A decoder takes the backbone's place at any step: the same outputs, the same states."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import exlstm.models.decoder as module
from exlstm.layers import map_state
from exlstm.models import Backbone
from exlstm.models.decoder import Decoder
from tests.layers.layer_cases import OPTIONS, tensors
from tests.needs import needs_compiler

WIDTH, NUMBERS = 16, 11


@pytest.fixture(params=["compiled", "module"])
def engine(request, monkeypatch):
    """The two ways to run: as a program in C++, and, as without a compiler, by the module itself."""
    if request.param == "module":
        monkeypatch.setattr(module.cpu, "obstacle", lambda device: "no C++ compiler found")
    return request.param


def stirred(part: nn.Module) -> nn.Module:
    """`part` in float64 with noise on every parameter, ready to evaluate."""
    part.double().eval()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return part


def backbone(pattern: str, style: str = "large", width: int = WIDTH, heads: int = 2, **options) -> Backbone:
    return stirred(Backbone(pattern, width, heads, style=style, **({"levels": 4, "window": 5} | options)))


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, dtype=torch.float64)


def assert_same(actual, expected, tolerance: float = 1e-9) -> None:
    """All tensors equal up to the rounding of sums in float64, taken in another order, over many steps."""
    for a, e in zip(tensors(actual), tensors(expected), strict=True):
        assert a.dtype == e.dtype
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


def follow(model: Backbone, decoder: Decoder, state, x, mask=None, reset=None) -> None:
    """Both take the steps x [B, T, width] one by one, and agree on each output and on the last state."""
    for t in range(x.shape[1]):
        mask_t, reset_t = (None if s is None else s[:, t] for s in (mask, reset))
        sequences = (None if s is None else s[:, None] for s in (mask_t, reset_t))
        with torch.no_grad():
            y, state = model(x[:, t : t + 1], state, **dict(zip(("mask", "reset"), sequences, strict=True)))
        assert_same(decoder.step(x[:, t], mask=mask_t, reset=reset_t), y[:, 0])
    assert_same(decoder.state(), state)


@pytest.mark.parametrize("style", ["large", "paper"])
@pytest.mark.parametrize("pattern", ["m", "s", "h", "a", "mshas", "lg"])
@pytest.mark.parametrize("batch", [1, 3])
def test_it_computes_what_the_backbone_computes_far_beyond_levels_and_window(pattern, style, batch):
    model = backbone(pattern, style)
    decoder = Decoder(model, batch=batch)
    for prompt in (0, 1, 37):
        state = None if prompt == 0 else model(inputs(batch, prompt))[1]
        decoder.load(state)
        follow(model, decoder, state, inputs(batch, 42))


@pytest.mark.parametrize("style", ["large", "paper"])
@pytest.mark.parametrize(("width", "heads"), [(36, 3), (40, 2), (20, 1), (18, 9)])
def test_it_does_so_at_widths_that_fit_no_vector(style, width, heads):
    pattern = "msha" if width // heads % 2 == 0 else "msh"
    model = backbone(pattern, style, width, heads, levels=1, window=1)
    x = torch.randn(2, 9, width, dtype=torch.float64)
    follow(model, Decoder(model, batch=2), None, x)


@pytest.mark.parametrize("final_norm", ["biased", "none"])
@pytest.mark.parametrize("style", ["large", "paper"])
def test_it_does_so_with_biases_and_other_sizes(engine, style, final_norm):
    model = backbone("msha", style, options=OPTIONS[style], final_norm=final_norm)
    x, mask = inputs(2, 20), torch.rand(2, 20) < 0.8
    decoder, (_, state) = Decoder(model, batch=2), model(inputs(2, 9))
    decoder.load(state)
    follow(model, decoder, state, x, mask)


@pytest.mark.parametrize("style", ["large", "paper"])
def test_masks_and_resets_mean_what_they_mean_to_the_backbone(engine, style):
    model, batch, time = backbone("msha", style), 4, 30
    x, mask, reset = inputs(batch, time), torch.rand(batch, time) < 0.7, torch.rand(batch, time) < 0.1
    x[~mask] = torch.nan
    follow(model, Decoder(model, batch=batch), None, x, mask, reset)


def test_the_backbone_goes_on_from_its_state_and_it_from_the_backbones(engine):
    model, x = backbone("mshas", "paper"), inputs(2, 24)
    whole, final = model(x)
    decoder = Decoder(model, batch=2)
    state, outputs = None, []
    for begin in range(0, 24, 8):
        decoder.load(state)
        outputs += [decoder.step(x[:, t])[:, None] for t in range(begin, begin + 4)]
        y, state = model(x[:, begin + 4 : begin + 8], decoder.state())
        outputs.append(y)
    assert_same(torch.cat(outputs, 1), whole)
    assert_same(state, final)


def test_tokens_in_logits_out(engine):
    model, batch = backbone("msha"), 3
    embedding, head = stirred(nn.Embedding(NUMBERS, WIDTH)), stirred(nn.Linear(WIDTH, NUMBERS))
    decoder = Decoder(model, embedding=embedding, head=head, batch=batch)
    tokens, mask = torch.randint(NUMBERS, (batch, 6)), torch.rand(batch, 6) < 0.7
    tokens[~mask] = -1  # what stands there does not matter
    y, _ = model(embedding(tokens.clamp(min=0)), mask=mask)
    logits = torch.stack([decoder.step(tokens[:, t], mask=mask[:, t]) for t in range(6)], 1)
    assert_same(logits, head(y).masked_fill(~mask[..., None], 0))


def test_a_new_beginning_is_that_of_a_new_decoder(engine):
    model, x = backbone("msha"), inputs(2)
    decoder = Decoder(model, batch=2)
    first, state = decoder.step(x), decoder.state()
    decoder.step(x)
    decoder.load(None)
    assert_same(decoder.step(x), first, tolerance=0)
    assert_same(decoder.state(), state, tolerance=0)


def test_rows_can_be_chosen(engine):
    model, x, rows = backbone("msha"), inputs(3, 20), torch.tensor([2, 0, 2])
    decoder = Decoder(model, batch=3)
    for t in range(19):
        decoder.step(x[:, t], mask=torch.tensor([True, t % 2 == 0, t > 3]))
    before = decoder.state()
    decoder.select(rows)
    state = map_state(lambda part: part[rows], before)
    assert_same(decoder.state(), state)
    follow(model, decoder, state, x[:, 19:])


def test_states_are_copies(engine):
    model, x = backbone("msha"), inputs(2)
    decoder = Decoder(model, batch=2)
    decoder.step(x)
    given = decoder.state()
    kept = map_state(torch.Tensor.clone, given)
    decoder.load(given)
    decoder.step(x)
    assert_same(given, kept, tolerance=0)


def test_dropout_does_not_act_and_training_goes_on(engine):
    model, x = backbone("m", dropout=0.5).train(), inputs(2)
    y = Decoder(model, batch=2).step(x)
    assert model.training
    assert_same(y, model.eval()(x[:, None])[0][:, 0])


@needs_compiler
def test_weights_are_read_when_it_is_made():
    model, x = backbone("m"), inputs(2)
    decoder = Decoder(model, batch=2)
    expected, _ = model(x[:, None])
    nn.init.zeros_(model.norm.weight)
    assert_same(decoder.step(x), expected[:, 0])


def test_a_model_in_bfloat16_is_called_itself():
    model, x = backbone("msha", "paper").bfloat16(), inputs(2).bfloat16()
    decoder = Decoder(model, batch=2, weights="int8")
    y, state = model(x[:, None])
    assert_same(decoder.step(x), y[:, 0], tolerance=0)
    assert_same(decoder.state(), state, tolerance=0)


def test_it_can_be_made_and_used_in_and_out_of_inference_mode(engine):
    model, x = backbone("msha"), inputs(2)
    with torch.inference_mode():
        decoder = Decoder(model, batch=2)
        state = decoder.state()
    y = decoder.step(x)
    with torch.inference_mode():
        decoder.load(state)
        assert_same(decoder.step(x), y, tolerance=0)
        decoder.select(torch.tensor([1, 0]))
    assert_same(decoder.step(x.flip(0), reset=torch.tensor([True, True])), y.flip(0))


@pytest.mark.parametrize("style", ["large", "paper"])
def test_float32_is_as_near_to_float64_as_the_backbone_in_float32(style):
    model, x = backbone("msha", style, 64, 4), torch.randn(2, 20, 64, dtype=torch.float64)
    exact, _ = model(x)
    model.float()
    reference, _ = model(x.float())
    decoder = Decoder(model, batch=2)
    y = torch.stack([decoder.step(x[:, t].float()) for t in range(20)], 1)

    def error(y: torch.Tensor) -> float:
        return float((y - exact).detach().square().mean().sqrt())

    assert y.dtype == torch.float32
    assert error(y) <= 2 * error(reference)  # other orders of the same sums


@needs_compiler
@pytest.mark.parametrize(("weights", "bound"), [("bfloat16", 2**-8), ("int8", 1 / 127)])
def test_narrow_weights_cost_little(weights, bound):
    model, x = backbone("msha", "paper", 64, 4), torch.randn(2, 20, 64, dtype=torch.float64)
    head = stirred(nn.Linear(64, NUMBERS))
    full, narrow = (Decoder(model, head=head, batch=2, weights=w) for w in ("full", weights))
    exact, rounded = (torch.stack([d.step(x[:, t]) for t in range(20)], 1) for d in (full, narrow))
    error = float((rounded - exact).norm() / exact.norm())
    # A product of many terms with independent errors of at most `bound` / 2 of the largest weight, itself a few times
    # the usual one, is off by about `bound`; there are seven such products one after the other.
    assert 0 < error < 7 * bound


@needs_compiler
def test_the_number_of_threads_changes_no_bit():
    model, x = backbone("mha", "large", 128, 2, window=300).float(), torch.randn(4, 3, 128)
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            decoder = Decoder(model, batch=4)
            results.append([decoder.step(x[:, t]) for t in range(3)] + tensors(decoder.state()))
    finally:
        torch.set_num_threads(1)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_without_a_compiler_it_works_and_one_line_says_why_it_is_slower(tmp_path):
    code = (
        "import torch; from exlstm.models import Backbone; from exlstm.models.decoder import Decoder\n"
        "for _ in range(2): assert Decoder(Backbone('msha', 16, 2)).step(torch.ones(1, 16)).isfinite().all()\n"
    )
    environment = os.environ | {"CXX": "/nowhere/c++", "EXLSTM_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert len(done.stderr.splitlines()) == 1
    assert "no C++ compiler found" in done.stderr


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Decoder(nn.Linear(2, 2)), "Backbone, got Linear; give model.backbone"),
        (lambda: Decoder(backbone("m", bidirectional=True)), "got a bidirectional one; make one with"),
        (lambda: Decoder(backbone("m"), batch=0), "batch must be at least 1, got 0"),
        (lambda: Decoder(backbone("m"), weights="int4"), "weights must be one of full, bfloat16, int8, got 'int4'"),
        (
            lambda: Decoder(backbone("m"), head=nn.Linear(WIDTH, 2)),
            "one dtype .*got torch.float32 on cpu, torch.float64",
        ),
        (lambda: Decoder(backbone("m"), head=nn.Linear(2, 2).double()), "head must take width 16, got 2"),
        (lambda: Decoder(backbone("m"), embedding=nn.Embedding(3, 2).double()), "must give width 16, got 2"),
        (lambda: decoder().step(inputs(3)), r"x must have shape \[B, width\] = \(2, 16\), got \(3, 16\)"),
        (lambda: decoder().step(inputs(2).float()), r"x must be torch.float64 on cpu.*got torch.float32"),
        (lambda: decoder().step(inputs(2), mask=torch.ones(2)), "mask must be torch.bool.*got torch.float32"),
        (lambda: decoder().step(inputs(2), reset=torch.ones(3, dtype=torch.bool)), "reset must have shape"),
        (lambda: decoder(tokens=True).step(inputs(2)), "x must have shape .B., one token a row"),
        (lambda: decoder(tokens=True).step(torch.tensor([0, NUMBERS])), r"from 0 to 10, .* got \[0, 11\]"),
        (lambda: decoder(tokens=True).step(torch.tensor([0, -1])), r"from 0 to 10, .* got \[0, -1\]"),
        (lambda: decoder().select(torch.tensor([0, 2])), r"rows must be int64 from 0 to 1, got torch.int64 \[0, 2\]"),
        (lambda: decoder().select(torch.tensor([0])), "rows must have shape"),
        (lambda: decoder().load(()), "state must be a tuple of 4, got a tuple of 0"),
        (lambda: decoder().load(inputs(2)), "state must be a tuple of 4, got torch.float64"),
        (lambda: decoder().load(decoder().state()[::-1]), "state.0 must be MLSTMState, got AttentionState"),
        (lambda: decoder().load(decoder(batch=3).state()), r"for a batch of 2: state.0.C must be .* got .*\(3, 2"),
    ],
)
def test_impossible_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def decoder(*, batch: int = 2, tokens: bool = False) -> Decoder:
    return Decoder(backbone("msha"), embedding=stirred(nn.Embedding(NUMBERS, WIDTH)) if tokens else None, batch=batch)


def test_a_refused_state_changes_nothing(engine):
    ours, x = decoder(), inputs(2)
    ours.step(x)
    before = ours.state()
    wrong = (*before[:3], before[3]._replace(v=before[3].v[:1]))
    with pytest.raises(ValueError, match=r"state\.3\.v"):
        ours.load(wrong)
    assert_same(ours.state(), before, tolerance=0)
