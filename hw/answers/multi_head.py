"""Answers question 7: the dimensions of every matrix in multi-head attention, one head in full, and W^O."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from hw.answers import notation
from hw.answers.claims import Answer, Claim, Step, Table, claims_of
from hw.answers.notation import Line
from hw.cli import UserError
from hw.ops import attention as ops

_MAX_SIZE = 100_000  # of any dimension: a larger one is a typing error
_MAX_EXAMPLE = 100_000  # numbers of the largest matrix of an example


class Problem(NamedTuple):
    """A problem has sizes: n_q queries, n_k keys, d_model, heads, and d_k and d_v of a head."""

    n_q: int
    n_k: int
    d_model: int
    heads: int
    d_k: int
    d_v: int


def problem(
    *,
    seq: int,
    d_model: int,
    heads: int,
    d_k: int | None = None,
    d_v: int | None = None,
    seq_kv: int | None = None,
) -> Problem:
    """Returns sizes with their usual defaults: d_k = d_v = d_model/heads, and as many keys as queries.

    Raises:
      UserError: a size is below 1 or too large, or heads do not divide d_model and d_k or d_v is not given.
    """
    given = {"seq": seq, "d_model": d_model, "heads": heads, "d_k": d_k, "d_v": d_v, "seq_kv": seq_kv}
    for name, value in given.items():
        if value is not None and not 1 <= value <= _MAX_SIZE:
            raise UserError(f"--{name}={value} must be from 1 to {_MAX_SIZE}")
    if None in (d_k, d_v) and d_model % heads:
        raise UserError(f"--heads={heads} does not divide --d_model={d_model}: give --d_k and --d_v")
    share = d_model // heads
    return Problem(seq, seq_kv or seq, d_model, heads, d_k or share, d_v or share)


SHEET = problem(seq=4, d_model=8, heads=2)


# A route in `ROUTES` is a function of sizes that returns "shapes" (the ledger's pairs, in its order) and
# "params" (without and with biases). A route in `OUTPUT_ROUTES` is a function of an example (inputs and
# weights as in `_example_shapes`) that returns its "output". Routes share no code.


def by_ledger(sizes: Problem) -> dict[str, Any]:
    """Computes the results by the ledger of `hw.ops.attention`."""
    each = sizes._asdict()
    counts = {name: each[name] for name in ("heads", "d_model", "d_k", "d_v")}
    return {
        "shapes": [list(shape) for shape in ops.multi_head_shapes(**each).values()],
        "params": list(ops.multi_head_params(**counts).values()),
    }


def output_by_ops(example: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Computes the output by the fused products of `hw.ops.attention`."""
    with jax.enable_x64(True):
        x, memory, *weights = map(jnp.asarray, example)
        return {"output": np.asarray(ops.multi_head_attention(ops.MultiHeadParams(*weights), x, memory))}


def by_loop(sizes: Problem) -> dict[str, Any]:
    """Computes the results by running one head after the other in numpy on zeros."""
    return output_by_loop([np.zeros(shape) for shape in _example_shapes(sizes)])


def _example_shapes(sizes: Problem) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes of both inputs, W_Q, W_K, W_V and W_O; the heads have a separate axis."""
    n_q, n_k, m, h, d, e = sizes
    return (n_q, m), (n_k, m), (m, h, d), (m, h, d), (m, h, e), (h, e, m)


def output_by_loop(example: Sequence[np.ndarray]) -> dict[str, Any]:
    """Computes the output head by head in numpy, and records the shapes and counts the parameters."""
    x, memory, w_q, w_k, w_v, w_o = example
    (m, h, d), e = w_q.shape, w_v.shape[2]
    w_o = w_o.reshape(-1, m)
    seen, heads = list[np.ndarray](), list[np.ndarray]()
    for i in range(h):
        q, k, v = x @ w_q[:, i], memory @ w_k[:, i], memory @ w_v[:, i]
        z = q @ k.T / np.sqrt(q.shape[1])
        a = np.exp(z - z.max(1, keepdims=True))
        heads.append(a / a.sum(1, keepdims=True) @ v)
        seen = [w_q[:, i], w_k[:, i], w_v[:, i], q, k, v, z, heads[-1]]
    concat = np.concatenate(heads, axis=1)
    output = concat @ w_o
    weights = w_q.size + w_k.size + w_v.size + w_o.size
    return {
        "shapes": [list(array.shape) for array in (*seen, concat, w_o, output)],
        "params": [weights, weights + h * (2 * d + e) + output.shape[1]],
        "output": output,
    }


class _Flax(nn.Module):
    """Builds multi-head attention from flax's layers; returns the first head's arrays and the output."""

    heads: int
    d_k: int
    d_v: int
    bias: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array) -> tuple[jax.Array, ...]:
        project = [
            nn.DenseGeneral((self.heads, size), use_bias=self.bias, name=name, dtype=self.dtype)
            for name, size in (("q", self.d_k), ("k", self.d_k), ("v", self.d_v))
        ]
        q, k, v = (layer(y) for layer, y in zip(project, (x, memory, memory), strict=True))
        weights = nn.dot_product_attention_weights(q, k, dtype=self.dtype)
        head = jnp.einsum("hts,she->the", weights, v)
        back = nn.DenseGeneral(x.shape[1], axis=(-2, -1), use_bias=self.bias, name="o", dtype=self.dtype)
        return q[:, 0], k[:, 0], v[:, 0], weights[0], head[:, 0], head.reshape(len(x), -1), back(head)


def output_by_flax(example: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Computes the output by flax's layers."""
    with jax.enable_x64(True):
        x, memory, *weights = map(jnp.asarray, example)
        _, heads, d_k = weights[0].shape
        net = _Flax(heads, d_k, weights[2].shape[2], dtype=jnp.float64)
        params = {name: {"kernel": w} for name, w in zip("qkvo", weights, strict=True)}
        return {"output": np.asarray(net.apply({"params": params}, x, memory)[-1])}


