"""Where bfloat16 helps and where it only looks like it would."""

from __future__ import annotations

import torch

from alignloop.progress import Progress
from alignloop.training.models import Dtype


def uses_bfloat16(dtype: Dtype, *, device: torch.device, progress: Progress) -> bool:
    """Whether to run forward passes under bfloat16 autocast.

    A CPU without AVX512-BF16 or AMX emulates bfloat16 at a tenth of float32's speed: float32 is used there, which is
    exact as well, and the line says so.
    """
    if dtype == "float32":
        return False
    if device.type != "cpu" or _cpu_has_bfloat16():
        return True
    progress.say("  this CPU has no bfloat16 arithmetic (AVX512-BF16 or AMX): running in float32, which is faster here")
    return False


def _cpu_has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
