"""Compares the networks with the integers of conv_arithmetic, and tests that they can learn."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params
from ml_collections import ConfigDict

from hw import models
from hw.cli import UserError
from hw.models import resnet
from hw.ops.conv_arithmetic import trace
from hw.ops.layer_language import parse_layers
from hw.training import losses, optim

HWNET = {"widths": (64, 128, 256), "depth": 1, "norm_momentum": 0.6}


def _build(name, hwnet=HWNET, **kwargs):
    config = ConfigDict({"name": name, "dtype": "float32", "hwnet": hwnet})
    return models.build(config, num_outputs=10, platform="cpu", **kwargs)


def _variables(module, x):
    return jax.jit(partial(module.init, train=False))(jax.random.key(0), x)


def _stages(stem, blocks, widths):
    """Returns the words of a ResNet's main path, its projections with their inputs, and the last size."""
    main, projections, size, width_in = [stem], [], 32, widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            if stride == 2:
                projections.append(((size, size, width_in), f"conv{width}k1s2nobias"))
                size //= 2
            main += [f"conv{width}k3s{stride}p1nobias", f"conv{width}k3p1nobias"]
            width_in = width
    return main, projections, size


def _arithmetic(name):
    """Returns (parameters, multiply-adds) of a network, from its description in words."""
    if name == "hwnet":
        # A stage is conv, pool, conv. Norms have only a bias. The stem's kernel is not a parameter; it has
        # 12 filters, and we compute their responses with both signs.
        body = " ".join(f"conv{w}k3samenobias pool2 conv{w}k3samenobias" for w in HWNET["widths"])
        stem = trace((32, 32, 3), parse_layers("conv24k2nobias"))
        net = trace((31, 31, 24), parse_layers(body))
        head = trace((256,), parse_layers("dense10nobias"))
        params = net.total_params + 2 * sum(HWNET["widths"]) + head.total_params
        # Pooling leaves out an odd last row and column, so the convolution before it does not compute them.
        left_out = 0
        for report, following in zip(net.reports, net.reports[1:], strict=False):
            if following.macs == 0:
                side = report.output[0]
                left_out += report.macs - report.macs // side**2 * (side // 2 * 2) ** 2
        return params, stem.total_macs + net.total_macs - left_out + head.total_macs
    blocks, widths = (3, (16, 32, 64)) if name == "resnet20" else (2, (64, 128, 256, 512))
    main, projections, size = _stages(f"conv{widths[0]}k3p1nobias", blocks, widths)
    net = trace((32, 32, 3), parse_layers(" ".join(main)))
    assert net.reports[-1].output == (size, size, widths[-1])
    parts = [net, trace((widths[-1],), parse_layers("dense10"))]
    norms = sum(r.output[-1] for r in net.reports)
    if name == "resnet18":
        parts += [trace(shape, parse_layers(word)) for shape, word in projections]
        norms += sum(widths[1:])
    return sum(p.total_params for p in parts) + 2 * norms, sum(p.total_macs for p in parts)


def multiply_adds(jaxpr) -> int:
    """Counts the multiply-adds of the convolutions and matrix products in a program."""
    total = 0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval.shape
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            total += math.prod(out) * math.prod(kernel[:3])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += math.prod(out) * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        for inner in jaxprs_in_params(equation.params):
            total += multiply_adds(inner)
    return total


# These counts are known: He et al. 2015 table 6 (0.27 M); kuangliu/pytorch-cifar's ResNet18.
KNOWN = {"resnet20": 269_722, "resnet18": 11_173_962}


@pytest.mark.parametrize("name", ["hwnet", "resnet20", "resnet18"])
def test_parameters_and_arithmetic(name):
    module = _build(name, num_devices=2)
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), images)
    params, macs = _arithmetic(name)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert count == params
    assert count == KNOWN.get(name, count)
    program = jax.make_jaxpr(partial(module.apply, train=False))(variables, images)
    assert multiply_adds(program.jaxpr) == macs


def test_resnet18_multiply_adds_are_the_known_half_billion():
    assert _arithmetic("resnet18")[1] == pytest.approx(0.556e9, rel=0.005)


