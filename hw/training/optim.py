"""Builds the optax transformation of a recipe: SGD with Nesterov momentum, AdamW, or Muon with either."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from flax.typing import PathParts
from ml_collections import ConfigDict

from hw import fields

Array = jax.Array

# The quintic Newton–Schulz iteration applies p(s) = a s + b s³ + c s⁵ to singular values. Its steep slope at
# 0 brings all of them near 1 in a few steps. Source: Jordan et al. 2024, "Muon", section "Design".
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_STEPS_OF_A_GRAM = 3


def orthogonalize(matrix: Array, steps: int) -> Array:
    """Approximates U Vᵀ of `matrix` = U S Vᵀ: the nearest semi-orthogonal matrix.

    The iteration X ← X (a I + b G + c G²) with G = Xᵀ X starts from X = matrix / ‖matrix‖_F and takes `steps`
    steps. The singular values end between about 0.7 and 1.2, which is as good for an update as exactly 1.

    Each factor P = a I + b G + c G² is a polynomial of the first G. So all factors are symmetric and commute,
    and the next G is P G P. We multiply the small factors first and the tall X last. For the filters of
    `configs/resnet.py`, this takes half the time of multiplying X in every step. But the smallest singular
    values grow by `a` in each step, and so do the rounding errors of G, so that we compute G from X again
    after every third step.

    Args:
      matrix: [m, n].
      steps: Newton–Schulz iterations.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrix if matrix.shape[0] > matrix.shape[1] else matrix.T
    x = tall / (jnp.linalg.norm(tall) + 1e-7)
    eye = jnp.eye(x.shape[1], dtype=x.dtype)
    for start in range(0, steps, _STEPS_OF_A_GRAM):
        gram, product = x.T @ x, eye
        for step in range(start, min(steps, start + _STEPS_OF_A_GRAM)):
            factor = a * eye + b * gram + c * (gram @ gram)
            product = factor if step == start else product @ factor
            gram = factor @ gram @ factor
        x = x @ product
    return x if matrix.shape[0] > matrix.shape[1] else x.T


