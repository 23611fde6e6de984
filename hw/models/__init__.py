"""Models by name: `build(config.model, …)` turns a recipe's words into a linen module."""

import inspect
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from hw import fields, hardware, schema
from hw.models import attention_lm, gru_lm, recall_net, resnet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "attention_lm": attention_lm.AttentionLM,
    "gru_lm": gru_lm.GRULM,
    "hwnet": resnet.HWNet,
    "recall_net": recall_net.RecallNet,
    "resnet18": resnet.resnet18,
    "resnet20": resnet.resnet20,
}

# What a model may compute in. Parameters, optimiser state, statistics, softmax and losses are float32 anyway.
DTYPES = ("float32", "bfloat16")
# Whether "auto" takes bfloat16 on the CPUs where it makes products faster. Not yet: in bfloat16 convolutions
# are XLA's own (`hw.ops.convolution`), whose gradients are slow, and a run of configs/resnet.py:quick spent
# 660 s in its steps against 362 s in float32 (AMD EPYC with avx512_bf16, jax 0.12, the same hour; issue 20).
BFLOAT16_PAYS_ON_CPU = False


def _declared(name: str) -> dict[str, inspect.Parameter]:
    """The arguments that a model declares."""
    return dict(inspect.signature(MODELS[name]).parameters)


def arguments(name: str) -> dict[str, inspect.Parameter]:
    """The arguments that a recipe gives a model under `config.model.NAME`, with their defaults."""
    declared = _declared(name)
    return {field: declared[field] for field in fields.MODELS[name]}


def dtype_of(dtype: str, platform: str, processor: hardware.Processor) -> str:
    """What a recipe's `config.model.dtype` means on some hardware: "float32" or "bfloat16".

    "auto" is bfloat16 on GPU and TPU, and on CPUs float32 as long as `BFLOAT16_PAYS_ON_CPU` says so, then
    bfloat16 on those whose instruction sets make it faster. Nothing is timed, so that the numbers of a run
    depend on its hardware alone.

    Args:
      dtype: "auto", "float32" or "bfloat16".
      platform: of the devices that will run it: "cpu", "gpu" or "tpu".
      processor: of this machine; it counts on "cpu" alone.
    """
    if dtype != "auto":
        return dtype
    fast = platform != "cpu" or (BFLOAT16_PAYS_ON_CPU and hardware.fast_bfloat16(processor))
    return "bfloat16" if fast else "float32"


def build(
    config: ConfigDict,
    *,
    num_outputs: int,
    platform: str,
    num_devices: int = 1,
    axis_name: str | None = None,
) -> nn.Module:
    """Builds the module that `config.model` describes.

    Args:
      config: `name`; `dtype` (see `dtype_of`); `batch_norm`,
        where a model has any: "synchronised", or "per-device", by the statistics of each device's share;
        and, under the model's own name, the arguments that only this model has.
      num_outputs: classes, or symbols of the vocabulary.
      platform: the platform of the devices that will run it: "cpu", "gpu" or "tpu".
      num_devices: how many devices share a batch.
      axis_name: the mapped axis over which batch statistics are averaged (pmap only: under jit the
        batch is one global array and its statistics are global already).

    Raises:
      UserError: the model, its dtype or one of its arguments does not exist, or is out of its range.
    """
    fields.check_part("model", config)
    declared, own = _declared(config.name), dict(config.get(config.name) or {})
    for name, parameter in arguments(config.name).items():
        if parameter.default is parameter.empty:
            schema.require(own, name, name=f"config.model.{config.name}")
    offered = {
        "num_classes": num_outputs,
        "vocab_size": num_outputs,
        "dtype": jnp.dtype(dtype_of(config.dtype, platform, hardware.processor())),
        "axis_name": None if config.get("batch_norm") == "per-device" else axis_name,
        "sharded": num_devices > 1,
    }
    given = {name: value for name, value in offered.items() if name in declared}
    return MODELS[config.name](**own, **given)
