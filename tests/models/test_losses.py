"""The loss without all logits is torch's cross-entropy of them, and models give the same by either way."""

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid

from exlstm.models import LanguageModel, Seq2Seq
from exlstm.models.losses import IGNORED, ROWS, linear_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, ROWS, 2 * ROWS + 3])
def test_loss_and_gradients_are_those_of_torch(rows, smoothing):
    x, weight = torch.randn(rows, 5, dtype=torch.float64) * 9, torch.randn(11, 5, dtype=torch.float64)
    targets = torch.randint(11, (rows,))
    targets[1::3] = 4
    inputs = [x.requires_grad_(), weight.requires_grad_()]
    theirs = cross_entropy(x @ weight.T, targets, ignore_index=4, label_smoothing=smoothing) * 3
    ours = linear_cross_entropy(x, weight, targets, ignored=4, smoothing=smoothing) * 3
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for found, expected in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def test_a_loss_may_be_divided_in_place():
    x, weight, targets = torch.randn(7, 5, requires_grad=True), torch.randn(11, 5), torch.arange(7)
    halves = [linear_cross_entropy(x, weight, targets), linear_cross_entropy(x, weight, targets)]
    halves[0] /= 2
    torch.testing.assert_close(
        torch.autograd.grad(halves[0], x)[0], torch.autograd.grad(halves[1] / 2, x)[0], rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_second_source_of_targets_shares_the_probability(smoothing):
    rows = ROWS + 3
    x, weight = torch.randn(rows, 5, dtype=torch.float64) * 3, torch.randn(11, 5, dtype=torch.float64)
    gate, copied = torch.randn(rows, dtype=torch.float64), torch.rand(rows, dtype=torch.float64)
    copied[::4] = 1e-300
    targets = torch.randint(11, (rows,))
    targets[1::3] = IGNORED
    inputs = [tensor.requires_grad_() for tensor in (x, weight, gate, copied)]
    there, share = targets != IGNORED, gate.sigmoid()
    log = (x @ weight.T).log_softmax(1)
    hit = log.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    hard = ((1 - share) * hit.exp() + share * copied).log()
    theirs = -((1 - smoothing) * hard + smoothing * log.mean(1))[there].mean() * 3
    other = (logsigmoid(-gate), logsigmoid(gate) + copied.log())
    ours = linear_cross_entropy(x, weight, targets, smoothing=smoothing, other=other) * 3
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for found, expected in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_lower_precision_adds_in_float32():
    x, weight = torch.randn(2 * ROWS, 16), torch.randn(50, 16)
    targets = torch.randint(50, (2 * ROWS,))
    exact = cross_entropy(x.bfloat16().double() @ weight.bfloat16().double().T, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x.requires_grad_(), weight.requires_grad_(), targets)
    assert loss.dtype == torch.float32
    # Logits of size 4 are rounded to 8 bits, each by 2^-8 of it at most; the mean of many is far closer.
    assert abs(float(loss.detach()) - float(exact)) < 4 * 2**-8
    assert torch.autograd.grad(loss, [x, weight])[1].dtype == torch.float32


def test_nothing_to_count_is_nan_as_in_torch():
    assert linear_cross_entropy(torch.randn(3, 4), torch.randn(5, 4), torch.full((3,), IGNORED)).isnan()


@pytest.mark.parametrize("options", [{}, {"soft_cap": 3.0}, {"tied": True}])
def test_a_language_model_gives_the_loss_of_its_logits(options):
    model = LanguageModel(vocabulary=20, pattern="ms", width=16, heads=2, **options).double()
    tokens, targets = torch.randint(20, (2, 9)), torch.randint(20, (2, 9))
    logits, _ = model(tokens)
    expected = cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss, state = model(tokens, targets=targets)
    assert state is not None
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    for a, b in zip(*(torch.autograd.grad(x, [*model.parameters()]) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("memory", ["hierarchical", "attention"])
@pytest.mark.parametrize("copy", [True, False])
def test_a_sequence_to_sequence_model_gives_the_loss_of_its_scores(memory, copy):
    fields = {"encoder": "s", "decoder": "s", "width": 16, "heads": 2, "dropout": 0, "memory": memory, "copy": copy}
    model = Seq2Seq(vocabulary=20, bos=1, eos=2, **fields).double()
    source, target, labels = torch.randint(3, 20, (2, 9)), torch.randint(3, 20, (2, 7)), torch.randint(20, (2, 7))
    labels[0, :4] = source[0, 5:]  # something to copy
    mask = torch.arange(9) < torch.tensor([9, 5])[:, None]
    scores = model(source, target, mask).flatten(0, 1)
    loss = model(source, target, mask, labels=labels, ignored=0)
    expected = cross_entropy(scores, labels.flatten(), ignore_index=0)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(x, [*model.parameters()]) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    if not copy:
        smoothed = cross_entropy(scores, labels.flatten(), ignore_index=0, label_smoothing=0.1)
        loss = model(source, target, mask, labels=labels, ignored=0, smoothing=0.1)
        torch.testing.assert_close(loss, smoothed, rtol=1e-12, atol=1e-12)


def test_all_logits_are_never_held():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                self.most = max(self.most, x.numel() if isinstance(x, torch.Tensor) else 0)
            return out

    x, weight = torch.randn(8 * ROWS, 4, requires_grad=True), torch.randn(100, 4, requires_grad=True)
    with Largest() as seen:
        linear_cross_entropy(x, weight, torch.randint(100, (8 * ROWS,))).backward()
    assert seen.most == ROWS * 100
