"""Compares filters with enumeration, samples with the model's probabilities, scores with naive loops."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hw import generation
from hw.cli import UserError
from hw.generation import Draw, Stop, copied, filter_logits, sampling, scoring
from hw.generation.sampling import CHUNK
from hw.models.attention_lm import AttentionLM
from hw.models.gru_lm import GRULM
from hw.training.parallel import Parallel

V = 7


class Minimal(nn.Module):
    """A minimal language model that has an embedding, flax's GRU and a head."""

    @nn.compact
    def __call__(self, inputs, carry, *, train):
        carry = self.initial_carry(len(inputs)) if carry is None else carry
        x = nn.Embed(V, 8)(inputs)
        carry, x = nn.RNN(nn.GRUCell(8), return_carry=True)(x, initial_carry=carry)
        return nn.Dense(V)(x), carry

    def initial_carry(self, batch_size):
        return jnp.zeros((batch_size, 8))


class Bigram(nn.Module):
    """A language model that knows only the last symbol, so that a table gives its scores."""

    @nn.compact
    def __call__(self, inputs, carry, *, train):
        return nn.Embed(V, V, embedding_init=nn.initializers.normal(1.0), name="table")(inputs), carry

    def initial_carry(self, batch_size):
        return jnp.zeros((batch_size, 1))


MODULES = {
    "minimal": Minimal(),
    "gru": GRULM(vocab_size=V, embedding=8, width=8, depth=2),
    "attention": AttentionLM(vocab_size=V, width=8, depth=2, heads=2, context=6),
}


