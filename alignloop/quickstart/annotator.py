"""The simulated annotator: lm-eval's own IFEval checkers on training prompts, in place of people.

The Llama 3 loop lives on people who compare each round's new completions. The quickstart compares them by what can be
checked: instructions met, then simple flaws. It knows the instructions from `meta` of the *training* prompts;
benchmark prompts never come here.
"""

from __future__ import annotations

import logging
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from alignloop.chat.reasoning import answer_of
from alignloop.errors import DataError
from alignloop.evaluation.ifeval import load_checkers
from alignloop.judging.annotate import preference
from alignloop.records import CandidateRow, PreferenceRow, PromptRow, Strength

ANNOTATOR = "simulated"
_MAX_WORDS = 80
TURNED = 0.05
"""Share of the comparisons that come out the wrong way round, as people's do."""
UNDERSTATED = 0.2
"""Share of the comparisons whose strength is said one step too low."""
TASTE = 0.1
"""Share of the pairs of equally good answers that are told apart all the same: `marginally_better`, either way."""
_LOWER: Mapping[Strength, Strength] = {"significantly_better": "better", "better": "slightly_better"}


@cache
def ifeval_checkers() -> ModuleType:
    """lm-eval's `tasks.ifeval.utils`, without its message about nltk's sentence data, which nothing here needs."""
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)
    return load_checkers()


def check(meta: Mapping[str, Any], response: str, *, prompt: str = "") -> list[bool]:
    """Which of the prompt's demands the response meets: one bool per instruction, or one for a right answer.

    Args:
        meta: `instruction_id_list` and `kwargs` as in IFEval, or `answer` and `options` for a question.
        prompt: text of the prompt, which some IFEval checkers need.

    Raises:
        DataError: meta has neither, or an unknown instruction type.
    """
    if meta.get("instruction_id_list"):
        return _followed(meta, response, prompt)
    if meta.get("answer"):
        return [_is_right(meta, response)]
    raise DataError(
        f"prompt {prompt[:60]!r}: meta has neither `instruction_id_list` (with `kwargs`) nor `answer` (keys found: "
        f"{sorted(meta)}); the simulated annotator can only judge what can be checked. Add them, or set "
        "`collect.annotator: none`."
    )


def demands_met(
    prompts: Sequence[Sequence[Mapping[str, str]]],
    completions: Sequence[Sequence[Mapping[str, str]]],
    **columns: Sequence[Any],
) -> list[float | None]:
    """Share of the demands that each answer meets, called as a reward function is; None where there are none to check.

    Raises as `check`.
    """
    found: list[float | None] = []
    for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        meta = {name: values[place] for name, values in columns.items() if values[place] is not None}
        if not meta.get("instruction_id_list") and not meta.get("answer"):
            found.append(None)
            continue
        met = check(meta, answer_of(completion[0]["content"]), prompt=prompt[-1]["content"])
        found.append(sum(met) / len(met))
    return found


def _followed(meta: Mapping[str, Any], response: str, prompt: str) -> list[bool]:
    utils = ifeval_checkers()
    ids, kwargs = list(meta["instruction_id_list"]), list(meta.get("kwargs") or [])
    if len(ids) != len(kwargs):
        raise DataError(f"prompt {prompt[:60]!r}: {len(ids)} instructions but {len(kwargs)} kwargs; give one each")
    example = utils.InputExample(key=0, instruction_id_list=ids, prompt=prompt, kwargs=kwargs)
    try:
        followed: list[bool] = utils.test_instruction_following_strict(example, response).follow_instruction_list
    except KeyError as error:
        raise DataError(f"prompt {prompt[:60]!r}: lm-eval has no instruction type {error}") from error
    return followed


def _is_right(meta: Mapping[str, Any], response: str) -> bool:
    """The answer is named and no other option is."""
    options = {meta["answer"], *meta.get("options", ())}
    named = {value for value in options if re.search(rf"\b{re.escape(value.lower())}\b", response.lower())}
    return named == {meta["answer"]}


def num_flaws(meta: Mapping[str, Any], text: str) -> int:
    """How many of these an answer has: repeats itself, leaves a topic out, too long, too short for what was asked,
    ends in the middle of a sentence."""
    words = re.findall(r"\w+", text.lower())
    topics = () if meta.get("answer") else meta.get("topics", ())
    leaves_out = any(str(topic).lower() not in text.lower() for topic in topics)
    num_words = len(words)
    is_long, is_short = num_words > meta.get("max_words", _MAX_WORDS), num_words < meta.get("min_words", 0)
    breaks_off = not meta.get("answer") and not re.search(r"[^\w\s,]\s*$", text)
    return sum((repeats(words), leaves_out, is_long, is_short, breaks_off))


def repeats(words: Sequence[str], *, size: int = 4) -> bool:
    """Whether some run of `size` words occurs three times or more."""
    runs = Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))
    return max(runs.values(), default=0) >= 3


def annotate(pairs: Sequence[tuple[PromptRow, CandidateRow, CandidateRow]], *, seed: int) -> list[PreferenceRow]:
    """Compare pairs of completions of training prompts, by their answers alone: thoughts need not meet the demands.

    Ties are left out, but for `TASTE` of them; of the others, drawn by `seed`, `TURNED` are turned round and
    `UNDERSTATED` called less clear than they are. A pair is (prompt, candidate, candidate), finished and with text;
    `prompt.meta` is as `check` wants it.

    Raises:
        DataError: a prompt's meta has nothing to check.
    """
    rows = (_compare(prompt, first, second, seed=seed) for prompt, first, second in pairs)
    return [row for row in rows if row is not None]


def _compare(prompt: PromptRow, first: CandidateRow, second: CandidateRow, *, seed: int) -> PreferenceRow | None:
    text = prompt.messages[-1].content
    answers = [answer_of(candidate.completion) for candidate in (first, second)]
    met = [check(prompt.meta, answer, prompt=text) for answer in answers]
    flaws = [num_flaws(prompt.meta, answer) for answer in answers]
    strength = strength_of(met[0], met[1], flaws[0] - flaws[1])
    better_first = _score(met[0], flaws[0]) > _score(met[1], flaws[1])
    draw = random.Random(f"{seed}/{first.id}/{second.id}")
    if answers[0].strip() == answers[1].strip():
        return None
    if strength is None:
        if draw.random() >= TASTE:
            return None
        strength, better_first = "marginally_better", draw.random() < 0.5
    else:
        better_first ^= draw.random() < TURNED
        strength = _LOWER[strength] if draw.random() < UNDERSTATED else strength
    chosen, rejected = (first, second) if better_first else (second, first)
    return preference(prompt, chosen, rejected, strength=strength, annotator=ANNOTATOR, compared_by="simulated")


def _score(met: Sequence[bool], flaws: int) -> float:
    return sum(met) / len(met) + (1.0 if all(met) else 0.0) - 1.0 * flaws


def strength_of(first: Sequence[bool], second: Sequence[bool], flaw_gap: int) -> Strength | None:
    """How far apart two completions are, by demands met and the first's flaws minus the other's; None: a tie.

    `significantly_better`: all demands met against not all of them; `better`: another demand met, or a flaw less.
    """
    gap = abs(_score(first, max(flaw_gap, 0)) - _score(second, max(-flaw_gap, 0)))
    if gap < 1e-9:
        return None
    return "significantly_better" if gap >= 1.5 else "better"
