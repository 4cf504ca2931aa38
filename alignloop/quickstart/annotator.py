"""The simulated annotator: lm-eval's own IFEval checkers on training prompts, in place of people.

The Llama 3 loop lives on people who compare each round's new completions. The quickstart compares them by what can be
checked: instructions met, then simple flaws, with slips such as people make. It knows the instructions from `meta` of
the *training* prompts; benchmark prompts never come here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignloop.chat.reasoning import answer_of
from alignloop.errors import DataError
from alignloop.judging.by_function import FunctionAnnotator, Slips
from alignloop.rewards.instructions import followed
from alignloop.rewards.rows import Messages

_MAX_WORDS = 80


def check(meta: Mapping[str, Any], response: str, *, prompt: str = "") -> list[bool]:
    """Which of the prompt's demands the response meets: one bool per instruction, or one for a right answer.

    Args:
        meta: `instruction_id_list` and `kwargs` as in IFEval, or `answer` and `options` for a question.
        prompt: text of the prompt, which some IFEval checkers need.

    Raises:
        DataError: meta has neither, or an unknown instruction type.
    """
    if meta.get("instruction_id_list"):
        ids, arguments = list(meta["instruction_id_list"]), list(meta.get("kwargs") or [])
        try:
            return followed(response, ids=ids, arguments=arguments, prompt=prompt)
        except ValueError as error:
            raise DataError(f"prompt {prompt[:60]!r}: {error}") from error
    if meta.get("answer"):
        return [_is_right(meta, response)]
    raise DataError(
        f"prompt {prompt[:60]!r}: meta has neither `instruction_id_list` (with `kwargs`) nor `answer` (keys found: "
        f"{sorted(meta)}); the simulated annotator can only judge what can be checked. Add them, or set "
        "`collect.annotator: none`."
    )


def demands_met(
    prompts: Sequence[Messages], completions: Sequence[Messages], **columns: Sequence[Any]
) -> list[float | None]:
    """Share of the demands that each answer meets, called as a reward function is; None where there are none to check.

    Raises as `check`.
    """
    return _by_meta(_share, prompts, completions, columns)


def quality(
    prompts: Sequence[Messages], completions: Sequence[Messages], **columns: Sequence[Any]
) -> list[float | None]:
    """What the simulated annotator compares by: `quality_of` each answer, called as a reward function is; None where
    there are no demands to check. Raises as `check`."""

    def rule(meta: Mapping[str, Any], answer: str, prompt: str) -> float:
        return quality_of(check(meta, answer, prompt=prompt), num_flaws=num_flaws(meta, answer))

    return _by_meta(rule, prompts, completions, columns)


def quality_of(met: Sequence[bool], *, num_flaws: int) -> float:
    """Share of the demands met, one point for all of them, one less for each flaw."""
    return sum(met) / len(met) + (1.0 if all(met) else 0.0) - 1.0 * num_flaws


SIMULATED = FunctionAnnotator(
    f"{__name__}:{quality.__name__}",
    name="simulated",
    compared_by="simulated",
    # All demands met against not all of them; else another demand met, or a flaw less.
    strength_gaps=(1.5, 0.0, 0.0),
    slips=Slips(turned=0.05, understated=0.2, taste=0.1),
)
"""`collect.annotator: simulated`."""


def _by_meta(
    rule: Callable[[Mapping[str, Any], str, str], float],
    prompts: Sequence[Messages],
    completions: Sequence[Messages],
    columns: Mapping[str, Sequence[Any]],
) -> list[float | None]:
    """`rule(columns of the row, answer, prompt)` where the row says what is demanded."""
    found: list[float | None] = []
    for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        meta = {name: values[place] for name, values in columns.items() if values[place] is not None}
        demands = meta.get("instruction_id_list") or meta.get("answer")
        answer = answer_of(completion[0]["content"])
        found.append(rule(meta, answer, prompt[-1]["content"]) if demands else None)
    return found


def _share(meta: Mapping[str, Any], answer: str, prompt: str) -> float:
    met = check(meta, answer, prompt=prompt)
    return sum(met) / len(met)


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
