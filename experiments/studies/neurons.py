"""Finds hidden units of the released GRU that follow a feature of the text, by correlation.

    python -m experiments.studies.neurons [--model=gru | --workdir=DIR] [--characters=100000]
    python -m experiments.studies.neurons --draw

The model reads the validation text with its state carried. The study correlates each unit's activation h_t,
after character t, with features of the text at t. It chooses units on the first half of the text, and reports
their correlation on the held-out second half. The figure draws a passage of the second half with the
activations of the clearest units. The results are in `experiments/results/neurons/`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict

from experiments.study import RESULTS, measured, study_parser
from hw import cli, files
from hw.data.text import load_text
from hw.models.gru_lm import GRUCell
from hw.report import drawings, page
from hw.training import saved

STUDY = RESULTS / "neurons"
BLOCK = 1000  # characters read at a time
PASSAGES, SHOWN = 4, 300  # units that are drawn, and characters of text for each


def features(text: str) -> dict[str, np.ndarray]:
    """Returns the features that a unit may follow, each as a number at every character: [T].

    A speaker's name is a line that ends in a colon and begins the text or follows an empty line, as in
    input.txt. Its feature is 1 from the first letter to the colon.
    """
    length = len(text)
    chars = np.array(list(text))
    newline = chars == "\n"
    # A position counts the characters since the line began, from 0.
    starts = np.maximum.accumulate(np.where(np.insert(newline[:-1], 0, True), np.arange(length), 0))
    position = np.arange(length) - starts
    name, begin = np.zeros(length), 0
    for line in text.split("\n"):
        if line.endswith(":") and (begin == 0 or text[begin - 2 : begin] in ("\n\n", "\n")):
            name[begin : begin + len(line)] = 1
        begin += len(line) + 1
    letter = np.char.isalpha(chars)
    word = np.zeros(length)
    for t in range(1, length):
        word[t] = word[t - 1] + 1 if letter[t - 1] and letter[t] else 0
    return {
        "position in the line": np.minimum(position, 60).astype(float),
        "within a speaker's name": name,
        "a capital letter": np.char.isupper(chars).astype(float),
        "the end of a line": newline.astype(float),
        "a vowel": np.isin(np.char.lower(chars), list("aeiou")).astype(float),
        "a space": (chars == " ").astype(float),
        "position in the word": word * letter,
        "punctuation": np.isin(chars, list(".,;:!?'-")).astype(float),
    }


def activations(module: nn.Module, variables: VariableDict, ids: np.ndarray) -> np.ndarray:
    """Returns h_t of every unit of every layer, with the state carried: float32 [T, depth · width]."""

    def of_layer(owner: nn.Module, method: str) -> bool:
        return isinstance(owner, GRUCell) and method == "sequence"

    @jax.jit
    def read(inputs: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        (_, carry), state = module.apply(
            variables, inputs, carry, train=False, capture_intermediates=of_layer, mutable=["intermediates"]
        )
        kept: Mapping[str, Any] = state["intermediates"]
        layers = [kept[f"gru_{i}"]["sequence"][0][1][0] for i in range(module.depth)]
        return jnp.concatenate(layers, axis=-1), carry

    carry = module.initial_carry(1)
    blocks: list[np.ndarray] = []
    whole = len(ids) // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        hidden, carry = read(jnp.asarray(ids[None, start : start + BLOCK], jnp.int32), carry)
        blocks.append(np.asarray(hidden))
    return np.concatenate(blocks)


def correlations(units_tn: np.ndarray, feature_t: np.ndarray) -> np.ndarray:
    """Returns Pearson's correlation of every unit with a feature, [n]; 0 if one of the two is constant."""
    units = units_tn - units_tn.mean(0)
    feature = feature_t - feature_t.mean()
    size = np.linalg.norm(units, axis=0) * np.linalg.norm(feature)
    return np.divide(units.T @ feature, size, out=np.zeros(units.shape[1]), where=size > 0)


def find(text: str, units_tn: np.ndarray) -> dict[str, dict[str, Any]]:
    """Finds for each feature the unit that follows it best on the first half, and tests it on the second."""
    half = len(text) // 2
    found: dict[str, dict[str, Any]] = {}
    for name, feature in features(text).items():
        chosen = correlations(units_tn[:half], feature[:half])
        unit = int(np.argmax(np.abs(chosen)))
        held_out = correlations(units_tn[half:, unit : unit + 1], feature[half:])[0]
        found[name] = {
            "unit": unit,
            "correlation_chosen_on": float(chosen[unit]),
            "correlation_held_out": float(held_out),
        }
    return found


def passages(
    text: str, units_tn: np.ndarray, found: dict[str, dict[str, Any]], width: int
) -> list[dict[str, Any]]:
    """Returns the beginning of the text with the activations of the clearest features' units, to be drawn."""
    clearest = sorted(found, key=lambda name: -abs(found[name]["correlation_held_out"]))[:PASSAGES]
    shown = []
    for name in clearest:
        of = found[name]
        layer, unit = divmod(of["unit"], width)
        shown.append(
            {
                "title": f"{name}: layer {layer + 1}, unit {unit} (r = {of['correlation_held_out']:+.2f})",
                "text": text[:SHOWN],
                "values": [round(float(v), 2) for v in units_tn[:SHOWN, of["unit"]]],
            }
        )
    return shown


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the content of data.json for the chosen model and number of characters."""
    folder = options.workdir or saved.released(options.model)
    run = saved.load_run(folder, cli.say, task="text", needs=None)
    config, module, provenance = run.config, run.module, run.provenance
    if config.model.name != "gru_lm":
        raise cli.UserError(f"{folder} holds the model {config.model.name}: this study needs a gru_lm")
    dataset = load_text(config.data, cli.say)
    if options.characters < 2 * BLOCK:
        raise cli.UserError(f"--characters must be at least {2 * BLOCK}")
    ids = dataset.eval[: options.characters]
    units = activations(module, run.variables, ids)
    text = "".join(dataset.classes[i] for i in ids[: len(units)])
    found = find(text, units)
    width, half = module.width, len(text) // 2
    recipe = cli.sha256(cli.to_json(run.recipe))
    return {
        "model": {"config_sha256": recipe, "depth": module.depth, "width": width},
        "data": {k: provenance[k] for k in ("name", "source", "fingerprint")},
        "characters": len(text),
        "features": {
            name: {"layer": of["unit"] // width + 1, **of, "unit": of["unit"] % width}
            for name, of in found.items()
        },
        "passages": passages(text[half:], units[half:], found, width),
    }


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns its exit code."""
    parser = study_parser("neurons", __doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", choices=["gru"], default="gru", help="a released model")
    source.add_argument("--workdir", type=Path, help="folder of your own run")
    parser.add_argument(
        "--characters", type=int, default=100_000, help="of the validation text (default: 100000)"
    )
    options = parser.parse_args(argv)
    report = measured(STUDY, lambda: measure(options), draw=options.draw, indent=2)
    drawn = drawings.unit_on_text("units", report["passages"])
    files.write_atomic(STUDY / "figure.svg", page.standalone(drawn))
    print(f"{'feature':<26}{'layer':>6}{'unit':>6}{'r, chosen on':>14}{'r, held out':>13}")
    for name, of in report["features"].items():
        print(
            f"{name:<26}{of['layer']:>6}{of['unit']:>6}{of['correlation_chosen_on']:>+14.2f}"
            f"{of['correlation_held_out']:>+13.2f}"
        )
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
