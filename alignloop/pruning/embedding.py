"""How rows become vectors: by the policy, by a sentence-transformers model, or from a file of vectors.

items, texts --Embedding--> Float32 [N, D]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alignloop.errors import DataError
from alignloop.progress import Progress
from alignloop.pruning.items import Item
from alignloop.records import Message

Floats = NDArray[np.float32]
POLICY = "policy"
EMBED_BATCH_TOKENS = 16_384
EMBED_BATCH_TEXTS = 64


class Embedding(Protocol):
    """Embeds dialogs, and prompts alone."""

    @property
    def centred(self) -> bool:
        """Whether vectors are compared without their mean: a language model's mean-pooled states share one large
        direction that hides all else."""

    def dialogs(self, items: Sequence[Item]) -> Floats:
        """[N, D] of whole dialogs, completions included."""

    def prompts(self, texts: Sequence[str]) -> Floats | None:
        """[N, D] of texts as a user's; None where only the rows have vectors."""


@dataclass(frozen=True)
class PolicyEmbedding:
    """Mean-pooled last hidden states of a policy.

    Attributes:
        release: gives accelerator memory back before the model is loaded.
    """

    checkpoint: Path
    progress: Progress
    release: Callable[[], None] = lambda: None
    centred: bool = True

    def dialogs(self, items: Sequence[Item]) -> Floats:
        return self._embed([item.dialog for item in items], prompts=False)

    def prompts(self, texts: Sequence[str]) -> Floats:
        return self._embed([[Message(role="user", content=text)] for text in texts], prompts=True)

    def _embed(self, dialogs: Sequence[list[Message]], *, prompts: bool) -> Floats:
        from alignloop.chat.load import load_format
        from alignloop.engines.embedder import embed_dialogs

        chat = load_format(self.checkpoint)
        self.release()
        ids = [chat.prompt_ids(dialog) if prompts else chat.dialog(dialog).token_ids for dialog in dialogs]
        return embed_dialogs(ids, checkpoint=self.checkpoint, batch_tokens=EMBED_BATCH_TOKENS, progress=self.progress)


@dataclass(frozen=True)
class SentenceEmbedding:
    """A sentence-transformers model, by folder or id."""

    model: str
    progress: Progress
    release: Callable[[], None] = lambda: None
    centred: bool = False

    def dialogs(self, items: Sequence[Item]) -> Floats:
        return self.prompts(["\n\n".join(message.content for message in item.dialog) for item in items])

    def prompts(self, texts: Sequence[str]) -> Floats:
        from alignloop.engines.sentence_embedder import embed_texts

        self.release()
        return embed_texts(texts, model=self.model, batch_size=EMBED_BATCH_TEXTS, progress=self.progress)


@dataclass(frozen=True)
class FileEmbedding:
    """Vectors that the user has: a row of `vectors` [M, D] for each id in `row_of`."""

    vectors: Floats
    row_of: Mapping[str, int]
    centred: bool = False

    def dialogs(self, items: Sequence[Item]) -> Floats:
        found: Floats = self.vectors[[self.row_of[item.id] for item in items]]
        return found

    def prompts(self, texts: Sequence[str]) -> None:
        return None


def embedding_by(
    name: str, *, policy: Path | None, progress: Progress, release: Callable[[], None]
) -> Embedding | None:
    """`policy`, or a sentence-transformers model's folder or id; None: `policy`, and there is none."""
    if name != POLICY:
        return SentenceEmbedding(name, progress, release)
    return None if policy is None else PolicyEmbedding(policy, progress, release)


def read_vectors(path: Path) -> Floats:
    """A `.npy` file of [M, D] numbers, mapped rather than read.

    Raises:
        DataError: there is none, or it holds something else.
    """
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: no .npy file of vectors ({error}): save them with numpy.save(path, array)") from error
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f":
        found = isinstance(vectors, np.ndarray)
        what = f"an array of shape {vectors.shape} and type {vectors.dtype}" if found else "no"
        raise DataError(f"{path}: holds {what}: floating point numbers of shape [rows, dimensions] are wanted")
    return vectors
