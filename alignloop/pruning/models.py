"""The models that steps ask: the recipe's judge, and what embeds rows.

items --a judging prompt--> points | texts, finished answers on disk
items, texts --the policy, a sentence-transformers model, or a file of vectors--> float32 [N, D]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from alignloop.config.engine import JudgeConfig
from alignloop.engines.base import Engine
from alignloop.errors import DataError, UserError
from alignloop.judging.judge import open_judge
from alignloop.judging.prompt_file import PointsPrompt, TextsPrompt, load_prompt
from alignloop.judging.verdicts import Appraisal, Judge, JudgeTexts, Points
from alignloop.progress import Progress, QuietProgress
from alignloop.pruning.items import Item
from alignloop.records import Message

Answer = TypeVar("Answer", bound=Points | JudgeTexts)
Floats = NDArray[np.float32]
POLICY = "policy"
EMBED_BATCH_TOKENS = 16_384
EMBED_BATCH_TEXTS = 64


@dataclass(frozen=True)
class PruneJudge:
    """Asks the configured model by any judging prompt.

    Attributes:
        dir: has a folder for each prompt, with finished answers that a later call reuses.
        max_model_len: of the engine; see `open_judge`.
    """

    config: JudgeConfig
    engine: Engine
    dir: Path
    seed: int
    max_model_len: int | None = None
    progress: Progress = field(default_factory=QuietProgress)

    def points(self, prompt: str, items: Sequence[Item]) -> list[Points]:
        """One answer per item; a UserError where the prompt gives no points, or not one answer can be read."""
        judge = self._judge(prompt)
        return _some_readable(judge.rate(_appraisals(prompt, items)), judge=judge.name, prompt=prompt)

    def texts(self, prompt: str, items: Sequence[Item], *, labels: Sequence[str] = ()) -> list[JudgeTexts]:
        """One answer per item; errors as for `points`."""
        judge = self._judge(prompt, labels=labels)
        return _some_readable(judge.describe(_appraisals(prompt, items)), judge=judge.name, prompt=prompt)

    def _judge(self, prompt: str, *, labels: Sequence[str] = ()) -> Judge:
        return open_judge(
            self.config.model_copy(update={"prompt": prompt}),
            self.engine,
            dir=self.dir / Path(prompt).stem,
            seed=self.seed,
            max_model_len=self.max_model_len,
            progress=self.progress,
            labels=labels,
        )


def points_prompt(name: str, *, refusal: str) -> PointsPrompt:
    """A judging prompt that gives points; any other kind is a UserError with the text `refusal`."""
    prompt = load_prompt(name)
    if not isinstance(prompt, PointsPrompt):
        raise UserError(refusal)
    return prompt


def prompt_name(prompt: str) -> str:
    """A prompt's name in the rows: a file's without its path."""
    return prompt.rpartition("/")[2].removesuffix(".yaml")


def _appraisals(prompt: str, items: Sequence[Item]) -> list[Appraisal]:
    """What the judge sees: completions only if the prompt grades them; topic, difficulty and intentions do not."""
    loaded = load_prompt(prompt)
    graded = isinstance(loaded, PointsPrompt | TextsPrompt) and loaded.wants_completion
    return [Appraisal(item.id, item.messages, item.completion if graded else None) for item in items]


def _some_readable(answers: list[Answer], *, judge: str, prompt: str) -> list[Answer]:
    found = [one.points if isinstance(one, Points) else one.texts for one in answers]
    if answers and all(answer is None for answer in found):
        raise UserError(
            f"judge {judge}, prompt {prompt}: none of its {len(answers)} answers can be read. The first: "
            f"{answers[0].reason}\nTake another judge.model, prompt or judge.max_tokens. (On vLLM answers are held to "
            "the prompt's schema; elsewhere the model must write such JSON by itself.)"
        )
    return answers


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
    """An embedding by `policy` (None without one), or by a sentence-transformers model's folder or id.

    `release` frees accelerator memory before the model is loaded.
    """
    if name != POLICY:
        return _by_sentences(name, progress=progress, release=release)
    return None if policy is None else _by_policy(policy, progress=progress, release=release)


def _by_policy(checkpoint: Path, *, progress: Progress, release: Callable[[], None]) -> Embedding:
    """Mean-pooled last hidden states."""

    def embed(dialogs: Sequence[Sequence[Message]]) -> Floats:
        from alignloop.chat.load import load_format
        from alignloop.engines.embedder import embed_dialogs

        chat = load_format(checkpoint)
        ids = [
            chat.prompt_ids(dialog) if dialog[-1].role == "user" else chat.dialog(dialog).token_ids
            for dialog in dialogs
        ]
        release()
        return embed_dialogs(ids, checkpoint=checkpoint, batch_tokens=EMBED_BATCH_TOKENS, progress=progress)

    return Embedding(
        dialogs=lambda items: embed([item.dialog for item in items]),
        prompts=lambda texts: embed([[Message(role="user", content=text)] for text in texts]),
        centred=True,
    )


def _by_sentences(model: str, *, progress: Progress, release: Callable[[], None]) -> Embedding:
    def embed(texts: Sequence[str]) -> Floats:
        from alignloop.engines.embedder import embed_texts

        release()
        return embed_texts(texts, model=model, batch_size=EMBED_BATCH_TEXTS, progress=progress)

    return Embedding(
        dialogs=lambda items: embed(["\n\n".join(message.content for message in item.dialog) for item in items]),
        prompts=embed,
    )


def by_vectors(vectors: Floats, row_of: Mapping[str, int]) -> Embedding:
    """The user's vectors [M, D]: the row of each id."""
    return Embedding(lambda items: vectors[[row_of[item.id] for item in items]])


def read_vectors(path: Path) -> Floats:
    """A memory-mapped `.npy` file of [M, D] numbers; a DataError where there is none, or it holds something else."""
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: no .npy file of vectors ({error}): save them with numpy.save(path, array)") from error
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f":
        found = isinstance(vectors, np.ndarray)
        what = f"an array of shape {vectors.shape} and type {vectors.dtype}" if found else "no"
        raise DataError(f"{path}: holds {what}: floating point numbers of shape [rows, dimensions] are wanted")
    return vectors
