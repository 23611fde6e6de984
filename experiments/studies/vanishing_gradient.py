"""Measures how far a gradient reaches back: ‖∂L/∂h_t‖ over 100 steps, plain RNN and GRU, by spectral radius.

    python -m experiments.studies.vanishing_gradient [--draw]

This study measures question 4(b). L = c·h_T with a random c, so the gradient at h_t has passed through T − t
Jacobians. The recurrent weights have one of five spectral radii, with ten seeds each. The study measures the
tanh RNN by its hand-derived backward pass, the same RNN without tanh (the linear case), and the bound
Π max(1 − h²) · σ_max^(T−t). It also measures a GRU of the same size whose three recurrent matrices have that
radius. With biases of zero, its update gate forgets half of the state at every step. With an update bias of
3, it keeps about 95 %. So a GRU can carry a gradient far, but its biases must be set or learned. The results
are in `experiments/results/vanishing_gradient/`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.study import RESULTS, measured, study_parser
from hw import cli, files, plotting
from hw.ops import rnn
from hw.plotting import Curve
from hw.report.figures import KINDS

if TYPE_CHECKING:  # matplotlib is imported only to draw: see `hw.plotting`
    from matplotlib.axes import Axes

STUDY = RESULTS / "vanishing_gradient"
STEPS, HIDDEN, INPUTS, SEEDS = 100, 64, 16, 10
RADII = (0.5, 0.9, 1.0, 1.1, 1.5)
_KEEPING_BIAS = 3.0


def with_radius(r: np.random.Generator, size: int, radius: float) -> np.ndarray:
    """Draws a matrix of independent Gaussian entries, scaled to the spectral radius; it is non-normal."""
    matrix = r.normal(size=(size, size))
    return matrix * radius / np.abs(np.linalg.eigvals(matrix)).max()


def gru_state(
    weights: dict[str, jax.Array], x_ti: jax.Array, bumps_tn: jax.Array, update_bias: float
) -> jax.Array:
    """Computes h_T of a GRU; bumps_tn[t] is added to each h_t, so that the bumps' gradient is ∂L/∂h_t.

    r = σ(W_r x + U_r h), z = σ(W_z x + U_z h + b_z), n = tanh(W_n x + r ∘ (U_n h)), h ← (1 − z) ∘ n + z ∘ h

    Source: Cho et al. 2014, with the reset after the product, as in cuDNN and PyTorch.
    """

    def step(h_n: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x_i, bump_n = now
        r_n, z_n = (
            jax.nn.sigmoid(weights["w" + gate] @ x_i + weights["u" + gate] @ h_n + bias)
            for gate, bias in (("r", 0.0), ("z", update_bias))
        )
        new_n = jnp.tanh(weights["wn"] @ x_i + r_n * (weights["un"] @ h_n))
        return (1 - z_n) * new_n + z_n * h_n + bump_n, None

    h_n, _ = lax.scan(step, jnp.zeros(bumps_tn.shape[1]), (x_ti, bumps_tn))
    return h_n


@jax.jit
def _rnn_norms(
    whh_nk: jax.Array, wxh_ni: jax.Array, x_ti: jax.Array, c_n: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (‖∂L/∂h_t‖, the linear case, the bound), each [T]."""
    size = len(whh_nk)
    params = rnn.RNNParams(wxh_ni, whh_nk, c_n[None], jnp.zeros(size), jnp.zeros(1))
    h_tn, _ = rnn.forward(params, x_ti)
    dy_to = jnp.zeros((STEPS, 1)).at[-1].set(1.0)
    norms_t = jnp.linalg.norm(rnn.bptt(params, x_ti, h_tn, dy_to).dh_tn, axis=1)

    def back(g_n: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return whh_nk.T @ g_n, jnp.linalg.norm(g_n)

    _, linear_t = lax.scan(back, c_n, None, length=STEPS)
    slopes_t = jnp.max(1 - h_tn**2, axis=1) * jnp.linalg.norm(whh_nk, 2)
    # The gradient passes from T back to t through the factors of t+1 … T.
    products_t = jnp.cumprod(slopes_t[::-1])[::-1]
    bound_t = jnp.concatenate([products_t[1:], jnp.ones(1)]) * jnp.linalg.norm(c_n)
    return norms_t, linear_t[::-1], bound_t


@jax.jit
def _gru_norms(
    weights: dict[str, jax.Array], x_ti: jax.Array, c_n: jax.Array, update_bias: float
) -> jax.Array:
    bumps_tn = jnp.zeros((STEPS, len(c_n)))
    grads_tn = jax.grad(lambda bumps: c_n @ gru_state(weights, x_ti, bumps, update_bias))(bumps_tn)
    return jnp.linalg.norm(grads_tn, axis=1)


def measure(radius: float, seed: int) -> dict[str, np.ndarray]:
    """Measures one radius and seed; returns the norms of every kind at the times 1 … T, in float64."""
    r = np.random.default_rng(seed)
    whh_nk = with_radius(r, HIDDEN, radius)
    wxh_ni = r.normal(size=(HIDDEN, INPUTS)) / np.sqrt(INPUTS)
    x_ti, c_n = r.normal(size=(STEPS, INPUTS)), r.normal(size=HIDDEN) / np.sqrt(HIDDEN)
    gru = {"u" + gate: with_radius(r, HIDDEN, radius) for gate in "rzn"}
    gru |= {"w" + gate: r.normal(size=(HIDDEN, INPUTS)) / np.sqrt(INPUTS) for gate in "rzn"}
    with jax.enable_x64(True):
        plain, linear, bound = _rnn_norms(*map(jnp.asarray, (whh_nk, wxh_ni, x_ti, c_n)))
        gru, x_ti, c_n = jax.tree.map(jnp.asarray, (gru, x_ti, c_n))
        gated, keeping = (_gru_norms(gru, x_ti, c_n, bias) for bias in (0.0, _KEEPING_BIAS))
    found = {"rnn": plain, "linear": linear, "bound": bound, "gru": gated, "gru_keeps": keeping}
    return jax.device_get(found)


def summary(values: np.ndarray) -> dict[str, list[float]]:
    """Returns the seeds' geometric mean, lowest and highest value at every time. values: [seeds, T]."""
    logs = np.log10(values)
    return {
        "mean": (10 ** logs.mean(0)).tolist(),
        "low": values.min(0).tolist(),
        "high": values.max(0).tolist(),
    }


def panel(radii: Mapping[str, Mapping[str, Any]], kind: str) -> plotting.Draw:
    """Draws the norms of a kind against the time, with a curve for each radius, in the band of its seeds.

    Args:
      radii: from data.json.
      kind: one of KINDS.
    """
    back = np.arange(STEPS - 1, -1, -1)
    curves = [
        Curve(f"radius {radius}", back, found["mean"], (found["low"], found["high"]))
        for radius, found in ((radius, kinds[kind]) for radius, kinds in radii.items())
    ]

    def draw(axes: "Axes") -> None:
        first = kind == next(iter(KINDS))  # its legend and label hold for the whole row of panels
        labels = ("steps back, T − t", "‖∂L/∂h_t‖" if first else "")
        plotting.lines(curves, labels, title=KINDS[kind], log_y=True, legend=first)(axes)
        axes.set_ylim(1e-20, 1e20)

    return draw


def all_radii() -> dict[str, Any]:
    """Returns the content of data.json."""
    radii = {}
    for radius in RADII:
        runs = [measure(radius, seed) for seed in range(SEEDS)]
        radii[str(radius)] = {k: summary(np.array([run[k] for run in runs])) for k in KINDS}
    sizes = {"steps": STEPS, "hidden": HIDDEN, "inputs": INPUTS, "seeds": SEEDS}
    return {"sizes": sizes, "radii": radii}


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns its exit code."""
    options = study_parser("vanishing_gradient", __doc__).parse_args(argv)
    radii = measured(STUDY, all_radii, draw=options.draw)["radii"]
    panels = [panel(radii, kind) for kind in KINDS]
    files.write_atomic(STUDY / "figure.svg", plotting.svg(panels, (16, 3.6)))
    print(f"{'radius':>6}  " + "  ".join(f"{title:>18}" for title in KINDS.values()) + "   ‖∂L/∂h_1‖")
    for radius, kinds in radii.items():
        print(f"{radius:>6}  " + "  ".join(f"{kinds[k]['mean'][0]:>18.2e}" for k in KINDS))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
