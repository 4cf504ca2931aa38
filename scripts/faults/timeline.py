"""The stages of an unbroken run with their seconds, and points spread evenly over them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.faults.running import END, POLL_SECONDS, START, At, Run


@dataclass(frozen=True)
class Span:
    stage: str
    seconds: float


class RunFailedError(Exception):
    """A run that nobody killed ended with an error; says which."""


def watched(run: Run) -> list[Span]:
    """Wait for a run to end; how long each stage took, in order, with what came before the first and after the last.

    Raises:
        RunFailedError: it did.
    """
    changes: list[tuple[str, float]] = [(START, time.monotonic())]
    while run.is_running:
        stage = run.at().stage
        if stage != changes[-1][0] and (stage != END or changes[-1][0] != START):
            changes.append((stage, time.monotonic()))
        time.sleep(POLL_SECONDS)
    if run.wait() != 0:
        said = (run.folder / "output.txt").read_text(encoding="utf-8", errors="replace").strip()
        raise RunFailedError(
            f"the run that nobody kills failed (all it said: {run.folder / 'output.txt'}):\n{said[-500:]}"
        )
    ends = [began for _, began in changes[1:]] + [time.monotonic()]
    spans: dict[str, float] = {}
    for (stage, began), end in zip(changes, ends, strict=True):
        # Between two stages there is no open folder for a moment, which looks like the end.
        name = next(reversed(spans)) if stage == END and end is not ends[-1] else stage
        spans[name] = spans.get(name, 0.0) + end - began
    return [Span(stage, seconds) for stage, seconds in spans.items()]


def points(spans: Sequence[Span], *, num: int) -> list[At]:
    """The middles of `num` equal parts of the time: the stage each lies in, and the seconds into it.

    >>> points([Span("start", 2.0), Span("a", 2.0)], num=2)
    [At(stage='start', seconds=1.0), At(stage='a', seconds=1.0)]
    """
    total = sum(span.seconds for span in spans)
    found = []
    for index in range(num):
        left = (index + 0.5) / num * total
        for span in spans:
            if left < span.seconds or span is spans[-1]:
                found.append(At(span.stage, left))
                break
            left -= span.seconds
    return found
