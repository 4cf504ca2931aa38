"""The canary: does the engine serve the checkpoint it was told to serve?

Logprobs of a few fixed token sequences, once from the engine and once from a plain forward pass of the
checkpoint. They disagree where weights were left behind in a swap, loaded into the wrong place, or lost in sleep.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.engines.base import Loglikelihood, LoglikelihoodRequest
from alignloop.engines.checkpoint import text_config
from alignloop.engines.plain import plain_model
from alignloop.errors import EngineError

NUM_SEQUENCES = 4
SEQUENCE_TOKENS = 24
SWAP_TOKENS = 8
"""Of the first sequence, after a swap: what can go wrong there is weights left behind, which any token sees. On a CPU
these passes are most of a swap's time, and grow with every token."""

Score = Callable[[Sequence[LoglikelihoodRequest]], list[Loglikelihood]]


@dataclass(frozen=True)
class Sighting:
    """Logprobs of the canary's tokens, in order, from the engine (`served`) and from the plain forward pass."""

    served: tuple[float, ...]
    plain: tuple[float, ...]

    @property
    def mean_difference(self) -> float:
        return sum(abs(a - b) for a, b in zip(self.served, self.plain, strict=True)) / len(self.served)


def check(
    score: Score,
    *,
    checkpoint: Path,
    dtype: str,
    tolerance: float,
    before: Sighting | None = None,
    after_swap: bool = False,
) -> Sighting:
    """Compare the engine with a plain forward pass of `checkpoint` on the CPU, in float32.

    Args:
        score: the engine's loglikelihood.
        dtype: of the engine's weights; the plain pass rounds its weights to it.
        tolerance: largest mean difference of logprobs, in nats a token.
        before: what was seen before a swap. An engine that repeats it to the last bit although the plain pass
            moved kept the old weights, however small the difference: a gentle DPO step moves less than the tolerance.
        after_swap: a few tokens will do. Without it they are looked at too, apart, for the next swap's `before`.

    Raises:
        EngineError: they disagree.
    """
    sequences = canary_sequences(text_config(checkpoint))
    model = plain_model(checkpoint, dtype=dtype)
    if not after_swap:
        _compare(_look(score, model, sequences), checkpoint=checkpoint, tolerance=tolerance)
    seen = _look(score, model, [sequences[0][:SWAP_TOKENS]])
    _compare(seen, checkpoint=checkpoint, tolerance=tolerance)
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


def _look(score: Score, model: Any, sequences: list[tuple[int, ...]]) -> Sighting:
    requests = [LoglikelihoodRequest(context_ids=ids[:1], continuation_ids=ids[1:]) for ids in sequences]
    served = tuple(logprob for scored in score(requests) for logprob in scored.logprobs)
    return Sighting(served=served, plain=_plain_logprobs(model, sequences))


def _compare(seen: Sighting, *, checkpoint: Path, tolerance: float) -> None:
    if not seen.mean_difference <= tolerance:  # written so that NaN fails
        raise EngineError(
            f"{checkpoint}: the engine disagrees with a plain forward pass: mean difference of logprobs "
            f"{seen.mean_difference:.4f} nats a token over {len(seen.served)} tokens, allowed {tolerance:g} "
            f"(engine.canary_tolerance). The engine does not serve this checkpoint as written; set engine.name: "
            "transformers, or raise the tolerance if you quantise the engine's weights"
        )


def _plain_logprobs(model: Any, sequences: list[tuple[int, ...]]) -> tuple[float, ...]:
    import torch

    with torch.no_grad():
        ids = torch.tensor(sequences)
        logprobs = model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        taken = logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1)
    return tuple(taken.flatten().tolist())
