"""How rows become vectors: by the policy, by a sentence-transformers model, or from a file of vectors.

items, texts --Embedding--> Float32 [N, D]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alignloop.errors import DataError
from alignloop.progress import Progress
from alignloop.pruning.items import Item
from alignloop.records import Message

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat

Floats = NDArray[np.float32]
POLICY = "policy"
EMBED_BATCH_TOKENS = 16_384
EMBED_BATCH_TEXTS = 64


@dataclass(frozen=True)
class Embedding:
    """Embeds dialogs, and prompts alone.

    Attributes:
        dialogs: items -> [N, D] of whole dialogs, completions included.
        prompts: texts -> [N, D] of texts as a user's; None: only the rows have vectors.
        centred: vectors are compared without their mean: a language model's mean-pooled states share one large
            direction that hides all else.
    """

    dialogs: Callable[[Sequence[Item]], Floats]
    prompts: Callable[[Sequence[str]], Floats] | None = None
    centred: bool = False


def embedding_by(
    name: str, *, policy: Path | None, progress: Progress, release: Callable[[], None]
) -> Embedding | None:
    """`policy`, or a sentence-transformers model's folder or id; None: `policy`, and there is none.

    Args:
        release: gives accelerator memory back before the model is loaded.
    """
    if name != POLICY:
        return _by_sentences(name, progress=progress, release=release)
    return None if policy is None else _by_policy(policy, progress=progress, release=release)


def _by_policy(checkpoint: Path, *, progress: Progress, release: Callable[[], None]) -> Embedding:
    """Mean-pooled last hidden states."""

    def embed(ids_by: Callable[[ChatFormat], list[tuple[int, ...]]]) -> Floats:
        from alignloop.chat.load import load_format
        from alignloop.engines.embedder import embed_dialogs

        ids = ids_by(load_format(checkpoint))
        release()
        return embed_dialogs(ids, checkpoint=checkpoint, batch_tokens=EMBED_BATCH_TOKENS, progress=progress)

    def prompts(texts: Sequence[str]) -> Floats:
        return embed(lambda chat: [chat.prompt_ids([Message(role="user", content=text)]) for text in texts])

    def dialogs(items: Sequence[Item]) -> Floats:
        return embed(lambda chat: [chat.dialog(item.dialog).token_ids for item in items])

    return Embedding(dialogs, prompts, centred=True)


def _by_sentences(model: str, *, progress: Progress, release: Callable[[], None]) -> Embedding:
    def embed(texts: Sequence[str]) -> Floats:
        from alignloop.engines.embedder import embed_texts

        release()
        return embed_texts(texts, model=model, batch_size=EMBED_BATCH_TEXTS, progress=progress)

    def dialogs(items: Sequence[Item]) -> Floats:
        return embed(["\n\n".join(message.content for message in item.dialog) for item in items])

    return Embedding(dialogs, embed)


def by_vectors(vectors: Floats, row_of: Mapping[str, int]) -> Embedding:
    """Vectors that the user has: a row of `vectors` [M, D] for each id."""
    return Embedding(lambda items: vectors[[row_of[item.id] for item in items]])


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
