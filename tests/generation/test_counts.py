"""Compares the cache of counts with counts by hand and by loops; its probabilities sum to 1."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw import generation
from hw.generation import Cache
from hw.generation.counts import SHARES, Counts


def _fed(ids, num_symbols, cache):
    counts = Counts(num_symbols, cache)
    for symbol in ids:
        counts.add(int(symbol))
    return counts


def test_probabilities_by_hand():
    # After 0 1 0 0 1 0, with two symbols: order 0 has counted 0 four times and 1 twice, so
    # p_0(1) = (2 + 2 · 1/2) / (6 + 2) = 3/8. The context 0 was followed by 1, 0, 1:
    # p_1(1) = (2 + 2 · 3/8) / (3 + 2) = 11/20. The context 1 0 was followed by 0 once:
    # p_2(1) = (0 + 1 · 11/20) / (1 + 1) = 11/40. The context 0 1 0 was followed by 0 once: p_3 = 11/80.
    expected = [3 / 8, 11 / 20, 11 / 40, 11 / 80]
    for order, probability in enumerate(expected):
        counts = _fed([0, 1, 0, 0, 1, 0], 2, Cache(order=order))
        assert counts.predict(1) == (pytest.approx(probability), order, [6, 3, 1, 1][order])
    # The context 0 0 1 0 has not occurred, so order 4 changes nothing.
    assert _fed([0, 1, 0, 0, 1, 0], 2, Cache(order=4)).predict(1) == (pytest.approx(11 / 80), 3, 1)
    assert Counts(2, Cache()).predict(1) == (0.5, -1, 0)


def _slowly(text, symbol, num_symbols, cache):
    """Computes the same by counting in the last characters, in loops."""
    text, probability = list(text[-cache.memory :]) if len(text) else [], 1 / num_symbols
    found = -1, 0
    for order in range(cache.order + 1):
        context = text[len(text) - order :]
        after = [
            text[i + order]
            for i in range(len(text) - order)
            if order <= len(text) and text[i : i + order] == context
        ]
        if not after or order > len(text):
            break
        found = order, len(after)
        different = len(set(after))
        probability = (after.count(symbol) + different * probability) / (len(after) + different)
    return probability, *found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 4), st.integers(1, 25), st.integers(0, 2))
def test_equal_counting_in_loops_and_sum_to_one(text, order, memory, symbol):
    cache = Cache(order=order, memory=memory)
    counts = _fed(text, 3, cache)
    assert counts.predict(symbol) == pytest.approx(_slowly(text, symbol, 3, cache))
    assert sum(counts.predict(s)[0] for s in range(3)) == pytest.approx(1)
    # What was forgotten has left no trace: the memory is bounded.
    assert vars(counts) == vars(_fed(text[-memory:], 3, cache))
    assert len(counts._often) <= (order + 1) * memory


def test_symbols_of_any_number_are_counted():
    ids = [0xD800, 0x10FFFF, 0, 0xDFFF] * 3
    assert _fed(ids, 0x110000, Cache(order=2)).predict(0xD800)[0] > 0.5


def _random(length, seed=0, num_symbols=4):
    """Returns a text that repeats itself, and scores of it by a model that nobody has."""
    rng = np.random.default_rng(seed)
    ids = np.concatenate([rng.integers(0, num_symbols, 30)] * (length // 30 + 1))[:length]
    ids[rng.integers(0, length, length // 10)] = 0
    return rng.gamma(2.0, 0.7, length - 1).astype(np.float32), ids


def test_mixed_probabilities_of_all_next_symbols_sum_to_one():
    nats, ids = _random(200)
    model = np.array([0.1, 0.2, 0.3, 0.4])  # of the last character
    total = 0.0
    for symbol in range(4):
        ids[-1], nats[-1] = symbol, -math.log(model[symbol])
        total += math.exp(-generation.with_counts(nats, ids, 4)[-1])
    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("cut", [1, 2, 57, 198])
def test_no_character_changes_the_score_of_an_earlier_one(cut):
    nats, ids = _random(200)
    other = np.concatenate([ids[:cut], (ids[cut:] + 1) % 4])
    one, two = (generation.with_counts(nats, of, 4, Cache(memory=40)) for of in (ids, other))
    np.testing.assert_array_equal(one[: cut - 1], two[: cut - 1])
    assert not np.array_equal(one[cut - 1 :], two[cut - 1 :])


@pytest.mark.parametrize("levels", [1, 3])
def test_lambda_loses_no_more_than_the_bound_against_the_best_of_each_pair(levels):
    nats, ids = _random(2000)
    cache = Cache(order=3, levels=levels)
    mixed = generation.with_counts(nats, ids, 4, cache)
    counts, by_pair = Counts(4, cache), {}
    for i, symbol in enumerate(ids.tolist()):
        if i:
            probability, order, often = counts.predict(symbol)
            found = by_pair.setdefault((order, min(often, levels)), [])
            found.append((math.exp(-nats[i - 1]), probability))
        counts.add(symbol)
    best = 0.0
    for found in by_pair.values():
        model, counted = np.array(found).T
        best += min(-np.log((1 - share) * model + share * counted).sum() for share in SHARES)
    lost = mixed.sum(dtype=float) - best
    assert 0 < lost < len(by_pair) * math.log(len(SHARES))
    # The text repeats itself and the model is poor, so the counts help much.
    assert mixed.mean() < nats.mean() - 0.5
