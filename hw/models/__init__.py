"""Models by name: `build(config.model, …)` turns a recipe's words into a linen module."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from hw import hardware
from hw.cli import UserError
from hw.models import attention_lm, gru_lm, recall_net, resnet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "attention_lm": attention_lm.attention_lm,
    "gru_lm": gru_lm.gru_lm,
    "hwnet": resnet.hwnet,
    "recall_net": recall_net.recall_net,
    "resnet18": resnet.resnet18,
    "resnet20": resnet.resnet20,
}

# What a recipe may set of each under its own name; the field's own nets have nothing to set.
_ARGUMENTS_OF = {
    "attention_lm": attention_lm.AttentionLM,
    "gru_lm": gru_lm.GRULM,
    "hwnet": resnet.HWNet,
    "recall_net": recall_net.RecallNet,
}
# What `build` itself gives a module, and what flax adds.
_GIVEN = {"num_classes", "vocab_size", "dtype", "axis_name", "chunked", "flat", "parent", "name"}

# What a model may compute in. Parameters, optimiser state, statistics, softmax and losses are float32 anyway.
DTYPES = ("float32", "bfloat16")
# Whether "auto" takes bfloat16 on the CPUs where it makes products faster. Not yet: in bfloat16 convolutions
# are XLA's own (`hw.ops.convolution`), whose gradients are slow, and a run of configs/resnet.py:quick spent
# 660 s in its steps against 362 s in float32 (AMD EPYC with avx512_bf16, jax 0.12, the same hour; issue 20).
BFLOAT16_PAYS_ON_CPU = False

# Which of them a task can be given to.
OF_TASK = {
    "images": ("hwnet", "resnet18", "resnet20"),
    "recall": ("recall_net",),
    "text": ("attention_lm", "gru_lm"),
}


def arguments(name: str) -> dict[str, dataclasses.Field]:
    """The arguments that a recipe may give under `config.model.NAME`, with their types and defaults."""
    if name not in _ARGUMENTS_OF:
        return {}
    return {f.name: f for f in dataclasses.fields(_ARGUMENTS_OF[name]) if f.name not in _GIVEN}


def dtype_of(dtype: str, platform: str, processor: hardware.Processor) -> str:
    """What a recipe's `config.model.dtype` means on some hardware: "float32" or "bfloat16".

    "auto" is bfloat16 on GPU and TPU, and on CPUs float32 as long as `BFLOAT16_PAYS_ON_CPU` says so, then
    bfloat16 on those whose instruction sets make it faster. Nothing is timed, so that the numbers of a run
    depend on its hardware alone.

    Args:
      dtype: "auto", "float32" or "bfloat16".
      platform: of the devices that will run it: "cpu", "gpu" or "tpu".
      processor: of this machine; it counts on "cpu" alone.

    Raises:
      UserError: it is another word.
    """
    if dtype == "auto":
        fast = platform != "cpu" or (BFLOAT16_PAYS_ON_CPU and hardware.fast_bfloat16(processor))
        return "bfloat16" if fast else "float32"
    if dtype not in DTYPES:
        raise UserError(f"config.model.dtype={dtype!r}: choose auto, float32 or bfloat16")
    return dtype


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
      num_devices: how many devices share a batch. A convolution that walks over slices of the
        batch must not be given a sharded one, so several devices get the plain operation; nor may a
        recurrence join times and a sharded batch to one axis.
      axis_name: the mapped axis over which batch statistics are averaged (pmap only: under jit the
        batch is one global array and its statistics are global already).

    Raises:
      UserError: the model, its dtype or one of its arguments does not exist.
    """
    name = config.name
    if name not in MODELS:
        raise UserError(f"config.model.name={name!r} is not a model: choose from {sorted(MODELS)}")
    dtype = dtype_of(config.dtype, platform, hardware.processor())
    statistics = config.get("batch_norm", "synchronised")
    if statistics not in ("synchronised", "per-device"):
        raise UserError(f"config.model.batch_norm={statistics!r}: choose synchronised or per-device")
    return MODELS[name](
        **config.get(name, {}),
        num_classes=num_outputs,
        dtype=jnp.dtype(dtype),
        axis_name=axis_name if statistics == "synchronised" else None,
        chunked=num_devices == 1,
    )
