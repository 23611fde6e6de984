"""A finished language model at work: texts continued, texts scored."""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hw import cli, generation
from hw.cli import UserError
from hw.data.text import beginning, decode, encode
from hw.training import saved

# Samples that are drawn side by side: their noise and carries must fit the memory, however many are wanted.
SAMPLES_AT_ONCE = 64
# An error names so many unknown characters, and so many positions of each.
_NAMED, _POSITIONS = 10, 5


def sample(
    folder: Path,
    *,
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
    """Yields samples of the language model in `folder`, each as the pieces of its text in order.

    Args:
      folder: a workdir or a release.
      prompt: what the text goes on from; None for a newline. Where nothing is left of it, the text goes
        on from a newline that is not shown, or from the vocabulary's first symbol if it has none.
      length: characters after the prompt.
      temperature, top_k, top_p, seed: see `generation.stream`.
      num_samples: how many; a sample is the same whether or not others are drawn beside it.
      stop: a sample ends before the first occurrence of this after the prompt; "" for none.
      echo: whether the first piece is the prompt, as the model saw it.
      skip_unknown: whether characters of the prompt that the model does not know are left out.

    Raises:
      UserError: there is no language model, or characters are unknown.
    """
    run = saved.load_run(folder, cli.say, task="text")
    module, variables, classes = run.module, run.variables, run.symbols
    if prompt is None:
        prompt = "\n" if "\n" in classes else ""
    ids, _ = _known(prompt, classes, "the prompt", skip_unknown)
    # Never skipped: without one of its characters it would be another text.
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
    text: str, folder: Path, *, protocol: str, skip_unknown: bool
) -> tuple[dict[str, Any], list[tuple[str, float | None]]]:
    """How well the language model in `folder` predicts a text.

    Args:
      text: at least two characters that the model knows.
      folder: a workdir or a release.
      protocol: see `generation.score`.
      skip_unknown: whether characters that the model does not know are left out.

    Returns:
      (`protocol`; `characters`, those that were predicted: all that the model knows but the first;
      `nats_per_character`, `bits_per_character`, `perplexity`; `unknown`, what was left out, each
      with its `count` and its `first_position` in the text), and the characters that the model saw, each
      with its nats; None for the first.

    Raises:
      UserError: there is no language model, characters are unknown, or too few are known.
    """
    run = saved.load_run(folder, cli.say, task="text")
    module, variables, classes = run.module, run.variables, run.symbols
    ids, unknown = _known(text, classes, "the text", skip_unknown)
    nats = next(found for found in generation.score(module, variables, ids, protocol) if found is not None)
    mean = float(np.mean(nats, dtype=np.float64))
    if not math.isfinite(mean):
        raise UserError(f"the model in {folder} scores this text with nan or inf: train it again")
    report = {
        "protocol": protocol,
        "characters": len(nats),
        "nats_per_character": mean,
        "bits_per_character": mean / math.log(2),
        "perplexity": math.exp(mean) if mean < 700 else math.inf,  # where exp overflows
        "unknown": [
            {"character": symbol, "count": len(positions), "first_position": positions[0]}
            for symbol, positions in unknown.items()
        ],
    }
    return report, list(zip(decode(ids, classes), [None, *nats.tolist()], strict=True))


def _known(
    text: str, classes: Sequence[str], what: str, skip: bool
) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Ids of the characters that `classes` has, and the positions of each of the others.

    Raises:
      UserError: there are others, and they are not to be skipped.
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
            + " (positions count from 0): leave them out"
            + ("" if what == "the stop text" else ", or pass --unknown=skip")
        )
    return ids, unknown


def _symbol_name(symbol: str) -> str:
    """A character for a message; one that would not stand alone, or not be seen, by its code point."""
    if symbol.isascii() or (symbol.isprintable() and not unicodedata.category(symbol).startswith("M")):
        return repr(symbol)
    return f"U+{ord(symbol):04X}"
