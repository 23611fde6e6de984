"""Continues and scores texts with a finished language model."""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hw import generation
from hw.cli import UserError
from hw.data.text import beginning, decode, encode
from hw.inference import mixing

# We draw this many samples in one batch, because their noise and carries must fit the memory.
SAMPLES_AT_ONCE = 64
# An error message lists at most this many unknown characters, and this many positions of each.
_NAMED, _POSITIONS = 10, 5


def sample(
    folders: Sequence[Path],
    *,
    weights: Sequence[float] | None = None,
    prompt: str | None,
    length: int,
    temperature: float,
    top_k: int,
    top_p: float,
    num_samples: int,
    seed: int,
    stop: str,
    echo: bool,
    skip_unknown: bool,
) -> Iterator[Iterator[str]]:
    """Yields samples of a language model, each as the pieces of its text in order.

    Args:
      folders: a workdir or a release; several for a mixture, see `hw.generation.mixture`.
      weights: the weight of each model of a mixture; None for equal weights.
      prompt: the text to continue; None for a newline. An empty prompt means a newline that is not shown, or
        the vocabulary's first symbol if it has no newline.
      length: the number of characters after the prompt.
      temperature, top_k, top_p, seed: see `generation.stream`.
      num_samples: the number of samples. A sample does not depend on the others.
      stop: a sample ends before the first occurrence of this text after the prompt; "" for none.
      echo: whether the first piece is the prompt that the model read.
      skip_unknown: whether to omit characters of the prompt that the model does not know.

    Raises:
      UserError: there is no language model, the models cannot be mixed, or characters are unknown.
    """
    model = mixing.load(folders, weights)
    module, variables, classes = model.module, model.variables, model.symbols
    if prompt is None:
        prompt = "\n" if "\n" in classes else ""
    ids, _ = _known(prompt, classes, "the prompt", skip_unknown)
    # We never skip characters of the stop text: without one of them it would be another text.
    stop_ids, _ = _known(stop, classes, "the stop text", False)
    shown = [decode(ids, classes)] if echo else []
    if not len(ids):
        ids, _ = encode(beginning(classes), classes)
    for first in range(0, num_samples, SAMPLES_AT_ONCE):
        streams = range(first, min(first + SAMPLES_AT_ONCE, num_samples))
        blocks = generation.stream(
            module,
            variables,
            ids,
            length=length,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            streams=streams,
            seed=seed,
            stop=stop_ids,
        )
        if num_samples == 1:
            pieces = (decode(block[0], classes) for block in blocks)
            yield (piece for part in (shown, pieces) for piece in part)
        else:
            whole = list(blocks)
            for i in range(len(streams)):
                yield iter([*shown, *(decode(block[i], classes) for block in whole)])


def score(
    text: str,
    folders: Sequence[Path],
    *,
    weights: Sequence[float] | None = None,
    protocol: str,
    counts: bool = False,
    skip_unknown: bool,
) -> tuple[dict[str, Any], list[tuple[str, float | None]]]:
    """Scores how well a language model predicts a text.

    Args:
      text: at least two characters that the model knows.
      folders: a workdir or a release; several for a mixture, see `hw.generation.mixture`.
      weights: the weight of each model of a mixture; None for equal weights.
      protocol: see `generation.score`; or "dynamic", see `generation.dynamic`.
      counts: whether to mix in counts of the text so far, see `generation.counts`; not with "cold256".
      skip_unknown: whether to omit characters that the model does not know.

    Returns:
      (report, characters). The report has `protocol`; `characters`, the number of predicted characters;
      `nats_per_character`, `bits_per_character`, `perplexity`; and `unknown`, the omitted characters, each
      with its `count` and its `first_position` in the text; for a mixture also `models`, each with its name,
      parameters and weight; with counts also `counts`, True. The second part lists the characters that the
      model read, each with its nats; None for the first.

    Raises:
      UserError: there is no language model, the models cannot be mixed, characters are unknown, or too few
        are known.
    """
    model = mixing.load(folders, weights)
    module, variables, classes = model.module, model.variables, model.symbols
    ids, unknown = _known(text, classes, "the text", skip_unknown)
    if protocol == "dynamic":
        slices = generation.score_dynamically(module, variables, ids)
    else:
        slices = generation.score(module, variables, ids, protocol)
    nats = next(found for found in slices if found is not None)
    if counts:
        nats = generation.with_counts(nats, ids, len(classes))
    mean = float(np.mean(nats, dtype=np.float64))
    if not math.isfinite(mean):
        raise UserError(f"the model in {model.name} scores this text with nan or inf: train it again")
    report = {
        "protocol": protocol,
        "characters": len(nats),
        "nats_per_character": mean,
        "bits_per_character": mean / math.log(2),
        "perplexity": math.exp(mean) if mean < 700 else math.inf,  # exp overflows above about 709.
        "unknown": [
            {"character": symbol, "count": len(positions), "first_position": positions[0]}
            for symbol, positions in unknown.items()
        ],
    }
    if counts:
        report["counts"] = True
    if model.members:
        report["models"] = model.members
    return report, list(zip(decode(ids, classes), [None, *nats.tolist()], strict=True))


def _known(
    text: str, classes: Sequence[str], what: str, skip: bool
) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Returns the ids of the characters in `classes`, and the positions of each unknown character.

    Raises:
      UserError: there are unknown characters, and `skip` is False.
    """
    ids, found = encode(text, classes)
    unknown: dict[str, list[int]] = {}
    for position, symbol in found:
        unknown.setdefault(symbol, []).append(position)
    if unknown and not skip:
        parts = []
        for symbol, positions in list(unknown.items())[:_NAMED]:
            places = ", ".join(map(str, positions[:_POSITIONS]))
            more = len(positions) - _POSITIONS
            parts.append(f"{_symbol_name(symbol)} at {places}" + (f" and {more} more" if more > 0 else ""))
        others = len(unknown) - _NAMED
        raise UserError(
            f"{what} has characters that the model does not know: {'; '.join(parts)}"
            + (f"; and {others} other characters" if others > 0 else "")
            + " (positions count from 0): omit them"
            + ("" if what == "the stop text" else ", or pass --unknown=skip")
        )
    return ids, unknown


def _symbol_name(symbol: str) -> str:
    """Returns a character for a message; by its code point if it is invisible or a combining mark."""
    if symbol.isascii() or (symbol.isprintable() and not unicodedata.category(symbol).startswith("M")):
        return repr(symbol)
    return f"U+{ord(symbol):04X}"
