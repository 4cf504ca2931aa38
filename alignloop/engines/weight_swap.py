"""New weights into a running vLLM engine, without a restart: a worker extension.

vLLM mixes `SwapWeights` into its worker class, so `self` is a worker, one per accelerator.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.engines.checkpoint import EMBEDDING_NAMES, text_config, weight_files
from alignloop.errors import EngineError

if TYPE_CHECKING:
    import torch

_HEAD_NAME = "lm_head.weight"


class SwapWeights:
    """Methods vLLM adds to its worker."""

    model_runner: Any

    def swap_weights(self, checkpoint: str) -> None:
        """Load the weights of `checkpoint`, a directory of the architecture being served, in place."""
        self.model_runner.reload_weights(weights_iterator=weights(Path(checkpoint)))


def weights(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of every weight, and the head of a model whose head is its embedding.

    vLLM's reload takes embedding and head as two layers even where they share a tensor, so a head that is
    not given keeps the old weights in silence.

    Raises:
        EngineError: the head is tied and the embedding is under no name known here.
    """
    from safetensors import safe_open

    head_is_due = bool(text_config(checkpoint).get("tie_word_embeddings"))
    embedding: torch.Tensor | None = None
    for file in weight_files(checkpoint):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict: it cannot be iterated
                tensor = tensors.get_tensor(name)
                head_is_due = head_is_due and name != _HEAD_NAME
                if name.endswith(EMBEDDING_NAMES):
                    embedding = tensor
                yield name, tensor
    if head_is_due:
        if embedding is None:
            raise EngineError(
                f"{checkpoint}: the head is tied to the embedding, but no weight is called "
                f"{' or '.join(EMBEDDING_NAMES)}; vLLM cannot swap this architecture: set engine.name: transformers"
            )
        yield _HEAD_NAME, embedding
