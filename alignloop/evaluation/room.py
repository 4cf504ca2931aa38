"""Whether the questions, shots included, fit the engine's context: known before the engine starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignloop.errors import DataError

if TYPE_CHECKING:
    from alignloop.evaluation.lm import EngineLM
    from alignloop.evaluation.tasks import LoadedTasks

AS_CHAT: dict[str, Any] = {"apply_chat_template": True, "fewshot_as_multiturn": True}
"""How every task's messages are built: each shot is a turn of its own."""


@dataclass(frozen=True)
class TooLong:
    """Attributes:
    task: its name.
    num_long, num_asked: questions that do not fit, of those asked.
    num_shots: examples before each.
    longest: tokens that the longest takes up, the first token of its answer included.
    """

    task: str
    num_long: int
    num_asked: int
    num_shots: int
    longest: int

    def __str__(self) -> str:
        shots = f" with {self.num_shots} shots before each" if self.num_shots else ""
        return f"{self.task}: {self.num_long} of {self.num_asked} questions{shots} (the longest needs {self.longest})"


def require_room(loaded: LoadedTasks, *, lm: EngineLM, limit: int | None) -> None:
    """Build all tasks' requests, as lm-eval does again, and measure them.

    Raises:
        DataError: some do not fit; names each task with the number of its questions.
    """
    found = []
    for name, task in loaded.tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise DataError(
                f"evaluate.tasks: {name} runs code that the model writes, on this machine and without a sandbox: "
                "alignloop does not run it."
            )
        if getattr(task, "MULTIMODAL", False):
            raise DataError(f"evaluate.tasks: {name} shows images; alignloop's engines read text alone.")
        task.build_all_requests(limit=limit, chat_template=lm.apply_chat_template, **AS_CHAT)
        lengths: dict[int, int] = {}
        for request in task.instances:
            key = int(request.doc_id or 0)
            lengths[key] = max(lengths.get(key, 0), lm.num_tokens(request))
        num_long = sum(length > lm.limits.max_model_len for length in lengths.values())
        if num_long:
            shots = int(task.get_config("num_fewshot") or 0)
            found.append(TooLong(name, num_long, len(lengths), shots, max(lengths.values())))
    refuse(found, max_model_len=lm.limits.max_model_len)


def refuse(found: Sequence[TooLong], *, max_model_len: int) -> None:
    """Raise a DataError where anything is `found` not to fit."""
    if not found:
        return
    longest = max(task.longest for task in found)
    lines = "".join(f"\n  {task}" for task in found)
    fewer = ", or give fewer shots (mmlu=FOLDER takes as many as dev/ has)" if any(t.num_shots for t in found) else ""
    raise DataError(
        f"evaluate: questions that do not fit the context of {max_model_len} tokens:{lines}\nRaise "
        f"engine.max_model_len to {longest} or more, if the model has as many positions{fewer}."
    )
