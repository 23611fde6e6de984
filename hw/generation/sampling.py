"""Samples text from a language model on the device: filters the distribution and draws symbols."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from jax.stages import Lowered

from hw import cli
from hw.cli import UserError

Array = jax.Array

# The characters of a prompt that one call reads.
WINDOW = 256
# Of a longer prompt (in characters) we read only the end, if the model has forgotten the rest.
LONG_PROMPT = 4096
# Two states count as equal if no unit differs by more. float32 rounding in batches of other sizes causes
# such differences.
FORGOTTEN = 1e-5
# The characters that one call of the device samples. A stream shows text after each call, and drops fewer
# than CHUNK characters at its end.
CHUNK = 64
# A lower temperature counts as 0: float32 cannot tell logits apart that differ by less than a millionth.
COLDEST = 1e-6


# --- The distribution of the next symbol ---


@dataclass(frozen=True)
class Draw:
    """A rule that chooses the next symbol, see `filter_logits`. It is hashable: jit takes it as static."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        """Returns whether the likeliest symbol is always chosen."""
        return self.temperature < COLDEST

    @property
    def filtered(self) -> bool:
        """Returns whether a filter may remove symbols."""
        return self.top_k > 0 or self.top_p < 1


def filter_logits(logits: Array, draw: Draw) -> Array:
    """Returns the logits of the distribution of the next symbol; removed symbols get −inf.

        l'_i = (l_i − max l) / temperature;  at 0 the limit: only the likeliest symbol
        p'_i = exp(l'_i) / Σ_j exp(l'_j)             over the top_k likeliest symbols, then
        keep the smallest m with Σ_{r ≤ m} p'_(r) ≥ top_p     of p'_(1) ≥ p'_(2) ≥ …

    Both filters sort the symbols by falling logit, and equal logits by rising id. Each keeps the first
    symbols of this order. So exactly top_k symbols remain even with equal logits, and always at least one.

    Args:
      logits: float32 [..., V].
      draw: temperature; top_k, 0 for all; top_p in (0, 1], 1 for all.

    Returns:
      float32 [..., V].

    Sources: top-k, Fan et al. 2018, "Hierarchical Neural Story Generation", section 5.1; top-p, Holtzman
    et al. 2020, "The Curious Case of Neural Text Degeneration", equation 2. Hugging Face's transformers has
    the same order: temperature, top-k, top-p.
    """
    num_symbols = logits.shape[-1]
    symbols = jnp.arange(num_symbols).reshape(*[1] * (logits.ndim - 1), -1)
    if draw.greedy:
        return jnp.where(symbols == logits.argmax(-1, keepdims=True), 0.0, -jnp.inf)
    # We subtract the maximum first, so that no quotient overflows to +inf.
    logits = (logits - logits.max(-1, keepdims=True)) / draw.temperature
    top_k = draw.top_k if 0 < draw.top_k < num_symbols else num_symbols
    if top_k == num_symbols and draw.top_p >= 1:
        return logits
    # The sort is stable, so of equal logits the smaller id comes first.
    fallen, order = jax.lax.sort(
        (-logits, jnp.broadcast_to(symbols, logits.shape)), num_keys=1, is_stable=True
    )
    kept = jnp.full((*logits.shape[:-1], 1), top_k)
    if draw.top_p < 1:
        among = jnp.where(symbols < top_k, -fallen, -jnp.inf)
        reached = jnp.cumsum(jax.nn.softmax(among), axis=-1) >= draw.top_p
        # Rounding may keep the sum of all below top_p. Then we need all symbols.
        needed = jnp.where(reached.any(-1), reached.argmax(-1) + 1, num_symbols)
        kept = jnp.minimum(kept, needed[..., None])
    # We keep a prefix of the order, so comparing a symbol with the last kept one tells whether to keep it.
    last_logit = -jnp.take_along_axis(fallen, kept - 1, axis=-1)
    last_symbol = jnp.take_along_axis(order, kept - 1, axis=-1)
    inside = (logits > last_logit) | ((logits == last_logit) & (symbols <= last_symbol))
    return jnp.where(inside, logits, -jnp.inf)


# --- Sampling ---


def _folded(module: nn.Module, variables: VariableDict) -> VariableDict:
    """Returns the variables after `module.fold`, if it exists: it computes values once for many steps."""
    return module.fold(variables) if hasattr(module, "fold") else variables


@partial(jax.jit, static_argnames="module")
def _read(module: nn.Module, variables: VariableDict, inputs: Array, carry: Any) -> Any:
    """Returns the carry after `inputs`."""
    return module.apply(variables, inputs, carry, train=False)[1]


def _read_prompt(
    module: nn.Module, variables: VariableDict, prompt: np.ndarray, place: Callable[[Any], Any]
) -> Any:
    """Returns the carry [1, …] after all symbols of a prompt except the last.

    The end of a long prompt is enough if the model has forgotten the rest. For a model without a known reach
    we test this: we start from very different states, and reading the end must lead all of them to one state.
    Otherwise we read more, and at last the whole prompt. (This is coupling from the past, Propp & Wilson
    1996, from a few states instead of all.) The models of a mixture read one after another, because each
    forgets at its own pace.
    """
    if hasattr(module, "parts"):
        return tuple(_read_prompt(part, of, prompt, place) for part, of in module.parts(variables))
    end = len(prompt) - 1

    def read(start: int, carry: Any) -> Any:
        streams = len(jax.tree.leaves(carry)[0])
        # The windows begin at the same places as for the whole prompt, so the results agree bit for bit.
        for at in range(start // WINDOW * WINDOW, end, WINDOW):
            window = np.repeat(prompt[None, at : min(at + WINDOW, end)], streams, axis=0)
            carry = _read(module, variables, place(window), place(carry))
        return carry

    if hasattr(module, "reach"):
        return read(max(0, end - module.reach), module.initial_carry(1))
    if end > LONG_PROMPT and hasattr(module, "far_carries"):
        tail = LONG_PROMPT // 4
        while tail < end / 2:
            carries = read(end - tail, module.far_carries())
            if all(float(jnp.ptp(x, axis=0).max()) < FORGOTTEN for x in jax.tree.leaves(carries)):
                return jax.tree.map(lambda x: x[:1], carries)
            tail *= 8
    if end > LONG_PROMPT:
        cli.say(f"reading a prompt of {len(prompt):,} characters: about a minute for each 100,000")
    return read(0, module.initial_carry(1))


@partial(jax.jit, static_argnames=("module", "draw"))
def _write(
    module: nn.Module, variables: VariableDict, carry: Any, ids: Array, rngs: Array, start: Array, draw: Draw
) -> tuple[Any, Array, Array, Array]:
    """Draws CHUNK more symbols of each stream.

    It draws a symbol as argmax_i (l_i / temperature + g_i) = argmax_i (l_i + temperature g_i) over the kept
    ones, with independent g_i = −log(−log u_i). This gives i with probability softmax(l / temperature)_i
    (Gumbel 1954; Maddison et al. 2014, "A* Sampling", section 2).

    Args:
      carry: the carry after all symbols of each stream except the last.
      ids: int32 [b], the last symbol of each stream.
      rngs: [b], the keys of the streams.
      start: the position of the first new symbol, counted from the end of the prompt.

    Returns:
      (carry, ids, the new symbols int32 [b, CHUNK], whether all logits were finite).
    """

    def step(carry: Any, ids: Array) -> tuple[Array, Any]:
        logits, carry = module.apply(variables, ids[:, None], carry, train=False)
        return logits[:, 0], carry

    noise = None
    if not draw.greedy:
        # We draw the noise of a chunk at once. Noise for one symbol at a time would be a large part of the
        # time of a small model's step.
        num_symbols = jax.eval_shape(step, carry, ids)[0].shape[-1]

        def gumbel(position: Array, rng: Array) -> Array:
            return draw.temperature * jax.random.gumbel(jax.random.fold_in(rng, position), (num_symbols,))

        of_streams = jax.vmap(gumbel, in_axes=(None, 0))
        noise = jax.vmap(of_streams, in_axes=(0, None))(start + jnp.arange(CHUNK), rngs)  # [CHUNK, b, V]

    def body(state: tuple[Any, Array], noise: Array | None) -> tuple[tuple[Any, Array], tuple[Array, Array]]:
        logits, carry = step(*state)
        finite = jnp.isfinite(logits).all()
        if noise is not None:
            if draw.filtered:
                logits = jnp.where(filter_logits(logits, draw) > -jnp.inf, logits, -jnp.inf)
            logits = logits + noise
        ids = logits.argmax(-1).astype(jnp.int32)
        return (carry, ids), (ids, finite)

    (carry, ids), (new, finite) = jax.lax.scan(body, (carry, ids), noise, length=CHUNK)
    return carry, ids, new.T, finite.all()


class Stop:
    """A search that finds the first stop sequence in a growing text and holds back its possible beginning.

    Source: Knuth, Morris & Pratt 1977, "Fast Pattern Matching in Strings", section 2.

    Attributes:
      found: whether the stop sequence has occurred.
    """

    def __init__(self, wanted: Collection[int]) -> None:
        self.found = False
        self._wanted = [int(v) for v in wanted]
        self._matched = 0  # The text ends with this many first symbols of `wanted`, which we hold back.
        # If a match of m symbols cannot continue, we try its longest shorter suffix that is also a match.
        self._shorter = [0, 0]
        for symbol in self._wanted[1:]:
            matched = self._shorter[-1]
            while matched and symbol != self._wanted[matched]:
                matched = self._shorter[matched]
            self._shorter.append(matched + (symbol == self._wanted[matched]))

    def feed(self, ids: Sequence[int]) -> list[int]:
        """Adds `ids` to the text; returns the symbols that can no longer belong to the stop sequence."""
        if self.found:
            return []
        text, matched = self._wanted[: self._matched], self._matched
        for symbol in ids:
            text.append(int(symbol))
            while matched and symbol != self._wanted[matched]:
                matched = self._shorter[matched]
            matched += symbol == self._wanted[matched]
            if matched == len(self._wanted):
                self.found = True
                break
        self._matched = int(matched)
        return text[: len(text) - self._matched]

    def end(self) -> list[int]:
        """Ends the text and returns the held-back symbols, which cannot become a stop sequence any more."""
        return [] if self.found else self._wanted[: self._matched]


def stream(
    module: nn.Module,
    variables: VariableDict,
    prompt: np.ndarray,
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    streams: Sequence[int] = (0,),
    seed: int = 0,
    stop: Collection[int] = (),
) -> Iterator[list[np.ndarray]]:
    """Yields, block by block, a model's continuations of a prompt, in several streams at once.

    The noise of a symbol depends only on (seed, stream, position). So a stream does not depend on the other
    streams or on `length`. Only rounding, which varies with the batch size, may change it.

    Args:
      module: a language model, see `hw.generation`.
      variables: its variables.
      prompt: ids [characters], at least one.
      length: the number of characters to add to each stream.
      temperature, top_k, top_p: see `filter_logits`.
      streams: the numbers of the streams.
      seed: the seed of the noise.
      stop: the ids of a stop text. A stream ends before its first occurrence after the prompt; () for none.

    Yields:
      For each stream its next characters, int32 [any number], never a part of the stop text. All blocks
      together hold `length` characters, or the characters before the stop text.

    Raises:
      UserError: logits are not finite.
    """
    if not len(prompt):
        raise ValueError("a prompt has at least one symbol")
    draw = Draw(temperature, top_k, top_p)
    prompt = np.asarray(prompt, np.int32)
    variables = _folded(module, jax.device_put(variables))
    # All inputs go to the devices of the variables. Otherwise the second call would compile a new program.
    place = partial(jax.device_put, device=jax.tree.leaves(variables)[0].sharding)
    # We read the prompt once, in a batch of one. Its last symbol is the input of the first step.
    carry = _read_prompt(module, variables, prompt, place)
    carry = jax.tree.map(lambda x: place(jnp.repeat(x, len(streams), axis=0)), carry)
    ids = place(np.full(len(streams), prompt[-1], np.int32))
    rngs = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(np.asarray(streams, np.uint32))
    rngs = place(rngs)

    stops = [Stop(stop) for _ in streams] if len(stop) else []
    for start in range(0, length, CHUNK):
        carry, ids, new, finite = _write(module, variables, carry, ids, rngs, np.int32(start), draw)
        if not finite:
            raise UserError("the model returns nan or inf: train it again, or name another --workdir")
        block = list(np.asarray(new)[:, : length - start])
        if stops:
            block = [s.feed(row.tolist()) for s, row in zip(stops, block, strict=True)]
        ended = start + CHUNK >= length or (bool(stops) and all(s.found for s in stops))
        if ended and stops:
            block = [shown + s.end() for s, shown in zip(stops, block, strict=True)]
        yield [np.asarray(shown, np.int32) for shown in block]
        if ended:
            return


def sample(
    module: nn.Module,
    variables: VariableDict,
    prompt: np.ndarray,
    *,
    streams: Sequence[int] = (0,),
    **options: Any,
) -> list[np.ndarray]:
    """Joins the blocks of `stream` and returns the characters of each stream, int32 [at most length]."""
    texts: list[list[np.ndarray]] = [[np.zeros(0, np.int32)] for _ in streams]
    for block in stream(module, variables, prompt, streams=streams, **options):
        for text, new in zip(texts, block, strict=True):
            text.append(new)
    return [np.concatenate(text) for text in texts]


def lowered(module: nn.Module, variables: VariableDict, shape: Callable[[Any], Any]) -> Lowered:
    """Lowers the program that samples one stream; it needs only shapes, and `shape` adds shardings."""
    ids = jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(
        lambda: (module.initial_carry(1), ids, jax.random.split(jax.random.key(0), 1), ids[0])
    )
    carry, last, rngs, start = shape(shapes)
    variables = shape(jax.eval_shape(partial(_folded, module), variables))
    return _write.lower(module, variables, carry, last, rngs, start, Draw())
