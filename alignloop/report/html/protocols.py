"""Which figures were measured alike: numbers of different protocols never stand in one line."""

from __future__ import annotations

from alignloop.evaluation.comparing import protocol_changes
from alignloop.evaluation.report import EvalReport, Protocol


def why_different(one: EvalReport | None, other: EvalReport | None, task: str) -> list[str]:
    """In what the protocols of a task differ; empty where they are the same, or one is not known.

    A group's tasks (`mmlu_law` of `mmlu`) count, and what other tasks were asked with does not.
    """
    if one is None or other is None:
        return []
    return protocol_changes(_of_task(one.protocol, task), _of_task(other.protocol, task))


def task_of(key: str) -> str:
    """`ifeval/mean` -> `ifeval`."""
    return key.partition("/")[0]


def _of_task(protocol: Protocol, task: str) -> Protocol:
    tasks = {name: how for name, how in protocol.tasks.items() if name == task or name.startswith(f"{task}_")}
    # What the seed decides about a question is in the digest of what was sent.
    return protocol.model_copy(update={"tasks": tasks, "groups": {}, "seed": 0})
