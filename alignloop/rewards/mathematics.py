"""Mathematical equality, as TRL's `accuracy_reward` has it: the answer and the solution are parsed and compared."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from alignloop.errors import UserError
from alignloop.rewards.rows import Messages, by_row


def math_equal(
    prompts: Sequence[Messages], completions: Sequence[Messages], solution: Sequence[Any], **columns: Any
) -> list[float | None]:
    r"""1 where the answer's `\boxed{...}` (or its "final answer is $...$") equals the row's solution, else 0.

    TRL's `accuracy_reward` decides, by math-verify: `\frac{1}{3}` equals `1/3`, units are taken off. It does not see
    the reasoning before the answer.

    Args:
        solution: in LaTeX or plain (`72`); None comes back where it cannot be parsed.

    Raises:
        UserError: math-verify is not installed, or this is not the main thread.
    """
    if find_spec("math_verify") is None:
        raise UserError(
            "reward function alignloop.rewards:math_equal: the package math-verify is not installed: "
            "pip install math-verify"
        )
    if threading.current_thread() is not threading.main_thread():
        # What a model writes may take for ever to compute (`9^{9^{9^9}}`), and the time limit is a signal's.
        raise UserError(
            "reward function alignloop.rewards:math_equal: math-verify's time limits work in the main thread alone: "
            "call it there"
        )
    return by_row(_is_equal, solution, name="math_equal", prompts=prompts, completions=completions)


def _is_equal(answer: str, solution: object) -> float | None:
    from trl.rewards import accuracy_reward

    (value,) = accuracy_reward([[{"role": "assistant", "content": answer}]], [str(solution)])
    return value
