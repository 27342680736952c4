"""The classifier: padding and neighbours change nothing, and what it promises of its parts holds."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from exlstm.data.text import LengthSampler, Tokenizer, TokenTexts
from exlstm.data.text.bags import Bags, bag, stack_bags
from exlstm.models import Classifier
from exlstm.models.bag_linear import STRENGTH, BagLinear
from exlstm.models.classifier_training import RECIPE, SMOOTHING, class_weights, fit, opinions, training_loss

VOCABULARY, FEATURES, BUCKETS = 13, 5, 32
LABELS = ("a", "b", "c")


def random_model(kind="tokens", **fields):
    torch.manual_seed(1)
    size = {"vocabulary": VOCABULARY} if kind == "tokens" else {"features": FEATURES}
    model = Classifier(**{"labels": LABELS, "pattern": "msa", "width": 32, "heads": 2, **size, **fields})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if model.linear is not None:
        for buffer in (model.linear.weight, model.linear.bias, model.linear.rarity):
            torch.nn.init.normal_(buffer).abs_()
    return model.double().eval()


def random_input(kind, *shape):
    return torch.randint(VOCABULARY, shape) if kind == "tokens" else torch.randn(*shape, FEATURES).double()


@pytest.mark.parametrize("kind", ["tokens", "features"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing_whatever_stands_there(kind, side):
    model, x = random_model(kind), random_input(kind, 2, 9)
    junk = torch.full_like(x[:, :4], VOCABULARY + 7 if kind == "tokens" else float("nan"))
    real, none = torch.ones(2, 9, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)
    padded = torch.cat([junk, x] if side == "left" else [x, junk], 1)
    mask = torch.cat([none, real] if side == "left" else [real, none], 1)
    torch.testing.assert_close(model(padded, mask), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["tokens", "features"])
def test_mixed_lengths_equal_one_by_one_and_a_row_without_steps_is_finite(kind):
    model, lengths = random_model(kind), torch.tensor([1, 4, 12, 0])
    x, mask = random_input(kind, 4, 12), torch.arange(12) < lengths[:, None]
    together = model(x, mask)
    for row, length in enumerate(lengths[:3].tolist()):
        torch.testing.assert_close(together[row], model(x[row : row + 1, :length])[0], rtol=1e-9, atol=1e-9)
    assert bool(together.isfinite().all())


def test_the_order_of_steps_matters_and_gradients_reach_everything():
    model, x = random_model(), torch.arange(10)[None] % VOCABULARY
    logits = model(x)
    assert not torch.allclose(model(x.flip(1)), logits)
    logits[0, 0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


def test_the_networks_share_with_the_linear_part():
    model = random_model(members=2, buckets=BUCKETS)
    x, bags = random_input("tokens", 3, 6), Bags(torch.randint(BUCKETS, (3, 4)), torch.ones(3, 4))
    apart = model(x, bags=bags, apart=True)
    assert apart.shape == (3, 3, 3)
    assert not torch.allclose(apart[:, 0], apart[:, 1])
    sure = apart.log_softmax(-1)
    for share in (0.5, 0.3):
        model.share.fill_(share)
        expected = share * (sure[:, 0] + sure[:, 1]) / 2 + (1 - share) * sure[:, 2]
        torch.testing.assert_close(model(x, bags=bags), expected)
    torch.testing.assert_close(model.linear(bags), apart[:, 2])


def test_the_share_goes_to_who_is_right():
    model = random_model(buckets=BUCKETS)
    labels = torch.arange(30) % 3
    right, wrong = torch.eye(3).double()[labels] * 4, torch.eye(3).double()[(labels + 1) % 3] * 4
    doubtful = torch.where(torch.arange(30)[:, None] < 15, right, wrong)
    for members, linear, share in ((right, wrong, 1.0), (wrong, right, 0.0), (doubtful, doubtful.roll(15, 0), 0.5)):
        logits = torch.stack([members, linear], 1)
        loss = model.settle(logits, labels)
        assert float(model.share) == pytest.approx(share)
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(model.combine(logits), labels)))
    alone = random_model()
    alone.settle(right[:, None], labels)
    assert alone.share == 1


def test_absent_entries_of_bags_change_nothing():
    linear = random_model(buckets=BUCKETS).linear
    bags = stack_bags([Counter({3: 2, 5: 1}), Counter({1: 1})])
    wide = Bags(torch.cat([bags.buckets, torch.full((2, 3), 9)], 1), torch.cat([bags.counts, torch.zeros(2, 3)], 1))
    torch.testing.assert_close(linear(wide), linear(bags))
    assert not torch.allclose(linear(Bags(wide.buckets, wide.counts + 1)), linear(bags))


def random_bags(count=80):
    """Bags whose label is often told by one bucket."""
    choose = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=choose)
    others = torch.randint(3, BUCKETS, (count, 6), generator=choose)
    told = torch.where(torch.rand(count, generator=choose) < 0.8, labels, labels.roll(1))
    bags = [Counter([a, *b]) for a, b in zip(told.tolist(), others.tolist(), strict=True)]
    return bags, labels.tolist()


@pytest.mark.parametrize("weighted", [False, True])
def test_solving_is_logistic_regression(weighted):
    sklearn = pytest.importorskip("sklearn.linear_model")
    bags, labels = random_bags()
    linear = BagLinear(BUCKETS, 3)
    weights = torch.tensor([0.5, 1.0, 2.0]) if weighted else None
    linear.solve(bags, labels, weights)
    inputs = torch.zeros(len(bags), BUCKETS)
    rows = stack_bags(bags)
    inputs.scatter_add_(1, rows.buckets, linear.entries(rows))
    known = linear.rarity > 0
    model = sklearn.LogisticRegression(C=STRENGTH, tol=1e-8, max_iter=2000)
    model.fit(inputs[:, known].numpy(), labels, sample_weight=None if weights is None else weights[labels].numpy())
    expected = torch.tensor(model.predict_log_proba(inputs[:, known].numpy()))
    # Both stop where the gradient is small; the weights are then within about a thousandth.
    torch.testing.assert_close(linear(rows).log_softmax(-1), expected.float(), rtol=0, atol=2e-2)


def test_what_is_in_one_bag_alone_is_not_known():
    bags, labels = random_bags()
    bags[0] = Counter({BUCKETS: 5})
    linear = BagLinear(BUCKETS + 1, 3)
    linear.solve(bags, labels)
    assert linear.rarity[BUCKETS] == 0
    torch.testing.assert_close(linear(stack_bags(bags[:1]))[0], linear.bias)
    frequent, rare = bag_counts(bags)
    assert linear.rarity[frequent] < linear.rarity[rare]


def bag_counts(bags):
    """The most frequent bucket, and the rarest that is in two bags at least."""
    counts = Counter(bucket for each in bags for bucket in each)
    known = [bucket for bucket, count in counts.most_common() if count > 1]
    return known[0], known[-1]


def some_texts(count=40, buckets=BUCKETS):
    words = ["alpha", "beta", "gamma"]
    labels = [n % 3 for n in range(count)]
    texts = [f"{words[n % 3]} and {'so ' * (n % 7)}on {n}" for n in range(count)]
    return TokenTexts(texts, Tokenizer.bytes(), labels, longest=30, buckets=buckets)


def tiny(**fields):
    return Classifier(
        labels=LABELS,
        vocabulary=Tokenizer.bytes().vocabulary,
        pattern="m",
        width=16,
        heads=2,
        **{"dropout": 0.1, **fields},
    )


def test_it_learns_and_a_saved_model_says_the_same(tmp_path):
    texts = some_texts()
    model = tiny(buckets=BUCKETS)
    recipe = replace(RECIPE, steps=60, lr=1e-2, eval_every=30)
    result = fit(model, texts, texts, batch=8, train=recipe, console=False)
    assert result.best["accuracy"] == 1
    model.save_pretrained(tmp_path)
    again = Classifier.from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(again.share, model.share)
    assert torch.equal(opinions(again, texts), opinions(model, texts))


def test_the_loss_is_that_of_the_networks_with_smoothed_labels_and_weights():
    model, texts = tiny(buckets=BUCKETS, members=2).eval(), some_texts()
    batch, weights = texts.batch([0, 1, 5]), torch.tensor([1.0, 2.0, 0.5])
    loss, _ = training_loss(weights)(model, batch)
    sure = opinions(model, texts)[[0, 1, 5]].log_softmax(-1)
    expected = 0.0
    for row, label in enumerate(batch.labels.tolist()):
        for member in (0, 1):
            own = (1 - SMOOTHING) * weights[label] * sure[row, member, label]
            expected -= float(own + SMOOTHING / 3 * (weights * sure[row, member]).sum())
    assert loss.item() == pytest.approx(expected / 6, rel=1e-5)


def test_class_weights_let_all_classes_count_alike():
    labels = [0, 0, 0, 1, 3]
    weights = class_weights(labels, 4)
    assert weights.tolist() == pytest.approx([5 / 9, 5 / 3, 0, 5 / 3])
    assert sum(weights[n] for n in labels) == pytest.approx(len(labels))


def test_an_epoch_holds_every_text_once_in_batches_of_like_lengths_and_depends_on_the_step_alone():
    texts = some_texts()
    sampler = LengthSampler(texts, batch=8, seed=0)
    first, second = ([sampler(step) for step in range(n, n + 5)] for n in (0, 5))
    for epoch in (first, second):
        found = [tuple(row[keep].tolist()) for x in epoch for row, keep in zip(x.tokens, x.mask, strict=True)]
        assert sorted(found) == sorted(map(tuple, texts.tokens))
    assert not all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, second, strict=True))
    spread = sum(int(x.mask.sum(1).max() - x.mask.sum(1).min()) for x in first) / 5
    assert spread < 10  # of lengths from 12 to 30
    again = LengthSampler(texts, batch=8, seed=0)(7)
    assert torch.equal(again.tokens, second[2].tokens)
    assert torch.equal(again.bags.buckets, second[2].bags.buckets)


def test_a_bag_counts_runs_of_words_in_small_letters():
    found = bag("The end, the END", longest=2, buckets=2**30)
    assert sorted(found.values()) == [1, 1, 1, 2, 2, 2]  # "," "end ," ", the"; "the" "end" "the end"
    assert found == bag("the end , the end", longest=2, buckets=2**30)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ("a",)}, "expected labels of at least 2 classes, each once, received 'a'"),
        ({"labels": ("a", "a")}, "each once"),
        ({"features": 3}, "either vocabulary, for sequences of tokens, or features"),
        ({"vocabulary": None}, "received vocabulary None and features None"),
        ({"members": 0}, "expected members of at least 1, received 0"),
        ({"buckets": -1}, "expected buckets of at least 0, received -1"),
        ({"width": 16, "heads": 5}, "expected width to be a multiple of heads, received width 16 and heads 5"),
    ],
)
def test_bad_configs_get_one_sentence(fields, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**{"labels": LABELS, "vocabulary": VOCABULARY, **fields})


def test_bad_inputs_get_one_sentence():
    model, x = random_model(buckets=BUCKETS), random_input("tokens", 2, 3)
    bags = Bags(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1))
    with pytest.raises(ValueError, match="expected bags, which this model's linear part reads"):
        model(x)
    with pytest.raises(ValueError, match=r"tokens must be from 0 to 12.*got 0 to 13"):
        model(torch.tensor([[0, 13]]), bags=bags)
    with pytest.raises(ValueError, match="expected no bags"):
        random_model()(x, bags=bags)
    with pytest.raises(ValueError, match=r"x must have shape \[B, T, features\]"):
        random_model("features")(x)