def by_flax(sizes: Problem) -> dict[str, Any]:
    """Computes the results from the traced shapes of flax's layers and their parameters."""
    n_q, n_k, m, h, d, e = sizes
    x, memory = (jax.ShapeDtypeStruct((n, m), jnp.float32) for n in (n_q, n_k))
    found = []
    for bias in (False, True):
        outputs, variables = jax.eval_shape(
            lambda x, y, bias=bias: _Flax(h, d, e, bias).init_with_output(jax.random.key(0), x, y), x, memory
        )
        found.append((outputs, variables["params"]))
    (q, k, v, z, head, concat, out), params = found[0]
    matrices = [(m, params[name]["kernel"].shape[-1]) for name in "qkv"]
    w_o = params["o"]["kernel"].shape
    shapes = [*matrices, q.shape, k.shape, v.shape, z.shape, head.shape, concat.shape]
    return {
        "shapes": [list(shape) for shape in (*shapes, (w_o[0] * w_o[1], w_o[2]), out.shape)],
        "params": [sum(leaf.size for leaf in jax.tree.leaves(params)) for _, params in found],
    }


ROUTES: dict[str, Callable[[Problem], Mapping[str, Any]]] = {
    "ledger": by_ledger,
    "loop over heads": by_loop,
    "flax": by_flax,
}
OUTPUT_ROUTES: dict[str, Callable[[Sequence[np.ndarray]], Mapping[str, Any]]] = {
    "ledger": output_by_ops,
    "loop over heads": output_by_loop,
    "flax": output_by_flax,
}


def claims(sizes: Problem = SHEET) -> tuple[Claim, ...]:
    """Returns claims for shapes, parameters, and the output of an example drawn from a seed.

    There is no example for large sizes, whose weights would fill the memory.
    """
    titles = {"shapes": "dimensions of every matrix", "params": "parameters, without and with biases"}
    counted = claims_of(7, titles, ROUTES, sizes)
    if max(sizes.n_q, sizes.n_k, sizes.heads * (2 * sizes.d_k + sizes.d_v)) * sizes.d_model > _MAX_EXAMPLE:
        return counted
    r = np.random.default_rng(0)
    example = [r.normal(size=shape) for shape in _example_shapes(sizes)]
    titles = {"output": "output of an example: fused, head by head, and by flax"}
    return (*counted, *claims_of(7, titles, OUTPUT_ROUTES, example, tolerance=1e-9))


def result(sizes: Problem) -> dict[str, Any]:
    """Returns the results for `hw.solve multihead --json`."""
    each = sizes._asdict()
    counts = {name: each[name] for name in ("heads", "d_model", "d_k", "d_v")}
    return {"shapes": ops.multi_head_shapes(**each), "params": ops.multi_head_params(**counts)}


# The working.

_MEANING = {
    "W_Q": "W_i^Q, projects the queries of head i",
    "W_K": "W_i^K, projects its keys",
    "W_V": "W_i^V, projects its values",
    "Q_head": "Q W_i^Q",
    "K_head": "K W_i^K",
    "V_head": "V W_i^V",
    "scores": "(Q W_i^Q)(K W_i^K)ᵀ/√d_k, and the weights",
    "head": "head_i = weights · V W_i^V",
    "concat": "C = Concat(head_1, …, head_h)",
    "W_O": "W^O, mixes the heads",
    "output": "C W^O",
}


