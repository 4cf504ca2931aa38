"""Settings that libraries read at their first import; those that the user has set stay."""

from __future__ import annotations

import logging
import os
import warnings

DEFAULTS = {
    # Threads that spin while they wait starve the engine and other runs of the same machine.
    "OMP_WAIT_POLICY": "PASSIVE",
    # The engine and the trainer fork after tokenizers were used: their thread pools would hang.
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "VLLM_NO_USAGE_STATS": "1",
}
NOISY = ("accelerate", "datasets", "httpx", "huggingface_hub", "lm_eval", "torch", "transformers", "trl", "vllm")


def prepare() -> None:
    """Set the defaults for this process and its children; call before torch is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def silence() -> None:
    """Keep log lines and warnings of other libraries off the terminal; errors still appear."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
