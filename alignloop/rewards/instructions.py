"""IFEval's verifiable instructions (Zhou et al. 2023, arXiv 2311.07911), by lm-eval's own checkers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from alignloop.evaluation.ifeval import load_checkers, preserved_random, require_sentence_data
from alignloop.rewards.rows import Messages, by_row


def instructions_followed(
    prompts: Sequence[Messages],
    completions: Sequence[Messages],
    instruction_id_list: Sequence[Any],
    kwargs: Sequence[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Share of a row's instructions that the answer follows, strictly: 1 where it follows all.

    Args:
        instruction_id_list: types, as in IFEval's published form.
        kwargs: an object of arguments for each.

    Raises:
        DataError: an unknown type, wrong arguments, or nltk's sentence data are needed and not installed.
    """
    texts = [prompt[-1]["content"] for prompt in prompts]
    arguments = [one or [] for one in kwargs] if kwargs is not None else [[] for _ in prompts]
    given = (instruction_id_list, arguments, texts)
    return by_row(_share, *given, name="instructions_followed", prompts=prompts, completions=completions)


def _share(answer: str, ids: Sequence[str], arguments: Sequence[Mapping[str, Any]], prompt: str) -> float | None:
    if not ids:
        return None
    met = followed(answer, ids=ids, arguments=arguments, prompt=prompt)
    return sum(met) / len(met)


def followed(answer: str, *, ids: Sequence[str], arguments: Sequence[Mapping[str, Any]], prompt: str) -> list[bool]:
    """Which of the instructions the answer follows, by `test_instruction_following_strict`.

    Args:
        arguments: one mapping an instruction; what is left open is drawn, the same way each time.
        prompt: text of the prompt, which some checkers need.

    Raises:
        ValueError: not one `kwargs` an instruction, an unknown type, or arguments that its checker refuses.
        DataError: a type needs nltk's sentence data, which are not installed.
    """
    if len(ids) != len(arguments):
        raise ValueError(f"{len(ids)} instructions but {len(arguments)} kwargs; give one each")
    require_sentence_data(ids, where=f"prompt {prompt[:60]!r}")
    utils = ifeval_checkers()
    example = utils.InputExample(key=0, instruction_id_list=list(ids), prompt=prompt, kwargs=list(arguments))
    try:
        with preserved_random(0):
            verdicts: list[bool] = utils.test_instruction_following_strict(example, answer).follow_instruction_list
    except KeyError as error:
        raise ValueError(f"lm-eval has no instruction type {error}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"kwargs {list(arguments)} do not fit {list(ids)}: {error}") from error
    return verdicts


@cache
def ifeval_checkers() -> ModuleType:
    """lm-eval's `tasks.ifeval.utils`, without its message about nltk's sentence data, which most types do not need."""
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)
    return load_checkers()
