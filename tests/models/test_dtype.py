"""Tests the meaning of `config.model.dtype` on each kind of hardware."""

import pytest
from ml_collections import ConfigDict

from hw import models
from hw.cli import UserError
from hw.hardware import Processor

PLAIN = Processor("plain", "", ("avx2", "avx512f"))
FAST = [Processor("fast", "", (name,)) for name in ("avx512_bf16", "amx_bf16", "avx_ne_convert")]


@pytest.mark.parametrize("processor", [Processor(), PLAIN, *FAST], ids=str)
def test_auto_by_platform_and_processor(monkeypatch, processor):
    for platform in ("gpu", "tpu"):  # for every processor of the host
        assert models.dtype_of("auto", platform, processor) == "bfloat16"
    # No CPU uses bfloat16 while its convolutions are slower.
    assert models.dtype_of("auto", "cpu", processor) == "float32"
    monkeypatch.setattr(models, "BFLOAT16_PAYS_ON_CPU", True)
    expected = "bfloat16" if processor in FAST else "float32"
    assert models.dtype_of("auto", "cpu", processor) == expected


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("processor", [PLAIN, FAST[0]], ids=str)
def test_a_word_is_taken_as_it_is(platform, processor):
    for dtype in models.DTYPES:
        assert models.dtype_of(dtype, platform, processor) == dtype


@pytest.mark.parametrize("wrong", ["float16", "", "AUTO", "bfloat16 "])
def test_another_word_is_refused(wrong):
    config = ConfigDict({"name": "recall_net", "dtype": wrong, "recall_net": {"cell": "rnn", "width": 4}})
    with pytest.raises(UserError, match=r"config\.model\.dtype must be one of auto, float32, bfloat16"):
        models.build(config, num_outputs=2, platform="cpu")