def build(module):
    """Returns the module and variables whose weights make the distributions far from uniform."""
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), None, train=False)
    )
    rng = np.random.default_rng(0)
    return module, jax.tree.map(lambda x: rng.normal(0, 0.8, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module", params=MODULES)
def model(request):
    return build(MODULES[request.param])


@pytest.fixture(scope="module")
def minimal():
    return build(MODULES["minimal"])


PROMPT = np.array([3, 1, 4, 1, 5, 2, 6], np.int32)


@partial(jax.jit, static_argnames="module")
def one_pass(module, variables, ids, carry=None):
    return module.apply(variables, ids, carry, train=False)


def logits_of(model, ids):
    """Returns the logits after each symbol of each text, [texts, characters, V]."""
    return np.asarray(one_pass(*model, np.asarray(ids))[0], np.float64)


# --- Filters ---


def slow_filter(logits, temperature, top_k, top_p):
    """Computes the kept symbols and their probabilities, one symbol at a time in float64."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if temperature == 0:
        order, scaled = order[:1], {order[0]: 0.0}
    else:
        scaled = {i: (float(logits[i]) - float(max(logits))) / temperature for i in order}
    if top_k:
        order = order[:top_k]
    weights = [np.exp(scaled[i]) for i in order]
    kept, mass = [], 0.0
    for i, weight in zip(order, weights, strict=True):
        kept.append(i)
        mass += weight / sum(weights)
        if mass >= top_p:
            break
    probabilities = np.zeros(len(logits))
    for i in kept:
        probabilities[i] = np.exp(scaled[i])
    return probabilities / probabilities.sum()


def check_filter(logits, temperature, top_k, top_p):
    logits = np.asarray(logits, np.float32)
    out = filter_logits(jnp.asarray(logits), Draw(temperature, top_k, top_p))
    expected = slow_filter(logits, temperature, top_k, top_p)
    np.testing.assert_array_equal(np.isfinite(out), expected > 0)
    np.testing.assert_allclose(jax.nn.softmax(out), expected, atol=2e-6)


@pytest.mark.parametrize("temperature", [0, 0.3, 1, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 3, 6, 7, 50])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.7, 0.95, 1])
def test_filter_equals_enumeration(temperature, top_k, top_p):
    # No sum of these probabilities is within rounding of a top_p.
    check_filter([0.31, -1.7, 2.23, 0.9, -0.4, 1.15, -3.0], temperature, top_k, top_p)


@pytest.mark.parametrize("top_k", [0, 1, 2, 3, 4, 5])
# Each of four equal symbols has exactly a quarter, so these values test the border itself.
@pytest.mark.parametrize("top_p", [0.2, 0.25, 0.26, 0.5, 0.75, 0.76, 1])
def test_ties_go_to_the_smaller_id(top_k, top_p):
    if top_k != 3 or top_p == 1:  # Thirds have no exact sum.
        check_filter([-np.inf, 0, 0, -np.inf, 0, 0], 1, top_k, top_p)
    out = filter_logits(jnp.zeros(5), Draw(top_k=2))
    assert np.isfinite(out).tolist() == [True, True, False, False, False]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.integers(0, 10), st.sampled_from([0.0, 1.0]))
def test_top_k_keeps_exactly_k(logits, top_k, temperature):
    check_filter(logits, temperature, top_k, 1)


def test_filter_works_row_by_row_and_at_extreme_temperatures():
    logits = np.random.default_rng(0).normal(size=(4, 3, 9)).astype(np.float32)
    draw = Draw(0.7, 5, 0.8)
    rows = jax.vmap(jax.vmap(lambda x: filter_logits(x, draw)))(jnp.asarray(logits))
    np.testing.assert_array_equal(filter_logits(jnp.asarray(logits), draw), rows)
    for temperature in (1e-45, 1e-7, 1e-6, 1e30):
        out = np.asarray(filter_logits(jnp.asarray([900.0, -900.0, 899.0]), Draw(temperature)))
        assert out.max() == 0 and not np.isnan(out).any()


# --- Sampling ---


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.6}, {"temperature": 2.0, "top_k": 4}, {"top_p": 0.8}], ids=str
)
def test_frequencies_are_the_models_probabilities(model, options):
    count = 2000
    drawn = generation.sample(*model, PROMPT, length=2, streams=range(count), seed=1, **options)
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
    pairs = np.zeros((V, V))
    np.add.at(pairs, tuple(np.array(drawn).T), 1)
    logits = logits_of(model, [[*PROMPT, i] for i in range(V)])
    first = slow_filter(logits[0, -2], **settings)
    second = np.array([slow_filter(row, **settings) for row in logits[:, -1]])
    joint = first[:, None] * second
    assert not pairs[joint == 0].any()
    # We join cells with fewer than five expected draws, because the chi-square test needs at least five.
    large = count * joint >= 5
    observed = np.append(pairs[large], count - pairs[large].sum())
    expected = np.append(count * joint[large], count * joint[~large].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    if len(observed) > 1:
        assert stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-3


def test_greedy_takes_the_likeliest(model):
    (drawn,) = generation.sample(*model, PROMPT, length=CHUNK + 6, temperature=0.0)
    (logits,) = logits_of(model, [[*PROMPT, *drawn]])
    for symbol, row in zip(drawn, logits[len(PROMPT) - 1 :], strict=False):
        assert row[symbol] >= row.max() - 1e-5
    np.testing.assert_array_equal(drawn, generation.sample(*model, PROMPT, length=CHUNK + 6, top_k=1)[0])


def test_a_symbol_is_a_function_of_seed_stream_and_position(minimal):
    """Compares with a loop over single characters, without chunk, batch or scan."""
    module, variables = minimal
    streams, length = [0, 3], CHUNK + 3
    drawn = generation.sample(*minimal, PROMPT, length=length, streams=streams, seed=5, top_k=6)
    for stream, new in zip(streams, drawn, strict=True):
        rng = jax.random.fold_in(jax.random.key(5), stream)
        logits, carry = one_pass(module, variables, PROMPT[None], module.initial_carry(1))
        for position in range(length):
            noise = jax.random.gumbel(jax.random.fold_in(rng, position), (V,))
            symbol = int((filter_logits(logits[0, -1], Draw(top_k=6)) + noise).argmax())
            assert symbol == new[position], (stream, position)
            logits, carry = one_pass(module, variables, np.array([[symbol]]), carry)


def test_a_stream_is_the_same_alone_and_among_others(model):
    options = {"length": 150, "seed": 7}
    together = generation.sample(*model, PROMPT, streams=range(5), **options)
    assert len({text.tobytes() for text in together}) == 5
    for i, text in enumerate(together):
        np.testing.assert_array_equal(generation.sample(*model, PROMPT, streams=[i], **options)[0], text)
    assert not np.array_equal(generation.sample(*model, PROMPT, length=150, seed=8)[0], together[0])


@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_length_and_beginnings(minimal, length):
    (long,) = generation.sample(*minimal, PROMPT, length=3 * CHUNK)
    (text,) = generation.sample(*minimal, PROMPT, length=length)
    assert text.dtype == np.int32 and len(text) == length
    np.testing.assert_array_equal(text, long[:length])


def test_a_prompt_read_in_windows_is_a_prompt_read_at_once(model, monkeypatch):
    prompt = np.random.default_rng(0).integers(0, V, 23)
    texts = []
    for window in (1, 5, 11, 22, 256):
        monkeypatch.setattr(sampling, "WINDOW", window)
        texts.append(generation.sample(*model, prompt, length=40, streams=range(2)))
    for text in texts[1:]:
        np.testing.assert_array_equal(text, texts[0])


@pytest.mark.parametrize("name", ["gru", "attention"])
def test_of_a_long_prompt_the_end_is_enough(monkeypatch, name):
    """The model need not read the text that it has forgotten, and the samples stay equal."""
    module, variables = build(MODULES[name])
    prompt = np.random.default_rng(1).integers(0, V, 3000)
    whole = generation.sample(module, variables, prompt, length=80, streams=range(2))
    monkeypatch.setattr(sampling, "LONG_PROMPT", 1024)
    monkeypatch.setattr(sampling, "WINDOW", 256)
    read = []
    of_window = sampling._read

    def count(module, variables, inputs, carry):
        read.append(inputs.shape[1])
        return of_window(module, variables, inputs, carry)

    monkeypatch.setattr(sampling, "_read", count)
    end = generation.sample(module, variables, prompt, length=80, streams=range(2))
    assert sum(read) <= 512 + 256
    for a, b in zip(whole, end, strict=True):
        np.testing.assert_array_equal(a, b)


def test_attention_sees_no_further_back_than_its_reach():
    module, variables = build(MODULES["attention"])
    prompt = np.random.default_rng(1).integers(0, V, 60)
    carries = [one_pass(module, variables, prompt[None, start:])[1] for start in (0, 60 - module.reach)]
    for whole, end in zip(*map(jax.tree.leaves, carries), strict=True):
        np.testing.assert_allclose(whole, end, rtol=1e-5, atol=1e-6)


def test_a_state_that_does_not_fade_is_read_from_the_beginning(monkeypatch, capsys):
    """Update gates near 1 keep the first symbols: the model reads the whole prompt, and a line says so."""
    module, variables = build(MODULES["gru"])
    for layer in ("gru_0", "gru_1"):
        cell = variables["params"][layer]
        cell["b"][8:16] = 40
    prompt = np.random.default_rng(1).integers(0, V, 1500)
    whole = generation.sample(module, variables, prompt, length=40)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sampling, "LONG_PROMPT", 1024)
    np.testing.assert_array_equal(generation.sample(module, variables, prompt, length=40), whole)
    assert "reading a prompt of 1,500 characters" in capsys.readouterr().err


def test_prompts_of_one_symbol_and_of_none(minimal):
    assert len(generation.sample(*minimal, PROMPT[:1], length=5)[0]) == 5
    with pytest.raises(ValueError, match="at least one"):
        generation.sample(*minimal, PROMPT[:0], length=5)


@pytest.mark.parametrize("replicated", [False, True], ids=["host", "mesh"])
def test_one_program_for_all_chunks_and_slices(minimal, replicated):
    module, variables = minimal
    if replicated:
        variables = Parallel().replicate(variables)
    before = sampling._write._cache_size(), scoring._nats._cache_size()
    # No other test uses this batch and this window, so nothing is compiled yet.
    generation.sample(
        module, variables, PROMPT, length=4 * CHUNK, streams=range(13 + replicated), temperature=1.5
    )
    ids = np.arange(100) % V
    for protocol in generation.PROTOCOLS:
        list(generation.score(module, variables, ids, protocol, window=9 + replicated, batch_size=3))
    assert sampling._write._cache_size() == before[0] + 1
    assert scoring._nats._cache_size() == before[1] + 2


# --- Stop texts ---


def find(text, wanted):
    """Returns the first position of `wanted` in a list; the list's length if there is none."""
    hits = (i for i in range(len(text) - len(wanted) + 1) if text[i : i + len(wanted)] == wanted)
    return next(hits, len(text))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 1), max_size=30),
    st.lists(st.integers(0, 1), min_size=1, max_size=6),
    st.integers(1, 7),
)
def test_stop_equals_a_search(text, wanted, block):
    stop = Stop(wanted)
    shown = []
    for at in range(0, len(text), block):
        seen = text[: at + block]
        shown += stop.feed(text[at : at + block])
        cut = find(seen, wanted)
        assert stop.found == (cut < len(seen))
        if not stop.found:
            # It holds back only the longest end that may still become an occurrence.
            held = max(m for m in range(len(wanted)) if m == 0 or seen[-m:] == wanted[:m])
            assert shown == seen[: len(seen) - held]
    assert shown + stop.end() == text[: find(text, wanted)]


