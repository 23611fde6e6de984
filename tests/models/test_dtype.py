"""Tests the meaning of `config.model.dtype` on each kind of hardware."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from ml_collections import ConfigDict

from hw import hardware, models
from hw.cli import UserError
from hw.hardware import Processor

ONEDNN = jax.__version_info__ >= (0, 11)  # Older jaxlibs have no oneDNN.
DIMS = ("NHWC", "HWIO", "NHWC")
PLAIN = Processor("plain", "", ("avx2", "avx512f"))
FAST = [Processor("fast", "", (name,)) for name in ("avx512_bf16", "amx_bf16", "avx_ne_convert")]


def _config(dtype: str, name: str) -> ConfigDict:
    return ConfigDict({"dtype": dtype, "name": name})


@pytest.mark.parametrize("processor", [Processor(), PLAIN, *FAST], ids=str)
@pytest.mark.parametrize("version", [(0, 10, 2), (0, 11, 2), (0, 12, 0)], ids=str)
def test_auto_by_platform_and_processor(monkeypatch, processor, version):
    monkeypatch.setattr(jax, "__version_info__", version)
    for platform in ("gpu", "tpu"):  # for every processor of the host
        for name in models.MODELS:
            assert models.dtype_of(_config("auto", name), platform, processor) == "bfloat16"
    expected = "bfloat16" if processor in FAST and version >= (0, 11) else "float32"
    assert models.dtype_of(_config("auto", "hwnet"), "cpu", processor) == expected
    for name in sorted(models.MODELS.keys() - {"hwnet"}):  # bfloat16 does not make them faster
        assert models.dtype_of(_config("auto", name), "cpu", processor) == "float32"


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("processor", [PLAIN, FAST[0]], ids=str)
def test_a_word_is_taken_as_it_is(platform, processor):
    for dtype in models.DTYPES:
        assert models.dtype_of(_config(dtype, "hwnet"), platform, processor) == dtype


@pytest.mark.parametrize("wrong", ["float16", "", "AUTO", "bfloat16 "])
def test_another_word_is_refused(wrong):
    config = ConfigDict({"name": "recall_net", "dtype": wrong, "recall_net": {"cell": "rnn", "width": 4}})
    with pytest.raises(UserError, match=r"config\.model\.dtype must be one of auto, float32, bfloat16"):
        models.build(config, num_outputs=2, platform="cpu")


@pytest.mark.stack
def test_programs_in_bfloat16_call_onednn():
    """float32 and other platforms never ask for it."""
    assert models.compiler_options("cpu", "float32") == {}
    assert models.compiler_options("gpu", "bfloat16") == models.compiler_options("tpu", jnp.bfloat16) == {}
    options = models.compiler_options("cpu", jnp.bfloat16)
    assert bool(options) == ONEDNN
    if jax.devices()[0].platform != "cpu" or not hardware.fast_bfloat16(hardware.processor()):
        pytest.skip("a CPU with instructions for bfloat16 is needed")

    def both(x, kernel):
        product = x.reshape(-1, 64) @ kernel[0, 0]
        return product, lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMS)

    x, kernel = jnp.ones((64, 16, 16, 64), jnp.bfloat16), jnp.ones((3, 3, 64, 64), jnp.bfloat16)
    text = jax.jit(both, compiler_options=options).lower(x, kernel).compile().as_text()
    for operation in ("matmul", "convolution"):
        assert (f"onednn${operation}" in text) == ONEDNN
