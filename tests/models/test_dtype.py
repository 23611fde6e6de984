"""What `config.model.dtype` means on each kind of hardware."""

import pytest

from hw import models
from hw.cli import UserError
from hw.hardware import Processor

PLAIN = Processor("plain", "", ("avx2", "avx512f"))
FAST = [Processor("fast", "", (name,)) for name in ("avx512_bf16", "amx_bf16", "avx_ne_convert")]


@pytest.mark.parametrize("processor", [Processor(), PLAIN, *FAST], ids=str)
def test_auto_by_platform_and_processor(monkeypatch, processor):
    for platform in ("gpu", "tpu"):  # whatever the host's processor is
        assert models.dtype_of("auto", platform, processor) == "bfloat16"
    # As long as bfloat16 is slower in the convolutions, no CPU takes it.
    assert models.dtype_of("auto", "cpu", processor) == "float32"
    monkeypatch.setattr(models, "BFLOAT16_PAYS_ON_CPU", True)
    expected = "bfloat16" if processor in FAST else "float32"
    assert models.dtype_of("auto", "cpu", processor) == expected


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("processor", [PLAIN, FAST[0]], ids=str)
def test_a_word_is_taken_as_it_is(platform, processor):
    for dtype in models.DTYPES:
        assert models.dtype_of(dtype, platform, processor) == dtype
    for wrong in ("float16", "", "AUTO", "bfloat16 "):
        with pytest.raises(UserError, match=r"config\.model\.dtype=.*choose auto, float32 or bfloat16"):
            models.dtype_of(wrong, platform, processor)