def test_stop_texts_of_every_place_and_size(minimal):
    length = 2 * CHUNK + 20
    reference = generation.sample(*minimal, PROMPT, length=length)[0].tolist()
    starts = (0, 5, CHUNK - 3, CHUNK - 1, CHUNK, 2 * CHUNK - 2, length - 4)
    wanted = [reference[start : start + size] for start in starts for size in (1, 2, 4, 9)]
    # The first stop text would need symbols after the end, and the second occurs nowhere.
    wanted += [[*reference[-3:], 0, 0, 0, 0, 0, 0], [0, 6] * 40]
    borders = 0
    for stop in wanted:
        blocks = list(generation.stream(*minimal, PROMPT, length=length, stop=stop))
        cut = find(reference, stop)
        shown = [symbol for (block,) in blocks for symbol in block.tolist()]
        assert shown == reference[:cut]
        assert shown == generation.sample(*minimal, PROMPT, length=length, stop=stop)[0].tolist()
        assert len(blocks) == -(-min(cut + len(stop), length) // CHUNK)  # The stream ends early.
        borders += cut // CHUNK != (cut + len(stop) - 1) // CHUNK
    assert borders >= 5  # These occurrences cross the border of two chunks.


def test_each_stream_stops_by_itself_and_the_prompt_is_not_searched(minimal):
    streams, length = range(6), 3 * CHUNK
    reference = generation.sample(*minimal, PROMPT, length=length, streams=streams)
    stop = reference[2][10:13].tolist()
    stopped = generation.sample(*minimal, PROMPT, length=length, streams=streams, stop=stop)
    for text, whole in zip(stopped, reference, strict=True):
        np.testing.assert_array_equal(text, whole[: find(whole.tolist(), stop)])
    # The stop text begins in the prompt: this occurrence does not count.
    (first,) = generation.sample(*minimal, PROMPT, length=length)
    stop = [int(PROMPT[-1]), int(first[0])]
    (text,) = generation.sample(*minimal, PROMPT, length=length, stop=stop)
    np.testing.assert_array_equal(text, first[: find(first.tolist(), stop)])


# --- Scoring ---


def final(slices):
    *nothing, nats = slices
    assert nothing and all(v is None for v in nothing)
    return nats


@pytest.mark.parametrize("length", [2, 255, 256, 257, 258, 513, 111_540])
@pytest.mark.parametrize("protocol", generation.PROTOCOLS)
def test_every_character_but_the_first_is_a_target_once(length, protocol):
    module, variables = build(Bigram())
    ids = np.random.default_rng(0).integers(0, V, length).astype(np.uint8)
    nats = final(generation.score(module, variables, ids, protocol))
    table = np.asarray(jax.nn.log_softmax(variables["params"]["table"]["embedding"]))
    assert nats.shape == (length - 1,)
    np.testing.assert_allclose(nats, -table[ids[:-1], ids[1:]], atol=1e-6)


def naive(model, windows):
    """Computes −log p of each symbol after the first, window by window, without padding."""
    module, variables = model
    out = []
    for window in windows:
        logits, _ = one_pass(module, variables, window[None, :-1], module.initial_carry(1))
        out.append(-np.asarray(jax.nn.log_softmax(logits[0]))[np.arange(len(window) - 1), window[1:]])
    return np.concatenate(out)


@pytest.mark.parametrize(("length", "batch_size"), [(2, 4), (11, 1), (12, 4), (95, 4), (101, 64)])
def test_cold_equals_windows_one_by_one(model, length, batch_size):
    ids = np.random.default_rng(1).integers(0, V, length)
    windows = [ids[i : i + 11] for i in range(0, length - 1, 10)]
    nats = final(generation.score(*model, ids, "cold256", window=10, batch_size=batch_size))
    np.testing.assert_allclose(nats, naive(model, windows), atol=2e-5)


@pytest.mark.parametrize("length", [2, 11, 12, 95])
def test_stateful_equals_one_long_pass(model, length):
    ids = np.random.default_rng(1).integers(0, V, length)
    nats = final(generation.score(*model, ids, "stateful", window=10))
    np.testing.assert_allclose(nats, naive(model, [ids]), atol=2e-5)


@pytest.mark.parametrize("protocol", generation.PROTOCOLS)
def test_scoring_yields_between_slices(minimal, protocol):
    slices = list(generation.score(*minimal, np.zeros(101, int), protocol, window=10, batch_size=4))
    assert len(slices) - 1 == {"cold256": 3, "stateful": 10}[protocol]


def test_what_cannot_be_scored(minimal):
    for ids in ([], [1]):
        with pytest.raises(UserError, match="at least two"):
            next(generation.score(*minimal, np.array(ids), "cold256"))
    with pytest.raises(ValueError, match="warm"):
        next(generation.score(*minimal, PROMPT, "warm"))


# --- Copies ---


@settings(max_examples=300, deadline=None)
@given(st.text("ab", max_size=25), st.text("abc", max_size=40), st.integers(1, 5))
def test_copies_equal_brute_force(text, source, n):
    found = copied(text, source, n)
    substrings = {text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    longest = max((len(s) for s in substrings if s in source), default=0)
    assert found["longest"] == len(found["copy"]) == longest
    assert found["copy"] in text and found["copy"] in source
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    assert found["share"] == (np.mean([g in source for g in grams]) if grams else None)


def test_copies_in_a_million_characters():
    rng = np.random.default_rng(0)
    source = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz \n"), 1_000_000))
    text = source[500_000:500_150] + "#" + source[:15] + "#" * 400 + source[-30:]
    began = time.process_time()
    found = copied(text, source)
    assert time.process_time() - began < 3
    assert found["longest"] == 150 and found["copy"] == source[500_000:500_150]
    assert found["share"] == (131 + 11) / (len(text) - 19)
    # The whole text is one copy, although the source repeats it many times.
    assert copied("ab" * 500, "ab" * 100_000) == {"longest": 1000, "copy": "ab" * 500, "share": 1.0}
