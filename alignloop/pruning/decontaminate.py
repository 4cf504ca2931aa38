"""Step 7, decontamination: nothing trains on a question of the run's own benchmarks.

The paper measures contamination by n-grams (5.1.4); here a row that contains a question, by n-grams or by embedding, is
dropped. Every row that comes in (preferences, held-out rows, prompts, demonstrations) is checked once, by n-grams,
whichever stage trains on it; the step of `prune` checks what the policy has written since for SFT, and `build_pairs`,
by n-grams, what it has written for DPO.

local data --read--> questions; other task names --load_tasks--> lm-eval tasks --doc_to_text, options--> questions
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignloop.artifacts import Artifact
from alignloop.config.bundled import LocalBenchmark, benchmark_data
from alignloop.config.pruning import DecontaminateConfig, KeepOutConfig
from alignloop.errors import DataError
from alignloop.evaluation.measures import words
from alignloop.pruning.benchmark_index import MIN_SHARE, NGRAM, BenchmarkIndex, BenchmarkText
from alignloop.pruning.items import Item
from alignloop.pruning.models import Embedding
from alignloop.pruning.step import Pruned, StepResult, Tools, drop, left, pruned, skipped
from alignloop.pruning.vectors import BLOCK, UnitRows, blocks, cores, in_threads, one_blas_thread
from alignloop.records import DroppedRow, Message, PairRow, PreferenceRow, PromptRow, SftRow

RULE = "decontaminate"
THRESHOLD, POLICY_THRESHOLD = 0.9, 0.99
"""Least cosines that drop, for a sentence-transformers model's vectors and for a policy's states."""
NO_VECTORS = "decontaminate: only words were compared: prompts of benchmarks have no given embeddings"
ALL_LEFT_OUT = (
    "take other data, name other evaluate.tasks, raise prune.decontaminate.min_share, or set "
    "prune.decontaminate.enabled: false"
)
MIN_WORDS = 8
"""A shorter question says too little to be told from others: its options are added."""
BUNDLED = "quickstart"
"""The `include_path` that stands for the quickstart's benchmarks."""
Vectors = NDArray[np.floating]
RowT = TypeVar("RowT", PreferenceRow, PromptRow, SftRow, PairRow)


def decontaminate(
    ids: Sequence[str],
    *,
    texts: Sequence[str],
    benchmarks: Sequence[BenchmarkText],
    ngram: int = NGRAM,
    min_share: float = MIN_SHARE,
    embeddings: tuple[Vectors, Vectors] | None = None,
    threshold: float = THRESHOLD,
    num_threads: int | None = None,
) -> Pruned:
    """Drop rows that contain a benchmark's question, or whose embedding is nearly that of one.

    A question of fewer than `WHOLE_UNITS` units counts where the row has all of it in one piece; one of fewer than
    four, where it is the whole row. Case, punctuation and spaces do not matter. The reason names task, question and
    the longest run of words in common, or the cosine.

    Args:
        texts: N, each with all that is trained on and its prompt.
        ngram: units (words; characters in scripts without spaces) in an n-gram.
        min_share: least share of a question's n-grams that drops a row, in (0, 1].
        embeddings: [N, D] of the rows and [Q, D] of the questions; a zero vector is near to nothing.
        threshold: least cosine that drops.
        num_threads: default: all cores of the process.

    Raises:
        ValueError: a vector that is not finite.
    """
    drops = _by_words(ids, texts, BenchmarkIndex(benchmarks, ngram=ngram, min_share=min_share))
    num_by_text = len(drops)
    if embeddings is not None and len(benchmarks):
        nearest, cosines = _nearest(*embeddings, num_threads=num_threads or cores())
        for row in np.flatnonzero(cosines >= threshold).tolist():
            if row not in drops:
                name, cosine = benchmarks[nearest[row]].name, min(float(cosines[row]), 1.0)
                drops[row] = drop(ids[row], RULE, f"cosine {cosine:.4f} to {name}", name, cosine)
    counts = {"num_by_text": float(num_by_text), "num_by_embedding": float(len(drops) - num_by_text)}
    return pruned(ids, drops, metrics=counts)


def _by_words(ids: Sequence[str], texts: Iterable[str], index: BenchmarkIndex) -> dict[int, DroppedRow]:
    return {row: drop(ids[row], RULE, reason, question.name) for row, question, reason in index.held(texts)}


