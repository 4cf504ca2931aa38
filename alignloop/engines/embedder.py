"""Embeddings for semantic deduplication and decontamination: what an embedder is, and the policy's own.

Two kinds: mean-pooled last hidden states of the policy (here, no download), and a sentence-transformers model
(`sentence_embedder.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from alignloop.engines.length_batches import length_batches
from alignloop.progress import Progress
from alignloop.records import Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PAD = 0
"""Any id will do: padded positions are masked out of the mean, and a causal model does not see them."""


class Embedder(Protocol):
    """Turns dialogs into vectors."""

    def embed(self, dialogs: Sequence[Sequence[Message]]) -> NDArray[np.float32]:
        """Float32 [N, D], rows of unit length, in the order given; same dialogs, same bytes on a CPU."""


class PolicyEmbedder:
    """Mean-pooled last hidden states of a checkpoint, of dialogs in its own chat format.

    Args:
        checkpoint: Hugging Face directory.
        batch_tokens: padded tokens a batch.
    """

    def __init__(self, checkpoint: Path, *, batch_tokens: int = 16_384, progress: Progress) -> None:
        self._checkpoint = checkpoint
        self._batch_tokens = batch_tokens
        self._progress = progress

    def embed(self, dialogs: Sequence[Sequence[Message]]) -> NDArray[np.float32]:
        from alignloop.chat.load import load_format

        chat = load_format(self._checkpoint)
        return embed_dialogs(
            [chat.dialog(dialog).token_ids for dialog in dialogs],
            checkpoint=self._checkpoint,
            batch_tokens=self._batch_tokens,
            progress=self._progress,
        )


def embed_dialogs(
    token_ids: Sequence[tuple[int, ...]], *, checkpoint: Path, batch_tokens: int, progress: Progress
) -> NDArray[np.float32]:
    """One unit vector a dialog. Deterministic on CPU.

    Args:
        token_ids: N dialogs, none empty.
        checkpoint: Hugging Face directory of the model whose hidden states are taken: in float32 on a CPU, in bfloat16
            on a GPU, where an 8B model and its float32 weights would not fit.
        batch_tokens: padded tokens a batch; a longer dialog is a batch of its own.

    Returns:
        Float32 [N, D], in the order given; D is the model's hidden size.

    Raises:
        ValueError: a dialog is empty.
    """
    import numpy as np
    import torch
    from transformers import AutoModel

    empty = [index for index, ids in enumerate(token_ids) if not ids]
    if empty:
        raise ValueError(f"dialog {empty[0]} has no tokens: there is nothing to embed")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = AutoModel.from_pretrained(checkpoint, dtype=dtype, local_files_only=True).to(device).eval()
    embeddings = np.zeros((len(token_ids), int(model.config.get_text_config().hidden_size)), dtype=np.float32)
    with progress.task("embed", total=len(token_ids), unit="dialogs") as advance, torch.inference_mode():
        for indices in length_batches([len(ids) for ids in token_ids], batch_tokens=batch_tokens):
            embeddings[indices] = _embed(model, [token_ids[index] for index in indices])
            advance(len(indices))
    return embeddings


def _embed(model: Any, rows: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
    """Unit-length mean of the last hidden states over each row's own tokens, [B, D]."""
    import torch

    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[_PAD] * (width - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    hidden = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    mean = (hidden.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    unit: NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
    return unit
