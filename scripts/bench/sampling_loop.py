#!/usr/bin/env python3
"""One whole quickstart, with the warm engine or with an engine started anew for each use.

    scripts/bench/sampling_loop.py warm --rounds 6 --run-dir runs/bench-warm
    scripts/bench/sampling_loop.py cold --rounds 6 --run-dir runs/bench-cold

`warm` is alignloop as it is. `cold` is the same loop and the same stages with another engine under them: each use,
which is a sample or an evaluate stage, starts vLLM with its default arguments in a new process. The run directory must
be new. Prints one JSON object; everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import Completion, Engine, GenerateRequest, Loglikelihood, LoglikelihoodRequest
from alignloop.loop.run import run as loop
from alignloop.progress import PlainProgress
from scripts.bench.sampling_vllm import DefaultVllm, VllmProcess

Side = Literal["warm", "cold"]
SIDES: tuple[Side, Side] = ("warm", "cold")
OPEN_ENGINE = "open_engine"
"""Of `alignloop.engines.open`: where the loop gets its engine from."""


class ColdEngine:
    """An `Engine` as scripts do without one: vLLM is started for a checkpoint, used, and ended.

    A use ends when the engine is put to sleep (something trains, scores or embeds) or another checkpoint is loaded.
    """

    def __init__(self, config: EngineConfig, *, log_file: Path, say: Callable[[str], None]) -> None:
        self._config, self._log_file, self._say = config, log_file, say
        self._checkpoint: Path | None = None
        self._process: VllmProcess | None = None
        self._num_starts = 0

    @property
    def num_starts(self) -> int:
        return self._num_starts

    def load_weights(self, checkpoint: Path) -> None:
        if checkpoint != self._checkpoint:
            self.close()
        self._checkpoint = checkpoint

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        completions: list[list[Completion]] = self._ask("generate", list(requests))
        return completions

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        scored: list[Loglikelihood] = self._ask("loglikelihood", list(requests))
        return scored

    def sleep(self) -> None:
        self.close()

    def wake(self) -> None:
        """It starts at its next use."""

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, verb: str, *arguments: Any) -> Any:
        assert self._checkpoint is not None, "stages load weights before they use an engine"
        if self._process is None:
            self._num_starts += 1
            self._say(f"engine: start {self._num_starts}, vLLM's default way, log in {self._log_file}")
            self._process = VllmProcess(
                DefaultVllm, self._config, self._checkpoint, environment=os.environ, log=self._log_file
            )
        return self._process.call(verb, *arguments)


def run(side: Side, *, rounds: int, run_dir: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Wall seconds of the run, its engine starts, and its rounds' benchmarks."""
    if side == "cold":
        from alignloop.engines import open as opening

        def open_cold(config: EngineConfig, *, log_file: Path, say: Callable[[str], None]) -> Engine:
            return ColdEngine(config, log_file=log_file, say=say)

        setattr(opening, OPEN_ENGINE, open_cold)
    progress = PlainProgress(interval=30.0)
    result = loop("quickstart", rounds=rounds, run_dir=run_dir, overrides=overrides, progress=progress)
    return {
        "side": side,
        "rounds": rounds,
        "seconds": result.seconds,
        "engine_starts": result.num_engine_starts,
        "metrics": [row.metrics for row in result.rounds],
    }


def main() -> int:
    arguments = _parser().parse_args()
    # stdout is for the result alone: stages and libraries print as they like.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    done = run(arguments.side, rounds=arguments.rounds, run_dir=arguments.run_dir, overrides=arguments.overrides)
    print(json.dumps(done), file=out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--run-dir", type=_new_folder, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", dest="overrides", help="recipe override")
    return parser


def _new_folder(text: str) -> Path:
    path = Path(text)
    if path.exists():
        raise argparse.ArgumentTypeError(f"{path} is there already: stages it holds would not be run again")
    return path


if __name__ == "__main__":
    sys.exit(main())
