"""Text of a language model's own: the distribution that is drawn from, and the draws, on the device."""

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

# Characters of a prompt that are read at once.
WINDOW = 256
# Of a prompt of more characters only the end is read, where what came before makes no difference.
LONG_PROMPT = 4096
# Two states are one where no unit differs by more: float32 rounds a batch of another size that differently.
FORGOTTEN = 1e-5
# Characters sampled by one call of the device: a stream shows text that often, and at most so many
# are thrown away at the end.
CHUNK = 64
# Below this a temperature is 0: logits that differ by less than a millionth are the same to float32.
COLDEST = 1e-6


# --- The distribution that is drawn from ---


@dataclass(frozen=True)
class Draw:
    """How the next symbol is chosen, see `filter_logits`. Hashable: it is part of the program."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest symbol is always taken."""
        return self.temperature < COLDEST

    @property
    def filtered(self) -> bool:
        """Whether symbols may be left out."""
        return self.top_k > 0 or self.top_p < 1


def filter_logits(logits: Array, draw: Draw) -> Array:
    """Logits of the distribution that is drawn from: of symbols that are left out, −inf.

        l'_i = (l_i − max l) / temperature;  0 stands for the limit, the likeliest symbol alone
        p'_i = exp(l'_i) / Σ_j exp(l'_j)             over the top_k likeliest symbols, then
        keep the smallest m with Σ_{r ≤ m} p'_(r) ≥ top_p     of p'_(1) ≥ p'_(2) ≥ …

    Both filters keep the first few of one order: by logit, falling; among equals, by id, rising. So
    exactly top_k symbols stay, whatever is tied, and always at least one.

    Args:
      logits: float32 [..., V].
      draw: temperature; top_k, 0 for all; top_p in (0, 1], 1 for all.

    Returns:
      float32 [..., V].

    Sources: top-k, Fan et al. 2018, "Hierarchical Neural Story Generation", section 5.1; top-p, Holtzman
    et al. 2020, "The Curious Case of Neural Text Degeneration", equation 2. Temperature, then top-k, then
    top-p, as in Hugging Face's transformers.
    """
    num_symbols = logits.shape[-1]
    symbols = jnp.arange(num_symbols).reshape(*[1] * (logits.ndim - 1), -1)
    if draw.greedy:
        return jnp.where(symbols == logits.argmax(-1, keepdims=True), 0.0, -jnp.inf)
    # The maximum first, so that no quotient overflows upwards.
    logits = (logits - logits.max(-1, keepdims=True)) / draw.temperature
    top_k = draw.top_k if 0 < draw.top_k < num_symbols else num_symbols
    if top_k == num_symbols and draw.top_p >= 1:
        return logits
    # The sort is stable: among equals the smaller id comes first.
    fallen, order = jax.lax.sort(
        (-logits, jnp.broadcast_to(symbols, logits.shape)), num_keys=1, is_stable=True
    )
    kept = jnp.full((*logits.shape[:-1], 1), top_k)
    if draw.top_p < 1:
        among = jnp.where(symbols < top_k, -fallen, -jnp.inf)
        reached = jnp.cumsum(jax.nn.softmax(among), axis=-1) >= draw.top_p
        # Where rounding keeps the sum of all below top_p, all are needed.
        needed = jnp.where(reached.any(-1), reached.argmax(-1) + 1, num_symbols)
        kept = jnp.minimum(kept, needed[..., None])
    # What is kept is a beginning of the order, so its last member tells of each symbol whether it is in.
    last_logit = -jnp.take_along_axis(fallen, kept - 1, axis=-1)
    last_symbol = jnp.take_along_axis(order, kept - 1, axis=-1)
    inside = (logits > last_logit) | ((logits == last_logit) & (symbols <= last_symbol))
    return jnp.where(inside, logits, -jnp.inf)


# --- Sampling ---


def _folded(module: nn.Module, variables: VariableDict) -> VariableDict:
    """The variables with what the model wants to have computed once for many steps, if anything."""
    return module.fold(variables) if hasattr(module, "fold") else variables


@partial(jax.jit, static_argnames="module")
def _read(module: nn.Module, variables: VariableDict, inputs: Array, carry: Any) -> Any:
    """The carry after `inputs`."""
    return module.apply(variables, inputs, carry, train=False)[1]


