"""Builds models by name: `build(config.model, …)` turns a recipe into a linen module."""

import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
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

# The dtypes in which a model may compute. Parameters, optimiser state, statistics, softmax and losses are
# always float32.
DTYPES = ("float32", "bfloat16")
# The models that are faster in bfloat16 on CPUs that have instructions for it. The GRU is not, and for the
# attention model oneDNN has no fast product of some layouts.
_HALF_ON_CPU = ("hwnet",)
# XLA:CPU calls oneDNN for the products and convolutions of a program with these options, but only where no
# other library claims them first. jaxlib has oneDNN for x86 since this version.
_ONEDNN_SINCE = (0, 11)
_ONEDNN = {
    "xla_cpu_experimental_onednn_custom_call": True,
    "xla_cpu_experimental_ynn_fusion_type": "",
    "xla_cpu_use_xnnpack": False,
}


def _declared(name: str) -> dict[str, inspect.Parameter]:
    """Returns the arguments that a model declares."""
    return dict(inspect.signature(MODELS[name]).parameters)


def arguments(name: str) -> dict[str, inspect.Parameter]:
    """Returns the arguments that a recipe gives a model under `config.model.NAME`, with their defaults."""
    declared = _declared(name)
    return {field: declared[field] for field in fields.MODELS[name]}


def dtype_of(config: ConfigDict, platform: str, processor: hardware.Processor) -> str:
    """Returns the dtype that `config.model.dtype` means on some hardware: "float32" or "bfloat16".

    "auto" is bfloat16 on GPUs and TPUs, and for the models of `_HALF_ON_CPU` on CPUs that have instructions
    for it (`hardware.fast_bfloat16`) and oneDNN. Nothing is timed, so a run's numbers depend only on its
    hardware and the version of jax.

    Args:
      config: `config.model`, with the fields `name` and `dtype`, which is "auto", "float32" or "bfloat16".
      platform: the platform of the devices that will run the model: "cpu", "gpu" or "tpu".
      processor: this machine's processor; it matters only if the platform is "cpu".
    """
    if config.dtype != "auto":
        return config.dtype
    cpu = config.name in _HALF_ON_CPU and _has_onednn() and hardware.fast_bfloat16(processor)
    return "bfloat16" if platform != "cpu" or cpu else "float32"


def compiler_options(platform: str, dtype: DTypeLike) -> dict[str, bool | str]:
    """Returns the options of XLA for a program that computes in `dtype` on "cpu", "gpu" or "tpu".

    XLA cannot write a program that calls oneDNN to a file. So after such options this process keeps no
    compiled program on the disk.
    """
    # float32 programs do without oneDNN: for them it is no faster, and their numbers stay what they were.
    if platform != "cpu" or jnp.dtype(dtype) != jnp.bfloat16 or not _has_onednn():
        return {}
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    return dict(_ONEDNN)


def _has_onednn() -> bool:
    return jax.__version_info__ >= _ONEDNN_SINCE


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
      config: the fields `name`, `dtype` (see `dtype_of`) and `batch_norm`, which is "synchronised", or
        "per-device" for statistics of each device's part of the batch. Under the model's name it holds the
        arguments that only this model has.
      num_outputs: number of classes, or of symbols in the vocabulary.
      platform: the platform of the devices that will run the model: "cpu", "gpu" or "tpu".
      num_devices: number of devices that share a batch.
      axis_name: the mapped axis over which batch statistics are averaged. Only pmap needs it: under jit
        the batch is one global array, so its statistics are already global.

    Raises:
      UserError: the model, its dtype or one of its arguments is unknown or out of range.
    """
    fields.check_part("model", config)
    declared, own = _declared(config.name), dict(config.get(config.name) or {})
    for name, parameter in arguments(config.name).items():
        if parameter.default is parameter.empty:
            schema.require(own, name, name=f"config.model.{config.name}")
    offered = {
        "num_classes": num_outputs,
        "vocab_size": num_outputs,
        "dtype": jnp.dtype(dtype_of(config, platform, hardware.processor())),
        "axis_name": None if config.get("batch_norm") == "per-device" else axis_name,
        "sharded": num_devices > 1,
    }
    given = {name: value for name, value in offered.items() if name in declared}
    return MODELS[config.name](**own, **given)
