"""Compares a mixture of language models with enumeration, and fitted weights with other optima."""

import itertools

import jax
import numpy as np
import pytest
from scipy import optimize, stats

from hw import generation
from hw.generation import sampling
from hw.models.attention_lm import AttentionLM
from hw.models.gru_lm import GRULM
from tests.generation.test_generation import PROMPT, V, build, final, one_pass

WEIGHTS = [0.5, 0.3, 0.2]


def _gru(seed):
    module = GRULM(vocab_size=V, embedding=8, width=8, depth=1)
    rng = np.random.default_rng(seed)
    return module, jax.tree.map(lambda x: rng.normal(0, 0.8, x.shape).astype(np.float32), build(module)[1])


@pytest.fixture(scope="module")
def members():
    """Two seeds of one recipe, whose modules are equal, and a model of another kind."""
    attention = AttentionLM(vocab_size=V, width=8, depth=1, heads=2, context=6)
    return [_gru(1), _gru(2), build(attention)]


@pytest.fixture(scope="module")
def mixture(members):
    return generation.mix(members, [5, 3, 2])


def _probabilities(model, text):
    """Returns p(symbol | the symbols before it) of every symbol, read one by one: float64 [t, V]."""
    module, variables = model
    carry, rows = module.initial_carry(1), []
    for symbol in text:
        logits, carry = one_pass(module, variables, np.array([[symbol]], np.int32), carry)
        exact = np.asarray(logits[0, 0], np.float64)
        rows.append(np.exp(exact - exact.max()) / np.exp(exact - exact.max()).sum())
    return np.array(rows)


def test_all_texts_of_one_length_have_probabilities_by_enumeration_that_sum_to_one(members, mixture):
    total = 0.0
    starts = {
        pair: sum(w * _probabilities(m, [3, *pair]) for w, m in zip(WEIGHTS, members, strict=True))
        for pair in itertools.product(range(3), range(V))
    }
    for first, second, third in itertools.product(range(3), range(V), range(V)):
        rows = starts[first, second]
        expected = rows[0, first] * rows[1, second] * rows[2, third]
        total += expected
        if (first + second + third) % 5 == 0:  # a fifth of the texts, to be quick
            text = np.array([3, first, second, third])
            nats = final(generation.score(*mixture, text, "cold256", window=3))
            assert np.exp(-nats.sum(dtype=float)) == pytest.approx(expected, rel=2e-5)
    # The texts that begin with one of three symbols have the probability of these symbols.
    assert total == pytest.approx(starts[0, 0][0, :3].sum(), rel=1e-12)


@pytest.mark.parametrize("protocol", generation.PROTOCOLS)
def test_a_score_is_the_mixed_probability_of_each_character(members, mixture, protocol):
    ids = np.random.default_rng(1).integers(0, V, 95)
    options = {"window": 10, "batch_size": 4}
    nats = np.stack([final(generation.score(*model, ids, protocol, **options)) for model in members])
    mixed = final(generation.score(*mixture, ids, protocol, **options))
    np.testing.assert_allclose(mixed, -np.log(WEIGHTS @ np.exp(-nats)), atol=2e-5)
    # It is not the average of the scores, nor that of the logits.
    assert mixed.mean() < (WEIGHTS @ nats).mean() - 0.1


def test_a_weight_of_one_is_the_model_alone(members):
    ids = np.random.default_rng(1).integers(0, V, 40)
    for i, model in enumerate(members):
        alone = final(generation.score(*model, ids, "stateful", window=10))
        mixed = generation.mix(members, np.eye(3)[i])
        np.testing.assert_allclose(
            final(generation.score(*mixed, ids, "stateful", window=10)), alone, atol=1e-5
        )
    equal = generation.mix(members)[1]["mixture"]["weights"]
    np.testing.assert_allclose(equal, 1 / 3, rtol=1e-6)


def test_samples_are_drawn_from_the_mixed_probabilities(members, mixture):
    count = 2000
    drawn = np.array(generation.sample(*mixture, PROMPT, length=1, streams=range(count), seed=1))[:, 0]
    expected = sum(w * _probabilities(model, PROMPT)[-1] for w, model in zip(WEIGHTS, members, strict=True))
    observed = np.bincount(drawn, minlength=V)
    assert (count * expected >= 5).all()
    assert stats.chisquare(observed, count * expected, sum_check=False).pvalue > 1e-3


