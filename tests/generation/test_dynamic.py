"""Compares dynamic evaluation with hand-computed steps and with a plain loop; it never looks ahead."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hw import generation
from hw.cli import UserError
from hw.generation import Learning
from tests.generation.test_generation import MODULES, V, build, final

LEARNING = Learning(rate=0.02, decay=0.1, segment=7, epsilon=1e-3)


class Bias(nn.Module):
    """A language model of two symbols whose logits do not depend on the text."""

    @nn.compact
    def __call__(self, inputs, carry, *, train):
        bias = self.param("bias", nn.initializers.zeros_init(), (2,))
        return jnp.broadcast_to(bias, (*inputs.shape, 2)), carry

    def initial_carry(self, batch_size):
        return jnp.zeros((batch_size, 1))


@pytest.fixture(scope="module", params=["gru", "attention", "mixture"])
def model(request):
    if request.param != "mixture":
        return build(MODULES[request.param])
    return generation.mix([build(MODULES["gru"]), build(MODULES["attention"])], [2, 1])


def text(length, seed=1):
    return np.random.default_rng(seed).integers(0, V, length)


def test_two_steps_by_hand():
    # The bias b starts at (0, 0), so both symbols have 1/2 and the targets 1, 1 cost log 2 each. Their
    # gradient is p − (0, 1) = (1/2, −1/2), and √m is its size: the first step moves b by the rate, 1/2, to
    # (−1/2, 1/2). Now p = (0.268941, 0.731059): the target 0 costs log(1 + e) = 1.313262 and the target 1
    # costs log(1 + 1/e) = 0.313262.
    # The gradient of the targets 0, 1 is p − (1/2, 1/2) = (−0.231059, 0.231059),
    # √m = √((0.25 + 0.053388) / 2) = 0.389480, so the step is 0.5 · 0.231059 / 0.389480 = 0.296625. The decay
    # gives back 0.1 · 0.5. So b = ∓(0.5 − 0.296625 − 0.05) = ∓0.153375, and the target 0 costs
    # log(1 + exp(2 · 0.153375)) = 0.858238.
    variables = {"params": {"bias": np.zeros(2, np.float32)}}
    learning = Learning(rate=0.5, decay=0.1, segment=2, epsilon=0.0)
    nats = final(generation.score_dynamically(Bias(), variables, np.array([0, 1, 1, 0, 1, 0]), learning))
    expected = [math.log(2), math.log(2), 1.313262, 0.313262, 0.858238]
    np.testing.assert_allclose(nats, expected, atol=2e-6)


def test_equals_a_plain_loop(model):
    module, variables = model
    ids = text(29)  # four segments
    nats = final(generation.score_dynamically(module, variables, ids, LEARNING))
    flat, tree = jax.tree.flatten(variables["params"])

    @jax.jit
    def losses(params, inputs, targets, carry):
        held = {**variables, "params": jax.tree.unflatten(tree, params)}
        logits, after = module.apply(held, inputs, carry, train=False)
        return -jax.nn.log_softmax(logits[0])[jnp.arange(7), targets], after

    slope = jax.jit(jax.grad(lambda *args: losses(*args)[0].mean()))
    start, squares = [np.asarray(x, np.float64) for x in flat], [0.0] * len(flat)
    params, carry, expected = start, module.initial_carry(1), []
    for number, at in enumerate(range(0, 28, 7), start=1):
        now = [x.astype(np.float32) for x in params], ids[None, at : at + 7], ids[at + 1 : at + 8], carry
        of_segment, carry = losses(*now)
        expected += of_segment.tolist()
        for i, g in enumerate(np.asarray(g, np.float64) for g in slope(*now)):
            squares[i] = squares[i] + g * g
            step = 0.02 * g / (np.sqrt(squares[i] / number) + 1e-3)
            params = [*params[:i], params[i] - step + 0.1 * (start[i] - params[i]), *params[i + 1 :]]
    np.testing.assert_allclose(nats, expected, rtol=2e-3, atol=2e-4)
    # The parameters have moved far enough to tell an update that is missing or late.
    fixed = final(generation.score(module, variables, ids, "stateful", window=7))
    assert np.abs(nats - fixed)[7:].max() > 0.05


@pytest.mark.parametrize("cut", [1, 6, 7, 8, 20, 31])
def test_no_character_changes_the_score_of_an_earlier_one(model, cut):
    """From `cut` on the text is another one; the score of no earlier character differs in a bit."""
    ids = text(33)
    other = np.concatenate([ids[:cut], (ids[cut:] + 1) % V])
    one, two = (final(generation.score_dynamically(*model, of, LEARNING)) for of in (ids, other))
    np.testing.assert_array_equal(one[: cut - 1], two[: cut - 1])
    assert one[cut - 1] != two[cut - 1]


def test_without_a_rate_it_is_the_fixed_model(model):
    ids = text(40)
    nats = final(generation.score_dynamically(*model, ids, LEARNING._replace(rate=0.0)))
    np.testing.assert_allclose(nats, final(generation.score(*model, ids, "stateful", window=7)), atol=1e-5)


def test_it_learns_a_text_that_repeats_and_leaves_the_variables_alone(model):
    before = jax.tree.map(np.copy, model[1])
    ids = np.tile(text(9), 40)
    nats = final(generation.score_dynamically(*model, ids, LEARNING._replace(decay=0.0)))
    fixed = final(generation.score(*model, ids, "stateful"))
    assert nats[-90:].mean() < 0.5 * fixed[-90:].mean()
    jax.tree.map(np.testing.assert_array_equal, model[1], before)


def test_texts_that_are_too_short():
    with pytest.raises(UserError, match="at least two"):
        next(generation.score_dynamically(*build(MODULES["gru"]), np.array([1])))
