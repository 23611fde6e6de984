"""Question 9: the parameters of a GRU layer, added by tests/test_contributing.py."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from hw.answers.claims import Answer, Claim, Step
from hw.answers.notation import Line

INPUTS, HIDDEN = 3, 5


def by_formula() -> int:
    """Returns 3 (i n + n² + n) + n: three gates with a bias each, and the bias that the reset gate shuts."""
    return 3 * (INPUTS * HIDDEN + HIDDEN**2 + HIDDEN) + HIDDEN


def by_counting() -> int:
    """Counts the arrows of a drawn layer one by one."""
    arrows = 0
    for _gate in ("reset", "update", "candidate"):
        for _unit in range(HIDDEN):
            arrows += sum(1 for _source in (*range(INPUTS), *range(HIDDEN), "bias"))
    return arrows + sum(1 for _unit in range(HIDDEN))


def by_flax() -> int:
    """Counts the parameters of flax's layer."""
    state, inputs = jnp.zeros((1, HIDDEN)), jnp.zeros((1, INPUTS))
    made = jax.eval_shape(nn.GRUCell(HIDDEN).init, jax.random.key(0), state, inputs)
    return sum(x.size for x in jax.tree.leaves(made))


def claims() -> tuple[Claim, ...]:
    """Returns the result by every route."""
    routes = {"closed form": by_formula, "counted": by_counting, "flax": by_flax}
    return (Claim("9.params", "parameters of a GRU layer", routes),)


def answer() -> Answer:
    """Returns the whole working."""
    total = by_formula()
    tex = rf"3 \cdot ({INPUTS} \cdot {HIDDEN} + {HIDDEN}^2 + {HIDDEN}) + {HIDDEN} = {total}"
    return Answer(
        number=9,
        title="The parameters of a GRU layer",
        question=f"How many parameters has a GRU layer of {HIDDEN} units that reads {INPUTS} numbers?",
        answer=f"{total} parameters",
        steps=(Step("Three gates, and one more bias", lines=(Line(tex),), code=by_formula),),
        why="Each gate reads the input and the state; the reset gate shuts one more bias.",
        claims=claims(),
    )