def _nearest(
    embeddings: Vectors, of_questions: Vectors, *, num_threads: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Each row's nearest question, and the cosine; -inf where either is a zero vector."""
    with one_blas_thread():
        rows = UnitRows(embeddings, num_threads=num_threads)
        unit_questions = UnitRows(of_questions, name="benchmark_embeddings", num_threads=num_threads)
        questions = unit_questions.take(slice(None))
        zero = unit_questions.norms == 0

        def nearest(part: slice) -> NDArray[np.intp]:
            products = rows.take(part) @ questions.T
            products[:, zero] = -np.inf
            return products.argmax(axis=1)

        # Blocks of rows whose products with all questions are as large as a block of embeddings.
        size = max(1, BLOCK * 256 // max(len(questions), 256))
        nearest_of = np.concatenate(in_threads(nearest, blocks(len(rows), size), num_threads=num_threads))
        cosines = np.empty(len(rows))
        for part in blocks(len(rows), BLOCK):
            pairs = np.einsum("nd,nd->n", rows.take(part).astype(np.float64), questions[nearest_of[part]])
            cosines[part] = np.where((rows.norms[part] > 0) & ~zero[nearest_of[part]], pairs, -np.inf)
    return nearest_of, cosines


def decontaminate_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Drop rows that contain a benchmark's question, by words, and by embedding where prompts can be embedded."""
    config = tools.config.decontaminate
    if tools.benchmarks is None:
        return skipped(items, "no benchmarks are named")
    benchmarks = tools.benchmarks()
    by_meaning = config.embedding_threshold is not None
    vectors = _vectors(items, benchmarks, tools.embedding) if by_meaning and tools.embedding is not None else None
    verdict = decontaminate(
        [item.id for item in items],
        texts=[_held_text(item.messages, *item.completions) for item in items],
        benchmarks=benchmarks,
        ngram=config.ngram,
        min_share=config.min_share,
        embeddings=vectors,
        threshold=_threshold(config, tools.embedding),
    )
    notes = (NO_VECTORS,) if vectors is None and by_meaning else ()
    return replace(left(items, verdict, num_questions=float(len(benchmarks))), notes=notes)


def _threshold(config: DecontaminateConfig, embedding: Embedding | None) -> float:
    if config.embedding_threshold == "auto":
        return POLICY_THRESHOLD if embedding is not None and embedding.centred else THRESHOLD
    return config.embedding_threshold or 1.0


def _vectors(
    items: Sequence[Item], benchmarks: Sequence[BenchmarkText], embedding: Embedding
) -> tuple[Vectors, Vectors] | None:
    """Vectors of the rows' prompts and of the questions, from one model; None where it has none for prompts."""
    if embedding.prompts is None:
        return None
    found = embedding.prompts([*(item.prompt for item in items), *(question.text for question in benchmarks)])
    rows, questions = found[: len(items)], found[len(items) :]
    if not embedding.centred:
        return rows, questions
    mean = rows.mean(axis=0, keepdims=True)
    return rows - mean, questions - mean


def without_benchmarks(
    rows: Sequence[RowT],
    keep_out: KeepOutConfig | None,
    *,
    stage: str,
    benchmarks: Sequence[BenchmarkText] | None = None,
) -> tuple[list[RowT], list[DroppedRow]]:
    """(rows that contain no question of the benchmarks, the others with their reasons), each in input order.

    `benchmarks` are the questions, where they are loaded already. Without `keep_out` every row stays. A DataError
    where the benchmarks' data is wrong, or cannot be loaded.
    """
    if keep_out is None:
        return list(rows), []
    if benchmarks is None:
        benchmarks = benchmark_texts(keep_out.tasks, keep_out.include_path)
    index = BenchmarkIndex(benchmarks, ngram=keep_out.ngram, min_share=keep_out.min_share)
    drops = _by_words([row.id for row in rows], (_row_text(row) for row in rows), index)
    dropped = [row.model_copy(update={"stage": stage, "source": rows[number].source}) for number, row in drops.items()]
    return [row for number, row in enumerate(rows) if number not in drops], dropped


def _row_text(row: PreferenceRow | PromptRow | SftRow | PairRow) -> str:
    """All texts of a row that a model may be trained on, or sample for."""
    if isinstance(row, PairRow):
        return _held_text(row.messages, row.chosen, row.rejected)
    if not isinstance(row, PreferenceRow):
        return _held_text(row.messages)
    return _held_text(row.messages, row.chosen, row.rejected, *([] if row.edited is None else [row.edited]))


def _held_text(messages: Sequence[Message], *completions: str) -> str:
    return "\n\n".join([*(message.content for message in messages), *completions])


def left_out_line(dropped: Sequence[DroppedRow], *, num_in: int, what: str) -> str:
    """A line for the screen: how many rows (`what`, a plural) are left out, and the first of them."""
    first = dropped[0]
    line = "" if first.source is None or first.source.line is None else f", line {first.source.line}"
    file = "" if first.source is None else f" ({Path(first.source.file).name}{line})"
    hold, are = ("holds", "is") if len(dropped) == 1 else ("hold", "are")
    return (
        f"decontaminate: {len(dropped):,} of {num_in:,} {what} {hold} a question of the run's benchmarks and "
        f"{are} left out; the first: {first.id}{file} {first.reason}"
    )


@lru_cache(maxsize=4)
def benchmark_texts(tasks: tuple[str, ...], include_path: str | None) -> tuple[BenchmarkText, ...]:
    """Every question of the tasks: IFEval's prompts, MMLU's questions, and any other task's through lm-eval.

    A DataError where a task is unknown, or its data cannot be loaded.
    """
    local = local_texts(tasks, include_path)
    others = [task for task in tasks if not is_local(task, include_path)]
    if not others:
        return local
    from alignloop.evaluation.tasks import load_tasks

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it explains its own options for each task
    try:
        loaded = load_tasks(others, include_path=include_path).tasks
        return (*local, *(text for name, task in loaded.items() for text in task_texts(name, task)))
    finally:
        logger.setLevel(level)


def is_local(task: str, include_path: str | None) -> bool:
    """Whether a task's questions are read from a file or folder, without lm-eval."""
    return bool(_local_data([task], include_path))


def benchmark_files(tasks: Sequence[str], include_path: str | None) -> tuple[Artifact, ...]:
    """The local data of the tasks, with digests, for fingerprints; lm-eval's own tasks have none."""
    paths = [data.path for data in _local_data(tasks, include_path)]
    if include_path is not None and include_path != BUNDLED:
        paths.append(Path(include_path).expanduser())
    return tuple(Artifact.of(path) for path in paths if path.exists())


def _local_data(tasks: Sequence[str], include_path: str | None) -> list[LocalBenchmark]:
    found = (benchmark_data(task, bundled=include_path == BUNDLED) for task in tasks)
    return [data for data in found if data is not None]


@lru_cache(maxsize=4)
def local_texts(tasks: tuple[str, ...], include_path: str | None) -> tuple[BenchmarkText, ...]:
    """The questions of the tasks with local data, without lm-eval, whose import takes seconds.

    A DataError names file, line and field of wrong data, or a kind that reads no local data.
    """
    return tuple(text for data in _local_data(tasks, include_path) for text in _read(data))


def _read(data: LocalBenchmark) -> Iterator[BenchmarkText]:
    from alignloop.evaluation.ifeval import read_form
    from alignloop.evaluation.mmlu import read_mmlu, task_name
    from alignloop.evaluation.tasks import LOCAL, not_local

    if data.kind not in LOCAL:
        raise DataError(not_local(data))
    if data.kind == "ifeval":
        yield from _numbered(data.name, [row.prompt for _, row in read_form(data.path)])
        return
    # lm-eval's generative tasks have no options to score: there a short question stands alone.
    scored = data.kind == "mmlu"
    for subject in read_mmlu(data.path):
        questions = [_standing_alone(row["question"], row["choices"] if scored else []) for row in subject.test]
        yield from _numbered(task_name(subject.name, form="letter" if scored else "generated"), questions)


def _numbered(task: str, questions: Sequence[str]) -> list[BenchmarkText]:
    return [BenchmarkText(task, str(number), text) for number, text in enumerate(questions) if text.strip()]


def task_texts(name: str, task: Any) -> list[BenchmarkText]:
    """The questions of an lm-eval task, row by row, without shots and description."""
    return _numbered(name, [_question_text(task, doc) for doc in task.eval_docs])


def _question_text(task: Any, doc: Any) -> str:
    listed = isinstance(doc.get("choices"), list)
    choices: list[Any] = []
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = _options((doc["choices"] if listed else task.doc_to_choice(doc)) or [])
    question = doc.get("question") if listed else None
    text = question if isinstance(question, str) else task.doc_to_text(doc)
    if isinstance(text, int):  # of tasks that fill a gap: which of the options begins the text
        text = choices[text] if 0 <= text < len(choices) else ""
    if isinstance(text, list):
        text = "\n".join(str(part) for part in text)
    return _standing_alone(str(text), choices)


def _standing_alone(text: str, choices: Sequence[Any]) -> str:
    return text if len(words(text)) >= MIN_WORDS else "\n".join([text, *_options(choices)])


def _options(choices: Sequence[Any]) -> list[str]:
    """Options as texts; single letters are none."""
    return [str(choice) for choice in choices if len(str(choice).strip()) > 1]
