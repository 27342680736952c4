import pytest
import torch

from exlstm.models import Backbone

WIDTH = 16


def backbone(pattern: str, **options) -> Backbone:
    """A small one in float64, with noise on every parameter, ready to evaluate."""
    model = Backbone(pattern, WIDTH, 2, levels=4, window=5, **options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def inputs(batch: int, time: int) -> torch.Tensor:
    return torch.randn(batch, time, WIDTH, dtype=torch.float64)


def steps(batch: int, time: int, share: float) -> torch.Tensor:
    return torch.rand(batch, time) < share


@pytest.mark.parametrize("style", ["paper", "large"])
@pytest.mark.parametrize("sizes", [(1,) * 23, (9, 1, 13)], ids=["steps", "pieces"])
def test_pieces_give_what_the_whole_gives(style, sizes):
    model, x, mask, reset = (
        backbone("mshas", style=style),
        inputs(3, 23),
        steps(3, 23, 0.7),
        steps(3, 23, 0.2),
    )
    whole, final = model(x, mask=mask, reset=reset)
    state, outputs = None, []
    for piece in zip(*(s.split(sizes, 1) for s in (x, mask, reset)), strict=True):
        y, state = model(piece[0], state, mask=piece[1], reset=piece[2])
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), whole)
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_stands_in_masked_steps_does_not_matter_not_even_nan(bidirectional):
    model, x, mask = backbone("msha", bidirectional=bidirectional), inputs(2, 20), steps(2, 20, 0.6)
    gradients = []
    for filler in (0.0, torch.nan):
        y, _ = model(x.masked_fill(~mask[..., None], filler), mask=mask)
        assert (y[~mask] == 0).all()
        gradients.append(torch.autograd.grad(y.square().sum(), list(model.parameters())))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
    assert all(bool(g.isfinite().all()) for g in gradients[1])


@pytest.mark.parametrize("pattern", ["m", "s", "h", "a", "msha"])
def test_reading_both_ways_sees_the_future_of_its_own_document_only(pattern):
    model, x, mask, reset = backbone(pattern, bidirectional=True), inputs(1, 19), steps(1, 19, 0.8), None
    reset = torch.zeros(1, 19, dtype=torch.bool)
    reset[0, [6, 13]] = True
    mask[0, [6, 12]] = False
    y, state = model(x, mask=mask, reset=reset)
    assert state is None
    for document in (slice(0, 6), slice(6, 13), slice(13, 19)):
        steps_there = torch.arange(19)[document][mask[0, document]]
        alone, _ = model(x[:, steps_there])
        torch.testing.assert_close(y[:, steps_there], alone)
    ahead = x.clone()
    ahead[:, 18] *= -1
    mask[:, [17, 18]] = True
    assert (model(ahead, mask=mask)[0][:, 17] != model(x, mask=mask)[0][:, 17]).any()


def test_reading_both_ways_mirrors_with_its_halves_exchanged():
    model, x = backbone("m", bidirectional=True), inputs(2, 11)
    y, _ = model(x)
    mixer = model.blocks[0].mixer
    mixer.forth, mixer.back = mixer.back, mixer.forth
    torch.testing.assert_close(model(x.flip(1))[0].flip(1), y)


@pytest.mark.parametrize("style", ["paper", "large"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_reach_every_parameter(style, bidirectional):
    model = backbone("msha", style=style, bidirectional=bidirectional)
    (model(inputs(2, 15))[0] * inputs(2, 15)).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()]


def test_the_future_does_not_change_the_past():
    model, x = backbone("msha"), inputs(2, 20)
    changed = x.clone()
    changed[:, 12:] = 0
    torch.testing.assert_close(model(changed)[0][:, :12], model(x)[0][:, :12])


def test_dropout_acts_in_training_only():
    model, x = backbone("ms", dropout=0.5), inputs(1, 8)
    torch.testing.assert_close(model(x)[0], model(x)[0], rtol=0, atol=0)
    model.train()
    assert (model(x)[0] != model(x)[0]).any()


@pytest.mark.parametrize(
    ("pattern", "width", "heads", "parameters"),
    [
        # xLSTM-7B has 6,865,424,896; two matrices of 50,304 x 4,096 stand outside the blocks.
        ("(m)x32", 4096, 8, 6_865_424_896 - 2 * 50_304 * 4_096),
        # TiRex has 35,291,200; 3,003,968 of them in the two patch networks.
        ("(s)x12", 512, 4, 35_291_200 - 3_003_968),
    ],
    ids=["xLSTM-7B", "TiRex"],
)
def test_published_models_of_the_large_style_have_the_same_number_of_parameters(pattern, width, heads, parameters):
    with torch.device("meta"):
        model = Backbone(pattern, width, heads, style="large")
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_published_layers_of_the_paper_style_fit():
    width, heads, inner, hidden = 512, 4, 1024, 704  # 2 D; 1.3 D rounded up to a multiple of 64
    mlstm = (
        *(2 * inner * width, 3 * inner * 4, inner * 4 + inner),  # up; q, k, v; convolution
        *(
            2 * (3 * inner * heads + heads),
            inner,
            inner,
            width * inner,
            width,
        ),  # gates; norm; skip; down; norm
    )
    slstm = (
        *(width * 4 + width, 8 * width * width // heads, 4 * width, width, width),  # conv; gates; bias; norms
        *(width, 3 * hidden * width),  # feed-forward norm, and weights
    )
    for pattern, expected in (("m", mlstm), ("s", slstm)):
        with torch.device("meta"):
            model = Backbone(pattern, width, heads)
        assert sum(p.numel() for p in model.parameters()) == sum(expected) + width


def test_it_can_be_exported():
    model, x = backbone("ma"), inputs(2, 6)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x)[0], model(x)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.randn(2, 3)), r"x must have shape \[B, T, width\]"),
        (lambda m: m(torch.randn(2, 3, 4)), r"\(any, any, 16\), got \(2, 3, 4\)"),
        (lambda m: m(torch.randn(2, 0, 16)), "at least one time step"),
        (lambda m: m(torch.zeros(2, 3, 16, dtype=torch.int64)), "floating point"),
        (lambda m: m(inputs(2, 3), mask=torch.ones(2, 3)), "mask must be bool"),
        (lambda m: m(inputs(2, 3), reset=torch.ones(2, 4, dtype=torch.bool)), "reset must have shape"),
        (lambda m: m(inputs(2, 3), ()), "tuple of 4 this backbone returned, got 0 entries"),
        (lambda m: m(inputs(2, 3), inputs(2, 3)), "tuple of 4 this backbone returned, got Tensor"),
        (lambda m: m(inputs(2, 3), m(inputs(2, 3))[1][::-1]), "state must be"),
        (lambda m: m(inputs(2, 3), m(inputs(1, 3))[1]), "shape"),
    ],
)
def test_impossible_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(backbone("msha"))


def test_a_bidirectional_backbone_refuses_a_state():
    model = backbone("m", bidirectional=True)
    _, state = backbone("m")(inputs(1, 2))
    with pytest.raises(ValueError, match="carries no state"):
        model(inputs(1, 2), state)
