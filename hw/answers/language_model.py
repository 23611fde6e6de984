"""Answers question 5: a recurrent language model, described by the logs of its runs."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from hw import models
from hw.answers import notation
from hw.answers.claims import Answer, Claim, Step, Table
from hw.answers.notation import Line
from hw.answers.runs import Run, curves, over_seeds, provenance, shapes
from hw.ops import gru

_FIELDS = {
    "val_nats_cold256": "nats per character, windows of 256 from a state of zero",
    "val_nats_stateful": "nats per character, state carried throughout",
}


# These routes give the number of parameters. They share no code.


def params_by_log(run: Run) -> int:
    """Returns the number that the run logged."""
    return run.summary["params"]


def params_by_model(run: Run) -> int:
    """Computes the number from the shapes of the model, built again from its config."""
    return sum(math.prod(shape) for shape in _shapes(run).values())


def params_by_formula(run: Run) -> int:
    """Computes V m + Σ_l (3 n (i_l + n) + 4 n) + norms + V n + V, where layer l has i_l inputs.

    Here V is the vocabulary, m the embedding and n the width. Without an embedding m is 0 and i_1 is V.
    """
    net, symbols = run.config["model"]["gru_lm"], len(run.summary["dataset"]["vocabulary"])
    inputs = [net["embedding"] or symbols] + [net["width"]] * (net["depth"] - 1)
    n = net["width"]
    each = {"none": 0, "rms": 1, "layer": 2}[net["norm"]]
    normed = inputs if net["embedding"] else inputs[1:]
    norms = each * (n + (sum(normed) if net["norm_layers"] else 0))
    layers = sum(3 * n * (i + n) + 4 * n for i in inputs)
    return symbols * net["embedding"] + layers + norms + symbols * n + symbols


# These routes give the perplexity of a run in windows of 256 characters.


def perplexity_by_report(run: Run) -> float:
    """Returns the perplexity that the evaluation reports."""
    return run.evaluation["perplexity_cold256"]


def perplexity_by_nats(run: Run) -> float:
    """Computes exp of the nats per character in the last evaluation line of the metrics."""
    line = next(line for line in reversed(run.metrics) if line["split"] == "eval")
    return math.exp(line["loss"])


def perplexity_by_bits(run: Run) -> float:
    """Computes 2 to the power of the bits per character."""
    return 2.0 ** run.evaluation["bits_cold256"]


def _shapes(run: Run) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the model's parameters by their names, built again from the run's config."""
    config = ConfigDict(run.config)
    symbols = len(run.summary["dataset"]["vocabulary"])
    module = models.build(config.model, num_outputs=symbols, platform="cpu")
    inputs = np.zeros((1, 1), np.int32)
    variables = jax.eval_shape(lambda rng: module.init(rng, inputs, None, train=False), jax.random.key(0))
    return shapes(variables["params"])


def claims(runs: Sequence[Run]) -> tuple[Claim, ...]:
    """Returns claims for the number of parameters and every seed's perplexity."""
    found = []
    if runs[0].config["model"]["name"] == "gru_lm":
        routes = {"log": params_by_log, "model": params_by_model, "formula": params_by_formula}
        found.append(
            Claim("5.params", "parameters of the model", {k: partial(v, runs[0]) for k, v in routes.items()})
        )
    routes = {"report": perplexity_by_report, "nats": perplexity_by_nats, "bits": perplexity_by_bits}
    for run in runs:
        seed = run.summary["seed"]
        found.append(
            Claim(
                f"5.perplexity.{seed}",
                f"perplexity in windows of 256, seed {seed}",
                {k: partial(v, run) for k, v in routes.items()},
                tolerance=1e-9,
            )
        )
    return tuple(found)


def answer(runs: Sequence[Run]) -> Answer:
    """Returns the answer: the model, its loss in both protocols over all seeds, and its samples.

    Args:
      runs: runs of one recipe, one per seed; at least one.
    """
    rows = tuple((name, notation.times(shape), math.prod(shape)) for name, shape in _shapes(runs[0]).items())
    table = over_seeds(runs, _FIELDS)
    copied = tuple(
        (
            f"seed {run.summary['seed']}, temperature {of['temperature']}",
            of["longest"],
            of["share"],
            of["copy"],
        )
        for run in runs
        for of in run.evaluation["copied"]
    )
    figures: dict[str, Any] = {"loss": curves(runs, "loss"), "samples": runs[0].samples}
    return Answer(
        number=5,
        title="A GRU language model",
        question="Train a language model with a GRU on input.txt. Hand in the model and its samples.",
        answer=f"{table.rows[0][1]:.4f} nats per character in windows of 256, {table.rows[0][2]:.4f} with "
        f"the state carried; mean of {len(runs)} seed{'s' if len(runs) > 1 else ''}",
        steps=(
            Step(
                "The cell",
                "Two versions exist. Here, as in cuDNN and flax, the reset gate acts after the product with "
                "U_n. In the first paper (Cho et al. 2014) it acts before: n = tanh(W_n x + U_n (r ∘ h)).",
                [
                    Line(r"r_t = \sigma(W_r x_t + U_r h_{t-1} + b_r)"),
                    Line(r"z_t = \sigma(W_z x_t + U_z h_{t-1} + b_z)"),
                    Line(r"n_t = \tanh(W_n x_t + b_n + r_t \circ (U_n h_{t-1} + c))"),
                    Line(r"h_t = (1 - z_t) \circ n_t + z_t \circ h_{t-1}"),
                ],
                code=gru.step,
            ),
            Step(
                "The gradient",
                "The backward pass is written by hand: backpropagation through time. The gradient of each "
                "weight is one product after the loop.",
                code=gru.bptt,
            ),
            Step("The model", "", table=Table("Its parameters", ("name", "shape", "number"), rows)),
            Step(
                "Its loss",
                "The split is nanoGPT's: the first 90 % of the text for training, the rest for validation. "
                "Every validation character except the first is a target exactly once.",
                table=table,
            ),
            Step(
                "Does it copy?",
                "The table shows the longest part of each sample that occurs in the training text, and the "
                "share of the sample's 20-character sequences that occur there.",
                table=Table(
                    "Copies", ("sample", "longest, characters", "share of 20-grams", "the copy"), copied
                ),
            ),
            Step("The logs", table=provenance(runs)),
        ),
        why="h_t is a mean of h_{t-1} and a candidate. If z is near 1, the state and its gradient pass "
        "almost unchanged. A plain tanh cell lacks such a path (question 4).",
        claims=claims(runs),
        figures=figures,
    )