@pytest.mark.parametrize(("name", "size"), [("hwnet", 24), ("hwnet", 32), ("resnet20", 32)])
def test_logits_are_float32_and_statistics_move(name, size):
    module = models.build(
        ConfigDict(
            {"name": name, "dtype": "auto", "hwnet": {"widths": (8, 8, 16), "depth": 1, "norm_momentum": 0.6}}
        ),
        num_outputs=7,
        platform="tpu",  # computes in bfloat16
        num_devices=2,
    )
    x = jax.random.normal(jax.random.key(1), (4, size, size, 3))
    variables = _variables(module, x)
    if name == "hwnet":
        variables = module.fit_stem(variables, x)
    logits, updated = jax.jit(partial(module.apply, train=True, mutable=["batch_stats"]))(variables, x)
    chex.assert_shape(logits, (4, 7))
    chex.assert_type(logits, jnp.float32)
    chex.assert_tree_all_finite((logits, updated))
    assert module.dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables["params"]))
    before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updated["batch_stats"])
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


def test_basic_block_against_a_plain_restatement():
    # The block is in evaluation mode; the restatement has numpy loops for the convolutions.
    block = resnet.BasicBlock(8, 2, "pad", *_parts())
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 4)).astype(np.float32)
    variables = block.init(jax.random.key(0), x)
    out = np.asarray(block.apply(variables, x))
    kernels = [np.asarray(variables["params"][f"Conv_{i}"]["kernel"], np.float64) for i in range(2)]

    def conv(x, kernel, stride):
        x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        size = (x.shape[0] - 3) // stride + 1
        result = np.empty((size, size, kernel.shape[-1]))
        for i in range(size):
            for j in range(size):
                window = x[i * stride : i * stride + 3, j * stride : j * stride + 3]
                result[i, j] = np.tensordot(window, kernel, 3)
        return result

    norm = 1 / np.sqrt(1 + 1e-5)  # fresh statistics: mean 0, variance 1
    y = np.maximum(conv(x[0], kernels[0], 2) * norm, 0)
    y = conv(y, kernels[1], 1) * norm
    shortcut = np.zeros((3, 3, 8))
    shortcut[..., 2:6] = x[0, ::2, ::2]
    np.testing.assert_allclose(out[0], np.maximum(y + shortcut, 0), rtol=1e-4, atol=1e-5)


def _parts():
    conv = partial(resnet.Conv, chunked=False)
    return conv, partial(nn.BatchNorm, use_running_average=True, epsilon=1e-5)


def test_whitening_makes_patches_white():
    r = np.random.default_rng(0)
    # The images are smoothed noise with mixed channels, so they are correlated.
    noise = r.normal(size=(200, 12, 12, 3))
    images = noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2)
    images = jnp.array(images @ r.normal(size=(3, 3)), jnp.float32)
    kernel = resnet.whitening_kernel(images, epsilon=0.0)
    out = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    out = np.asarray(out, np.float64).reshape(-1, 12)
    np.testing.assert_allclose(out.T @ out / len(out), np.eye(12), atol=2e-3)