def _read_prompt(
    module: nn.Module, variables: VariableDict, prompt: np.ndarray, place: Callable[[Any], Any]
) -> Any:
    """The carry [1, …] after all symbols of a prompt but the last.

    Of a long prompt the end is enough if the model has forgotten what came before. For a model without a
    known reach this is tried: from states far apart, reading the end must lead to one state. If it does not,
    more is read, and in the end all. (Coupling from the past, Propp & Wilson 1996, from a few states in place
    of all.)
    """
    end = len(prompt) - 1

    def read(start: int, carry: Any) -> Any:
        streams = len(jax.tree.leaves(carry)[0])
        # The windows begin where they would if all were read: the results are the same, bit for bit.
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
    """CHUNK more symbols of each stream.

    A symbol is drawn as argmax_i (l_i / temperature + g_i) = argmax_i (l_i + temperature g_i) over those
    kept, with independent g_i = −log(−log u_i), which gives i with probability softmax(l / temperature)_i
    (Gumbel 1954; Maddison et al. 2014, "A* Sampling", section 2).

    Args:
      carry: after all but the last symbol of each stream.
      ids: int32 [b], the last symbol of each.
      rngs: [b], of the streams.
      start: position of the first new symbol, counted from the end of the prompt.

    Returns:
      (carry, ids, the new symbols int32 [b, CHUNK], whether all logits were finite).
    """

    def step(carry: Any, ids: Array) -> tuple[Array, Any]:
        logits, carry = module.apply(variables, ids[:, None], carry, train=False)
        return logits[:, 0], carry

    noise = None
    if not draw.greedy:
        # All of a chunk at once: drawn one by one they would be a good part of a small model's step.
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
    """Finds where a sequence first occurs in a growing one, and holds back what may be its beginning.

    Source: Knuth, Morris & Pratt 1977, "Fast Pattern Matching in Strings", section 2.

    Attributes:
      found: whether it has occurred.
    """

    def __init__(self, wanted: Collection[int]) -> None:
        self.found = False
        self._wanted = [int(v) for v in wanted]
        self._matched = 0  # so many symbols of `wanted` are the end of what was seen: these are held back
        # Where a match of m symbols cannot go on, the longest shorter one that is the end of it can.
        self._shorter = [0, 0]
        for symbol in self._wanted[1:]:
            matched = self._shorter[-1]
            while matched and symbol != self._wanted[matched]:
                matched = self._shorter[matched]
            self._shorter.append(matched + (symbol == self._wanted[matched]))

    def feed(self, ids: Sequence[int]) -> list[int]:
        """What, with `ids` seen too, certainly comes before an occurrence and was not told of yet."""
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
        """What was held back and, as nothing comes after it, is no beginning of an occurrence."""
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
    """Yields, block by block, how a model continues a prompt, in several streams at once.

    What chance adds to a symbol is a function of (seed, stream, position) alone: a stream is the same
    beside any others (but for what rounding in batches of another size may turn), and the same
    however much is asked for.

    Args:
      module: a language model, see `hw.generation`.
      variables: its variables.
      prompt: ids [characters], at least one.
      length: characters to add to each stream.
      temperature, top_k, top_p: see `filter_logits`.
      streams: their numbers.
      seed: of the draws.
      stop: ids that end a stream where they first occur in what was added, and are not shown
        themselves; () for none.

    Yields:
      For each stream its next characters, int32 [any number]. No part of a stop text is ever among
      them. All blocks together are all `length` characters, or those before the stop text.

    Raises:
      UserError: logits are not finite.
    """
    if not len(prompt):
        raise ValueError("a prompt has at least one symbol")
    draw = Draw(temperature, top_k, top_p)
    prompt = np.asarray(prompt, np.int32)
    variables = _folded(module, jax.device_put(variables))
    # On the variables' devices from the first call on, or the second would be another program.
    place = partial(jax.device_put, device=jax.tree.leaves(variables)[0].sharding)
    # The prompt is read once, in a batch of one; its last symbol is the first input of the first step.
    carry = _read_prompt(module, variables, prompt, place)
    carry = jax.tree.map(lambda x: place(jnp.repeat(x, len(streams), axis=0)), carry)
    ids = place(np.full(len(streams), prompt[-1], np.int32))
    rngs = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(np.asarray(streams, np.uint32))
    rngs = place(rngs)

    stops = [Stop(stop) for _ in streams] if len(stop) else []
    for start in range(0, length, CHUNK):
        carry, ids, new, finite = _write(module, variables, carry, ids, rngs, np.int32(start), draw)
        if not finite:
            raise UserError("the model answers with nan or inf: train it again, or name another --workdir")
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
    """What `stream` yields, put together: for each stream its characters, int32 [at most length]."""
    texts: list[list[np.ndarray]] = [[np.zeros(0, np.int32)] for _ in streams]
    for block in stream(module, variables, prompt, streams=streams, **options):
        for text, new in zip(texts, block, strict=True):
            text.append(new)
    return [np.concatenate(text) for text in texts]


def lowered(module: nn.Module, variables: VariableDict, shape: Callable[[Any], Any]) -> Lowered:
    """The program that samples one stream, from shapes alone; `shape` gives them their shardings."""
    ids = jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(
        lambda: (module.initial_carry(1), ids, jax.random.split(jax.random.key(0), 1), ids[0])
    )
    carry, last, rngs, start = shape(shapes)
    variables = shape(jax.eval_shape(partial(_folded, module), variables))
    return _write.lower(module, variables, carry, last, rngs, start, Draw())
