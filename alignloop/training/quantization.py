"""QLoRA's 4-bit weights: whether this machine can have them, and how transformers is told. Torch-free to import."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from alignloop.errors import ModelError

_WITHOUT = "or leave `quantize` out: LoRA over weights in bfloat16 takes about three times their memory"


def check_can_quantize(where: str) -> None:
    """Refuse `quantize: nf4` where it cannot run, before anything heavy is loaded.

    Args:
        where: the recipe's field, such as `dpo.lora.quantize`.

    Raises:
        ModelError: bitsandbytes is not installed, or there is no CUDA device.
    """
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"{where}: nf4 needs bitsandbytes, which is not installed: `pip install bitsandbytes`, {_WITHOUT}"
        )
    import torch

    # device_count asks the driver without starting CUDA in this process, which later forks.
    if torch.cuda.device_count() == 0:
        raise ModelError(f"{where}: nf4 needs a CUDA GPU, and torch sees none here: run it where one is, {_WITHOUT}")


def nf4_config(dtype: Any) -> Any:
    """transformers' configuration of QLoRA (Dettmers et al. 2023): 4-bit NormalFloat with double quantisation.

    Args:
        dtype: torch dtype that the 4-bit weights are multiplied in.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
