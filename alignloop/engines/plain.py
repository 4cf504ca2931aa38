"""A checkpoint as plain transformers reads it: what the fallback engine serves, and what the canary compares with.

The canary: does the engine serve the checkpoint it was asked to? Logprobs of a few fixed token sequences, once from the
engine and once from a plain forward pass of the checkpoint. They disagree where weights were left behind in a swap,
loaded into the wrong layer, or lost in sleep.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.engines.base import Loglikelihood, LoglikelihoodRequest
from alignloop.engines.checkpoint import num_parameters, stored_tensors, text_config
from alignloop.errors import EngineError, ModelError

NUM_SEQUENCES = 4
SEQUENCE_TOKENS = 24
SWAP_TOKENS = 8
"""Of the first sequence, after a swap: what can go wrong there is weights left behind, which any token sees. On a CPU
these passes are most of a swap's time, and grow with every token."""
_LARGE_MODEL = 2_000_000_000
"""Above this many parameters weights that are not stored in float32 are not widened to it, to halve their memory."""


def load_plain(checkpoint: Path, *, dtype: str) -> Any:
    """The causal language model in `checkpoint`, on the CPU, its weights rounded to `dtype`; ModelError where the
    checkpoint lacks weights, which transformers would fill with random numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{checkpoint}: lacks {len(missing)} weights of a {type(model).__name__}, {missing[0]} first: save the "
            "model again, or give the directory of the language model (a reward model has no language-model head)"
        )
    return model.eval()


def plain_model(checkpoint: Path, *, dtype: str) -> Any:
    """As `load_plain`, for one forward pass in float32 with weights rounded to `dtype`.

    Weights stored in float32, as all that are trained here are, stay in the file they are mapped from and are rounded
    where they are used: no second copy of the model is made.
    """
    import torch

    if {tensor.dtype for tensor in stored_tensors(checkpoint).values()} != {"F32"}:
        model = load_plain(checkpoint, dtype=dtype)
        return model.float() if num_parameters(checkpoint) <= _LARGE_MODEL else model
    model = load_plain(checkpoint, dtype="float32")
    if dtype != "float32":
        _round_in_use(model, getattr(torch, dtype))
    return model


def _round_in_use(model: Any, dtype: Any) -> None:
    """Each module's own weights are rounded while it runs, in memory that the next module uses again: fresh memory for
    each would take longer than the arithmetic."""
    import torch

    buffers = [torch.empty(0, dtype=dtype), torch.empty(0)]

    def rounded(weights: Any) -> Any:
        size = weights.numel()
        if buffers[1].numel() < size:
            buffers[:] = torch.empty(size, dtype=dtype), torch.empty(size)
        narrow, wide = (buffer[:size].view(weights.shape) for buffer in buffers)
        return wide.copy_(narrow.copy_(weights))

    def attach(module: Any, own: dict[str, Any]) -> None:
        stored: dict[str, Any] = {}
        # Children of a module that runs would overwrite what is being used.
        alone = len(own) == 1 and next(module.children(), None) is None

        def before(*_: object) -> None:
            for name, parameter in own.items():
                stored[name] = parameter.data
                parameter.data = rounded(parameter.data) if alone else parameter.data.to(dtype).float()

        def after(*_: object) -> None:
            for name, parameter in own.items():
                parameter.data = stored.pop(name)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if type(module) is torch.nn.Embedding:  # rounding the rows that were looked up is the same
            module.register_forward_hook(lambda _module, _inputs, rows: rows.to(dtype).float())
        elif own:
            attach(module, own)


@dataclass(frozen=True)
class Sighting:
    """Logprobs of the canary's tokens, in order, from the engine (`served`) and from the plain forward pass."""

    served: tuple[float, ...]
    plain: tuple[float, ...]

    @property
    def mean_difference(self) -> float:
        return sum(abs(a - b) for a, b in zip(self.served, self.plain, strict=True)) / len(self.served)


Score = Callable[[Sequence[LoglikelihoodRequest]], list[Loglikelihood]]


def check_served(
    score: Score,
    *,
    checkpoint: Path,
    dtype: str,
    tolerance: float,
    before: Sighting | None = None,
    after_swap: bool = False,
) -> Sighting:
    """Compare the engine with a plain forward pass of `checkpoint` on the CPU, in float32; EngineError where they
    disagree.

    Args:
        score: the engine's loglikelihood.
        dtype: of the engine's weights; the plain pass rounds its weights to it.
        tolerance: largest mean difference of logprobs, in nats a token.
        before: what was seen before a swap. An engine that repeats it to the last bit although the plain pass
            moved kept the old weights, however small the difference: a gentle DPO step moves less than the tolerance.
        after_swap: a few tokens will do. Without it they are looked at too, apart, for the next swap's `before`.
    """
    sequences = canary_sequences(text_config(checkpoint))
    model = plain_model(checkpoint, dtype=dtype)
    for own in ([] if after_swap else [sequences]) + [[sequences[0][:SWAP_TOKENS]]]:
        requests = [LoglikelihoodRequest(context_ids=ids[:1], continuation_ids=ids[1:]) for ids in own]
        served = tuple(logprob for scored in score(requests) for logprob in scored.logprobs)
        seen = Sighting(served=served, plain=_plain_logprobs(model, own))
        if not seen.mean_difference <= tolerance:  # written so that NaN fails
            raise EngineError(
                f"{checkpoint}: the engine disagrees with a plain forward pass: mean difference of logprobs "
                f"{seen.mean_difference:.4f} nats a token over {len(seen.served)} tokens, allowed {tolerance:g} "
                f"(engine.canary_tolerance). The engine does not serve this checkpoint as written; set engine.name: "
                "transformers, or raise the tolerance if you quantise the engine's weights"
            )
    if before is not None and before.served == seen.served and before.plain != seen.plain:
        raise EngineError(
            f"{checkpoint}: the engine still answers to the last bit as before the swap, although the checkpoint's "
            "logprobs moved: it kept the old weights. Set engine.name: transformers and report this"
        )
    return seen


def canary_sequences(config: dict[str, Any]) -> list[tuple[int, ...]]:
    """Fixed sequences of token ids: seeded, without the model's special ids."""
    special: set[int] = set()
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(key)
        special.update([value] if isinstance(value, int) else value or [])
    plain_ids = [i for i in range(int(config["vocab_size"])) if i not in special]
    draw = random.Random(20240723)
    return [tuple(draw.choices(plain_ids, k=SEQUENCE_TOKENS)) for _ in range(NUM_SEQUENCES)]


def _plain_logprobs(model: Any, sequences: list[tuple[int, ...]]) -> tuple[float, ...]:
    import torch

    with torch.no_grad():
        ids = torch.tensor(sequences)
        logprobs = model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        taken = logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1)
    return tuple(taken.flatten().tolist())
