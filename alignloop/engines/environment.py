"""What must be set before torch and vLLM are imported in the engine's process."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from alignloop.config.engine import EngineConfig
from alignloop.engines.placement import EnginePlace, num_cores
from alignloop.engines.worker import SCRATCH


def child_environment(
    config: EngineConfig, *, place: EnginePlace | None = None, scratch: Path | None = None
) -> dict[str, str]:
    """The child's environment: what must be set before torch and vLLM are imported.

    Args:
        place: its share of the machine; None is all of it.
        scratch: its own temporary folder, which it removes when it ends; None leaves it the usual one.
    """
    place = place or EnginePlace(num_cores())
    defaults = {
        # vLLM keeps one core back and pins to physical cores by default; on a small machine that leaves one of two.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(place.num_threads),
        # A swap takes fresh memory for all weights: in pages of 4 KiB, getting it is half of a swap's time on a CPU.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    fixed = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads on a shared machine cost a factor of ten
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",  # a checkpoint is a local directory; nothing is to be looked up
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if config.enforce_eager:
        # vLLM compiles its logprob gathering even then, which wants a C++ compiler and a path without spaces.
        fixed["TORCHDYNAMO_DISABLE"] = "1"
    else:  # a cache is not for the scratch folder
        defaults["TORCHINDUCTOR_CACHE_DIR"] = f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
    if scratch is not None:
        fixed |= {"TMPDIR": str(scratch), SCRATCH: str(scratch)}
    ours = {**defaults, **os.environ, **fixed, **place.environment()}
    ours.pop("VLLM_CPU_KVCACHE_SPACE", None)  # whole GiB only, and it would go before `engine.kv_cache_gb`
    return ours