@pytest.mark.parametrize("gated", [False, True])
def test_hwnet_against_a_plain_restatement(gated):
    # The net is in evaluation mode; the restatement has flax's layers and a stem with both signs.
    module = _build("hwnet", HWNET | {"channel_gates": gated}, num_devices=2)
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = module.fit_stem(_variables(module, x), x)
    params = variables["params"]
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (256, 10))
    widths = np.repeat(HWNET["widths"], 2)
    matrices = [jax.random.normal(jax.random.key(i), (w, w)) for i, w in enumerate(widths)]
    for i in range(6) if gated else ():
        params[f"ChannelGates_{i}"]["Dense_0"]["kernel"] = matrices[i]

    def conv(x, kernel, padding):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=dims)

    def layer(x, i, pool=False):
        y = conv(x, params[f"Conv_{i}"]["kernel"], "SAME")
        y = nn.max_pool(y, (2, 2), (2, 2)) if pool else y
        y = nn.gelu(y / np.sqrt(1 + 1e-5))  # fresh statistics: mean 0, variance 1
        return y * 2 / (1 + jnp.exp(-y.mean((1, 2)) @ matrices[i]))[:, None, None] if gated else y

    stem = variables["constants"]["stem"]
    y = nn.gelu(conv(x, jnp.concatenate([stem, -stem], -1), "VALID"))
    for i in (0, 2, 4):
        y = layer(y, i, pool=True)
        y = y + layer(y, i + 1)
    logits = y.max((1, 2)) @ params["head"]["kernel"] / 16
    np.testing.assert_allclose(module.apply(variables, x, train=False), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "params"),
    # The net has 1,160,064. A learned stem adds 2×2×3×12, and scales add one for each of the 896 biases.
    [
        ({"stem": "learned"}, 1_160_208),
        ({"norm_scale": True}, 1_160_960),
        ({"pool": "last"}, 1_160_064),
        ({"residual": False}, 1_160_064),
        ({"identity": False}, 1_160_064),
        ({"depth": 0}, 385_472),
        ({"depth": 2}, 1_934_656),
        ({"channel_gates": True}, 1_160_064 + 2 * (64**2 + 128**2 + 256**2)),
    ],
)
def test_each_idea_can_be_taken_out(change, params):
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    outputs = []
    for arguments in (HWNET, HWNET | change):
        module = _build("hwnet", arguments, num_devices=2)
        variables = module.fit_stem(_variables(module, x), x)
        # The head starts at zero and scales at one, which would hide the change.
        variables["params"] = jax.tree.map(lambda p: p + 0.1 * (p.ndim < 4), variables["params"])
        outputs.append(module.apply(variables, x, train=False))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == params
    assert not np.allclose(*outputs, rtol=1e-3)


def _norm(train, scaled, axis_name=None):
    """Returns our normalisation with GELU, and its `apply`, which also returns the new statistics."""
    norm = resnet.BatchNormGELU(not train, momentum=0.6, use_scale=scaled, axis_name=axis_name)
    return norm, partial(norm.apply, mutable=["batch_stats"])


def _linen_norm(train, scaled):
    """Returns the same from linen's layer; `apply` adds the GELU."""
    norm = nn.BatchNorm(not train, momentum=0.6, use_scale=scaled)

    def apply(variables, x):
        y, updated = norm.apply(variables, x, mutable=["batch_stats"])
        return nn.gelu(y), updated

    return norm, apply


