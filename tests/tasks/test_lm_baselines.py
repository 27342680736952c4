import math

import numpy as np
import pytest

from exlstm.tasks.lm_baselines import ngram_bits


def slow_bits(train, test, vocabulary, order):
    """The definition, token by token."""

    def p(token, context):
        shorter = 1 / vocabulary if not context else p(token, context[1:])
        places = (
            [n for n in range(1, len(train)) if tuple(train[max(0, n - len(context)) : n]) == context]
            if context
            else range(1, len(train))
        )
        following = [train[n] for n in places]
        if not following:
            return shorter
        kinds = len(set(following))
        return (following.count(token) + kinds * shorter) / (len(following) + kinds)

    bits = [-math.log2(p(test[n], tuple(test[max(0, n - order + 1) : n]))) for n in range(1, len(test))]
    return sum(bits) / len(bits)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_it_is_interpolated_witten_bell(order):
    random = np.random.default_rng(0)
    train, test = random.integers(0, 4, 60) + 1, random.integers(0, 5, 25) + 1
    # Token 0 never occurs: at the start of the test a context is short, which the fast form fills with 0.
    assert ngram_bits(train, test, 6, order) == pytest.approx(slow_bits(list(train), list(test), 6, order), abs=0.05)


def test_after_the_first_tokens_it_is_exact():
    random = np.random.default_rng(1)
    # Token 0, which fills the contexts of the first tokens, is none of a text, as PAD is.
    train, test = random.integers(1, 4, 80), random.integers(1, 4, 30)
    whole, start = (n * ngram_bits(train, test[: n + 1], 4, 3) for n in (29, 2))
    slow = [n * slow_bits(list(train), list(test[: n + 1]), 4, 3) for n in (29, 2)]
    assert whole - start == pytest.approx(slow[0] - slow[1], rel=1e-9)


def test_an_order_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="use a lower order"):
        ngram_bits(np.arange(9), np.arange(9), 70_000, 4)