def scale_by_orthogonal_momentum(momentum: float, steps: int) -> optax.GradientTransformation:
    """Applies Nesterov momentum, then orthogonalises each filter bank [k, k, in, out] as [k·k·in, out]."""

    def orthogonal(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        return jax.tree.map(
            lambda u: orthogonalize(u.reshape(-1, u.shape[-1]), steps).reshape(u.shape), updates
        )

    return optax.chain(optax.trace(decay=momentum, nesterov=True), optax.stateless(orthogonal))


def scale_by_shape() -> optax.GradientTransformation:
    """Multiplies an orthogonalised [in, out] by √max(1, out / in), so that outputs move alike at any shape.

    Source: Jordan et al. 2024, "Muon", section "Empirical considerations" and the published code.
    """

    def scale(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        return jax.tree.map(lambda u: u * max(1.0, u.shape[-1] / u.shape[-2]) ** 0.5, updates)

    return optax.stateless(scale)


def unit_filters() -> optax.GradientTransformation:
    """Rescales a filter bank to Frobenius norm √out before each update: a mean squared norm of 1 per filter.

    Normalisation follows every filter. So the length of a filter does not change the output, and only
    divides its effective learning rate. This transformation must be the last of a chain.
    """

    def rescale(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        def one(update: Array, param: Array) -> Array:
            length = jnp.sqrt(param.shape[-1]) / (jnp.linalg.norm(param) + 1e-7)
            return update + (length - 1.0) * param

        return jax.tree.map(one, updates, params)

    return optax.stateless(rescale)


def of_standard_promotion(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Wraps `tx` to run under standard promotion: optax raises b1 and b2 to an integer power, the step."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(updates, state, params)

    return optax.GradientTransformation(tx.init, update)


def schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """Returns the factor on every learning rate at a step: linear warm-up to 1, then decay to `final`.

    Args:
      config: `schedule` ("linear", "cosine" or "constant"), `warmup` (fraction of all steps) and
        `final` (the factor at the last step).
      total_steps: the steps of the whole run.
    """
    warmup = round(config.warmup * total_steps)
    rest = max(1, total_steps - warmup)
    decays = {
        "linear": optax.linear_schedule(1.0, config.final, rest),
        "cosine": optax.cosine_decay_schedule(1.0, rest, alpha=config.final),
        "constant": optax.constant_schedule(1.0),
    }
    if not warmup:
        return decays[config.schedule]
    # The factor is (1 + step) / warmup, so that step 0 moves the parameters too.
    rise = optax.linear_schedule(1.0 / warmup, 1.0, max(1, warmup - 1))
    return optax.join_schedules([rise, decays[config.schedule]], [warmup])


def build(config: ConfigDict, total_steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Builds the optimiser that `config.optim` describes, and its learning rate as a function of step.

    "sgd" and "adamw" treat all parameters alike. "muon" has three groups, each with its learning rate. It
    orthogonalises the update of the filter banks (4 axes), with the numbers of `config.optim.muon`. SGD with
    Nesterov momentum moves the two other groups: the head with all other matrices, and biases and norms.
    "muon_adamw" orthogonalises the update of the matrices in a model's blocks, with the same numbers. AdamW
    moves embedding, head and norms.

    Args:
      config: `config.optim`; `hw.fields` lists the fields that each optimiser reads.
      total_steps: the steps of the whole run, for the schedule.

    Returns:
      (tx, the learning rate at a step). For "muon", this rate is that of the filters, and for "muon_adamw"
      that of the matrices.

    Raises:
      UserError: a field is missing or out of its range.
    """
    fields.check_part("optim", config)
    factor = schedule(config, total_steps)

    def scaled(learning_rate: float) -> optax.Schedule:
        # optax's cosine compares the step with a float, and strict promotion refuses that for an integer.
        return lambda step: learning_rate * factor(jnp.asarray(step, jnp.float32))

    def decayed(params: Mapping[str, Any]) -> Mapping[str, Any]:  # Biases and norms have no weight decay.
        return jax.tree.map(lambda p: p.ndim > 1, params)

    def sgd(learning_rate: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay, decayed),
            optax.sgd(scaled(learning_rate), config.momentum, nesterov=True),
        )

    def groups(params: Mapping[str, Any]) -> Mapping[str, Any]:
        def group(path: PathParts, param: Array) -> str:
            if param.ndim == 4:
                return "filters"
            return "head" if param.ndim == 2 or "head" in path else "rest"

        return traverse_util.path_aware_map(group, params)

    adamw = of_standard_promotion(
        optax.adamw(
            scaled(config.learning_rate),
            config.b1,
            config.b2,
            weight_decay=config.weight_decay,
            mask=decayed,
        )
    )
    if config.name == "sgd":
        tx, rate = sgd(config.learning_rate), config.learning_rate
    elif config.name == "adamw":
        tx, rate = adamw, config.learning_rate
    elif config.name == "muon":
        rate = config.muon.learning_rate
        filters = optax.chain(
            scale_by_orthogonal_momentum(config.muon.momentum, config.muon.newton_schulz_steps),
            optax.scale_by_learning_rate(scaled(rate)),
            unit_filters(),
        )
        tx = optax.multi_transform(
            {
                "filters": filters,
                "head": sgd(config.head_learning_rate),
                "rest": sgd(config.learning_rate),
            },
            groups,
        )
    else:
        rate = config.muon.learning_rate
        matrices = optax.chain(
            scale_by_orthogonal_momentum(config.muon.momentum, config.muon.newton_schulz_steps),
            scale_by_shape(),
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(scaled(rate)),
        )

        def blocks(params: Mapping[str, Any]) -> Mapping[str, Any]:
            def group(path: PathParts, param: Array) -> str:
                return "matrices" if "block" in str(path[0]) and param.ndim == 2 else "rest"

            return traverse_util.path_aware_map(group, params)

        tx = optax.multi_transform({"matrices": matrices, "rest": adamw}, blocks)
    if config.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
    return tx, scaled(rate)