def _norm_variables(norm, x):
    """Returns the variables that `norm` makes, and some that are not the first ones."""
    made = norm.init(jax.random.key(0), x)
    r = np.random.default_rng(1)
    params = jax.tree.map(lambda a: a + jnp.asarray(r.normal(size=a.shape), a.dtype), made["params"])
    return made, {
        "params": params,
        "batch_stats": {"mean": jnp.arange(8.0) + 3, "var": jnp.arange(8.0) + 0.5},
    }


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_normalisation_has_linens_variables_and_results(train, scaled):
    x = 2 * jax.random.normal(jax.random.key(0), (8, 6, 6, 8)) + 1
    (ours, apply), (linens, linen_apply) = _norm(train, scaled), _linen_norm(train, scaled)
    (made, given), (expected, _) = (_norm_variables(norm, x) for norm in (ours, linens))
    chex.assert_trees_all_equal(made, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(made, expected)
    (y, updated), (linen_y, linen_updated) = apply(given, x), linen_apply(given, x)
    np.testing.assert_allclose(y, linen_y, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(updated, linen_updated, rtol=1e-6, atol=1e-6)
    moved = np.abs(updated["batch_stats"]["mean"] - given["batch_stats"]["mean"])
    assert (moved > 0.1).all() if train else (moved == 0).all()
    if train:

        def gradient(apply):
            return jax.grad(lambda params: jnp.sin(apply({**given, "params": params}, x)[0]).sum())

        ours, linens = gradient(apply)(given["params"]), gradient(linen_apply)(given["params"])
        chex.assert_trees_all_close(ours, linens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_normalisation_computes_in_float32_in_a_bfloat16_net(train):
    x = (jax.random.normal(jax.random.key(0), (8, 6, 6, 8)) + 1).astype(jnp.bfloat16)
    norm, apply = _norm(train, True)
    _, given = _norm_variables(norm, x)
    y, updated = apply(given, x)
    wide, linen_updated = _linen_norm(train, True)[1](given, x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), wide, rtol=2**-8, atol=1e-6)
    chex.assert_trees_all_close(updated, linen_updated, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("eight_devices")
def test_normalisation_averages_over_the_mapped_axis():
    x = 2 * jax.random.normal(jax.random.key(0), (16, 6, 6, 8)) + 1
    norm, apply = _norm(True, True, "batch")
    made, given = _norm_variables(norm, x)  # initialised outside the axis
    chex.assert_trees_all_equal(made["batch_stats"], {"mean": jnp.zeros(8), "var": jnp.ones(8)})
    y, updated = jax.pmap(apply, axis_name="batch", in_axes=(None, 0))(given, x.reshape(8, 2, 6, 6, 8))
    linen_y, linen_updated = _linen_norm(True, True)[1](given, x)
    np.testing.assert_allclose(y.reshape(x.shape), linen_y, rtol=1e-5, atol=1e-6)
    on_each = jax.tree.map(lambda a: jnp.broadcast_to(a, (8, *a.shape)), linen_updated)
    chex.assert_trees_all_close(updated, on_each, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_hwnets_normalisation_has_the_names_of_a_checkpoint(scaled):
    module = _build("hwnet", HWNET | {"norm_scale": scaled}, num_devices=2)
    x = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    variables = jax.eval_shape(partial(module.init, train=True), jax.random.key(0), x)
    parts = {"bias"} | ({"scale"} if scaled else set())
    for collection, names in (("params", parts), ("batch_stats", {"mean", "var"})):
        found = {k: set(v) for k, v in variables[collection].items() if k.startswith("BatchNorm")}
        assert found == {f"BatchNorm_{i}": names for i in range(6)}


def test_gates_start_open():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 6))
    gates = resnet.ChannelGates()
    np.testing.assert_array_equal(gates.apply(gates.init(jax.random.key(0), x), x), x)


def test_filters_start_as_copies():
    variables = _variables(_build("hwnet"), jnp.zeros((1, 32, 32, 3)))
    kernel = np.asarray(variables["params"]["Conv_0"]["kernel"])  # 24 -> 64
    copied = np.zeros((3, 3, 24, 24))
    copied[1, 1] = np.eye(24)
    np.testing.assert_array_equal(kernel[..., :24], copied)
    assert np.all(kernel[..., 24:].std(axis=(0, 1, 2)) > 0.01)


@pytest.mark.parametrize("name", ["hwnet", pytest.param("resnet20", marks=pytest.mark.slow)])
def test_overfits_one_batch(name):
    narrow = {"widths": (16, 16, 16), "depth": 1, "norm_momentum": 0.6}
    module = _build(name, narrow, num_devices=2)
    r = np.random.default_rng(0)
    x = jnp.array(r.normal(size=(20, 16, 16, 3)), jnp.float32)
    y = jnp.array(r.integers(0, 10, 20))
    variables = _variables(module, x)
    if name == "hwnet":
        variables = module.fit_stem(variables, x)
    rest = {k: v for k, v in variables.items() if k != "params"}
    tx = optim.of_standard_promotion(optax.adam({"hwnet": 0.05, "resnet20": 0.01}[name]))

    @jax.jit
    def step(params, opt_state):
        def objective(params):
            logits, _ = module.apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])
            return losses.cross_entropy(logits, y).mean(), logits

        (loss, logits), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss, (logits.argmax(-1) == y).mean()

    params, opt_state = variables["params"], tx.init(variables["params"])
    for _ in range(150):
        params, opt_state, loss, accuracy = step(params, opt_state)
        if accuracy == 1.0 and loss < 0.2:
            return
    raise AssertionError(f"after 150 steps: loss {loss}, accuracy {accuracy}")


@pytest.mark.parametrize("change", [{"name": "resnet19"}, {"dtype": "float16"}])
def test_unknown_models_and_types_are_named(change):
    config = ConfigDict({"name": "hwnet", "dtype": "auto", "hwnet": HWNET} | change)
    (message,) = change.values()
    with pytest.raises(UserError, match=message):
        models.build(config, num_outputs=10, platform="cpu")