def test_a_long_prompt_is_read_by_each_model_to_its_own_reach(mixture, monkeypatch):
    prompt = np.random.default_rng(1).integers(0, V, 3000)
    whole = generation.sample(*mixture, prompt, length=80, streams=range(2))
    assert whole[0].tolist() != whole[1].tolist()
    monkeypatch.setattr(sampling, "LONG_PROMPT", 1024)
    read = []
    of_window = sampling._read

    def count(module, variables, inputs, carry):
        read.append((type(module).__name__, inputs.shape[1]))
        return of_window(module, variables, inputs, carry)

    monkeypatch.setattr(sampling, "_read", count)
    for a, b in zip(whole, generation.sample(*mixture, prompt, length=80, streams=range(2)), strict=True):
        np.testing.assert_array_equal(a, b)
    lengths = {name: sum(length for of, length in read if of == name) for name in ("GRULM", "AttentionLM")}
    assert lengths["AttentionLM"] <= 256 < lengths["GRULM"] <= 2 * (512 + 256)


def test_a_mixture_of_mixtures_is_a_mixture(members, mixture):
    ids = np.random.default_rng(1).integers(0, V, 30)
    inner = generation.mix(members[:2], [5, 3])
    outer = generation.mix([inner, members[2]], [8, 2])
    expected = final(generation.score(*mixture, ids, "cold256", window=10))
    np.testing.assert_allclose(
        final(generation.score(*outer, ids, "cold256", window=10)), expected, atol=1e-5
    )


@pytest.mark.parametrize("weights", [[1.0], [1, -1, 1], [0, 0, 0], [np.nan, 1, 1]], ids=str)
def test_weights_that_are_none(members, weights):
    with pytest.raises(ValueError, match="3 models need as many weights"):
        generation.mix(members, weights)


# --- fitted weights ---


def test_fitted_weights_by_hand():
    # The first model gives 0.8 to 6 of 10 characters and 0.2 to the others, the second the reverse. With
    # the weight w the mixture gives 0.2 + 0.6 w and 0.8 − 0.6 w. The best mixture gives each kind its share:
    # 0.2 + 0.6 w = 0.6, so w = 2/3, and its mean is the entropy of (0.6, 0.4).
    first = np.where(np.arange(10) < 6, 0.8, 0.2)
    fit = generation.fit_weights(-np.log([first, 1 - first]), gap=1e-12)
    np.testing.assert_allclose(fit.weights, [2 / 3, 1 / 3], atol=1e-5)
    assert fit.nats == pytest.approx(-0.6 * np.log(0.6) - 0.4 * np.log(0.4), abs=1e-12)
    assert fit.gap <= 1e-12 and fit.steps > 0


def _best(nats_mt):
    """Returns the least mean over all weights of three models, by another method, from several starts."""

    def mean(logits):
        weights = np.exp(logits - logits.max())
        return -np.log(weights / weights.sum() @ np.exp(-nats_mt)).mean()

    starts = np.random.default_rng(0).normal(0, 2, (4, 3))
    options = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000, "maxfev": 8000}
    return min(optimize.minimize(mean, x, method="Nelder-Mead", options=options).fun for x in starts)


@pytest.mark.parametrize("seed", range(3))
def test_no_weights_are_better_by_more_than_the_bound(seed):
    nats_mt = np.random.default_rng(seed).gamma(1.0, 1.0 + 0.5 * np.arange(3)[:, None], (3, 400))
    best = _best(nats_mt)
    before = np.inf
    for steps in (0, 1, 5, 50, 20_000):
        fit = generation.fit_weights(nats_mt, gap=1e-7, max_steps=steps)
        assert fit.nats == pytest.approx(-np.log(fit.weights @ np.exp(-nats_mt)).mean(), abs=1e-12)
        assert -1e-9 <= fit.nats - best <= fit.gap + 1e-9
        assert fit.nats <= before  # no step makes the mean larger
        before = fit.nats
    assert fit.gap <= 1e-7 and fit.steps < 20_000 and abs(fit.weights.sum() - 1) < 1e-12


def test_a_model_that_brings_nothing_gets_no_weight():
    good = np.random.default_rng(0).gamma(1.0, 1.0, 500)
    fit = generation.fit_weights(np.stack([good, good + 1.0]))
    assert fit.weights[0] > 1 - 1e-5 and fit.nats == pytest.approx(good.mean(), abs=1e-5)
    # Probabilities that no float holds: exp(−2000).
    fit = generation.fit_weights(np.stack([good + 2000, good + 2001]))
    assert fit.nats == pytest.approx(good.mean() + 2000, abs=1e-5)
