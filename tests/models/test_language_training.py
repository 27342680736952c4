"""Truncated backpropagation through time: the memory is carried, no gradient is, and no interruption shows."""

import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy

from exlstm.data.text import BOS, Document, Streams, TokenBatch, Tokenizer, Tokens
from exlstm.data.text.corpus import write_corpus
from exlstm.models import LanguageModel, language_training
from exlstm.models.language_loss import CarriedLoss, token_loss
from exlstm.train import train

PATTERNS = ["ms", "ha", "lg"]
RECIPE = dataclasses.replace(
    language_training.RECIPE, steps=12, accumulate=2, eval_every=100, save_every=5, log_every=1, ema=0.9
)


def make_model(pattern, style="paper", **fields):
    """All parameters random, gates too, so that nothing is left out by starting at zero."""
    torch.manual_seed(1)
    sizes = {"vocabulary": 259, "width": 64, "heads": 2, "levels": 4, "window": 6}
    model = LanguageModel(pattern=pattern, style=style, **sizes, **fields)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A corpus of 200 documents of a few dozen tokens."""
    folder, random = tmp_path_factory.mktemp("tokens"), torch.Generator().manual_seed(0)
    letters = [torch.randint(97, 123, (20 + n % 40,), generator=random).tolist() for n in range(200)]
    write_corpus(folder, [Document("", "".join(map(chr, text))) for text in letters], Tokenizer.bytes())
    return Tokens(folder, "train")


@pytest.mark.parametrize("style", ["paper", "large"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_pieces_give_the_losses_of_the_whole_and_gradients_that_end_where_they_begin(pattern, style, tokens):
    model = make_model(pattern, style).double()
    time = 12
    streams = Streams(tokens, batch=3, time=time, seed=0)
    at_the_end = len(tokens) // (3 * time) - 2  # two pieces of an epoch, and three of the next
    batches = [streams(n) for n in range(at_the_end, at_the_end + 5)]
    whole = TokenBatch(*(torch.cat(parts, 1) for parts in zip(*batches, strict=True)))
    with torch.no_grad():
        logits, _ = model(whole.tokens, reset=whole.reset)
    expected = cross_entropy(logits.transpose(1, 2), whole.targets, reduction="none").unflatten(1, (-1, time))

    carried = CarriedLoss(model)
    for n, batch in enumerate(batches):
        loss, _ = carried(model, batch)
        carried.settle(True)
        torch.testing.assert_close(loss.double(), expected[:, n].mean(), rtol=1e-6, atol=0)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        before = None
        if n:
            with torch.no_grad():
                _, before = model(whole.tokens[:, : n * time], reset=whole.reset[:, : n * time])
        logits, _ = model(batch.tokens, before, reset=batch.reset)
        truncated = cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        for ours, theirs in zip(gradients, torch.autograd.grad(truncated, list(model.parameters())), strict=True):
            # The loss is taken in float32.
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def fit(model, tokens, out=None, recipe=RECIPE, **options):
    options = {"batch": 2, "time": 16, "carry": True, "console": False, **options}
    result = language_training.fit(model, tokens, tokens, train=recipe, out=out, **options)
    return result, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def losses(result):
    return [record["loss"] for record in result.history if record["kind"] == "train"]


class Crash(Exception):
    """Stands for whatever ends a process from inside."""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_resumed_run_is_bit_identical(pattern, precision, tokens, tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, precision=precision)

    def model():
        return make_model(pattern, dropout=0.1)

    expected, weights = fit(model(), tokens, tmp_path / "whole", recipe)
    call = Streams.__call__

    def crash(streams, number):
        if number == 2 * 7 + 1:  # after the checkpoint of step 5, between two micro batches
            raise Crash
        return call(streams, number)

    monkeypatch.setattr(Streams, "__call__", crash)
    with pytest.raises(Crash):
        fit(model(), tokens, tmp_path / "cut", recipe)
    monkeypatch.setattr(Streams, "__call__", call)
    resumed, again = fit(model(), tokens, tmp_path / "cut", recipe, resume=True)
    assert losses(resumed) == losses(expected)
    assert weights.keys() == make_model(pattern).state_dict().keys()
    for name, tensor in weights.items():
        assert torch.equal(again[name], tensor), name


def test_a_run_that_carried_is_not_resumed_as_one_that_does_not(tokens, tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=2)
    fit(make_model("m"), tokens, tmp_path, recipe)
    with pytest.raises(ValueError, match="carry: was True, now False"):
        fit(make_model("m"), tokens, tmp_path, recipe, resume=True, carry=False)


def test_micro_batches_carry_what_the_rows_of_one_batch_do(tokens):
    accumulated, _ = fit(make_model("mh"), tokens, recipe=dataclasses.replace(RECIPE, steps=4, lr=1e-3), batch=2)
    whole = dataclasses.replace(RECIPE, steps=4, lr=1e-3, accumulate=1)
    together, _ = fit(make_model("mh"), tokens, recipe=whole, batch=4)
    # Sums in another order, and weights that differ by it.
    assert losses(accumulated) == pytest.approx(losses(together), rel=1e-4)


def test_validation_leaves_the_carried_memory_alone(tokens):
    often, _ = fit(make_model("ms"), tokens, recipe=dataclasses.replace(RECIPE, ema=0.0, eval_every=1))
    seldom, _ = fit(make_model("ms"), tokens, recipe=dataclasses.replace(RECIPE, ema=0.0))
    assert losses(often) == losses(seldom)


def test_after_a_step_that_is_not_finite_the_memory_is_empty(tokens):
    model, streams = make_model("mh"), Streams(tokens, batch=2, time=16, seed=0)
    carried, seen = CarriedLoss(model), []

    def loss(model, batch):
        value, metrics = carried(model, batch)
        seen.append((value.item(), token_loss(model, batch)[0].item()))
        return (value * float("nan") if len(seen) == 3 else value), metrics

    recipe = dataclasses.replace(RECIPE, steps=5, accumulate=1)
    result = train(model, loss, streams, recipe, carry=carried, quiet=True)
    assert result.skipped == 1
    assert [with_memory == without for with_memory, without in seen] == [True, False, False, True, False]


def test_a_document_that_begins_with_a_piece_is_read_from_an_empty_memory():
    model, x = make_model("mha").double(), torch.randint(3, 259, (2, 17))
    batch = TokenBatch(x[:, :-1], x[:, 1:], torch.zeros(2, 16, dtype=torch.bool))
    carried = CarriedLoss(model)
    carried(model, batch)
    carried.settle(True)
    reset = batch.reset.clone()
    reset[0, 0] = True  # in the first row only
    with torch.no_grad():
        empty, state = model(batch.tokens)
        full, _ = model(batch.tokens, state)
        expected = cross_entropy(torch.stack([empty[0], full[1]]).flatten(0, 1), batch.targets.flatten())
        loss, _ = carried(model, batch._replace(reset=reset))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_nothing_of_a_batch_is_kept_but_its_memory(tokens):
    carried = CarriedLoss(model := make_model("msha"))
    carried(model, Streams(tokens, batch=2, time=64, seed=0)(0))
    carried.settle(True)
    for tensor in carried.tensors().values():
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_a_memory_of_another_model_does_not_load(tokens):
    carried = CarriedLoss(model := make_model("m"))
    carried(model, Streams(tokens, batch=2, time=8, seed=0)(0))
    carried.settle(True)
    with pytest.raises(KeyError):
        CarriedLoss(make_model("mm")).load(carried.tensors())


def test_bos_begins_every_document_of_the_corpus(tokens):
    """What the tests above rely on."""
    assert int((torch.as_tensor(tokens.window(0, len(tokens))) == BOS).sum()) == tokens.about.documents > 100