def _formula(name: str, sizes: Problem) -> str:
    symbols = {
        "W_Q": "d_model × d_k",
        "W_K": "d_model × d_k",
        "W_V": "d_model × d_v",
        "Q_head": "(n_q × d_model)(d_model × d_k)",
        "K_head": "(n_k × d_model)(d_model × d_k)",
        "V_head": "(n_k × d_model)(d_model × d_v)",
        "scores": "(n_q × d_k)(d_k × n_k)",
        "head": "(n_q × n_k)(n_k × d_v)",
        "concat": "n_q × h·d_v",
        "W_O": "h·d_v × d_model",
        "output": "(n_q × h·d_v)(h·d_v × d_model)",
    }
    return symbols[name]


def _head_line(s: Problem) -> Line:
    def size(a: int, b: int) -> str:
        return rf"_{{{a} \times {b}}}"

    return Line(
        rf"\underbrace{{\text{{head}}_i}}{size(s.n_q, s.d_v)} = \underbrace{{\operatorname{{softmax}}\left("
        rf"\frac{{(\overbrace{{Q}}^{{{s.n_q} \times {s.d_model}}} W_i^Q)(K W_i^K)^\top}}{{\sqrt{{{s.d_k}}}}}"
        rf"\right)}}{size(s.n_q, s.n_k)} \underbrace{{V W_i^V}}{size(s.n_k, s.d_v)}"
    )


def answer(sizes: Problem = SHEET) -> Answer:
    """Returns the answer: the ledger, one head in full, and the parameters."""
    ledger = ops.multi_head_shapes(**sizes._asdict())
    params = ops.multi_head_params(heads=sizes.heads, d_model=sizes.d_model, d_k=sizes.d_k, d_v=sizes.d_v)
    rows = tuple(
        (name, notation.times(shape), _formula(name, sizes), _MEANING[name]) for name, shape in ledger.items()
    )
    h, m, d, e = sizes.heads, sizes.d_model, sizes.d_k, sizes.d_v
    same = sizes.heads * sizes.d_v == sizes.d_model
    return Answer(
        number=7,
        title="Multi-head attention, dimension by dimension",
        question="Give the dimensions of W_i^Q, W_i^K, W_i^V and W^O. Explain how the concatenated heads "
        "give an output with the input's dimensions. Write one head in full.",
        answer=f"W_i^Q, W_i^K: {notation.times(ledger['W_Q'])}; W_i^V: {notation.times(ledger['W_V'])}; "
        f"W^O: {notation.times(ledger['W_O'])}",
        steps=(
            Step(
                "The ledger",
                "A product sums over the inner dimension and keeps the outer ones.",
                table=Table("Every matrix", ("matrix", "size", "from", "what it is"), rows),
                code=ops.multi_head_shapes,
            ),
            Step("One head in full", "", [_head_line(sizes)], code=ops.multi_head_attention),
            Step(
                "From the concatenation to the output",
                f"C is {notation.times(ledger['concat'])}; C W^O is {notation.times(ledger['output'])}. "
                + (
                    "C already has the input's dimensions, because h·d_v = d_model: W^O only mixes the "
                    "heads. Without it, each head would fill separate output columns, and the heads could "
                    "not be combined."
                    if same
                    else "Here h·d_v is not d_model: W^O restores the dimensions and mixes the heads."
                ),
                [Line(r"O = C W^O", note=f": {notation.times(ledger['output'])}")],
            ),
            Step(
                "Parameters",
                "The sheet's formula has no biases, but many implementations give each projection a bias. "
                "Here are both counts:",
                [
                    Line(
                        rf"{h} \cdot {m} \cdot ({d} + {d} + {e}) + {h} \cdot {e} \cdot {m} = "
                        rf"{params['without_bias']}",
                        label="without: ",
                    ),
                    Line(
                        rf"{params['without_bias']} + {h} \cdot ({d} + {d} + {e}) + {m} "
                        rf"= {params['with_bias']}",
                        label="with: ",
                    ),
                ],
                code=ops.multi_head_params,
            ),
        ),
        why="Each of the h heads works in a separate space of d_model/h dimensions, so all heads together "
        "cost about as much as one head of full size.",
        claims=claims(sizes),
        figures={"ledger": {name: list(shape) for name, shape in ledger.items()}},
    )
