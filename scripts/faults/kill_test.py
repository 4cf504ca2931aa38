"""`kill -9` of a run's main process, engine and training workers, spread evenly over it: the result is the same bytes.

    unbroken run ──► seconds of its stages, digests of what it published
    run 1 ──kill──► go on ──kill──► go on ... ──► the end ──► the same digests?  no orphan?  no temporary file?
    run 2 ...

Kill i of N lies in the middle of the i-th of N equal parts of the unbroken run's time. Each directory takes every n-th
of them, in order, so that the whole takes bearable time. Of the kinds of process that run at that moment the one is
killed that was killed least often so far: workers run in some stages only. After a kill of the engine the run goes on
by itself; after one of the main process or of a worker the same command is given again. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.faults.digests import RECIPE, Outcome, differences, published, whole
from scripts.faults.running import KINDS, POLL_SECONDS, START, At, Kind, Run, RunFailedError

KILLS, QUICK_KILLS, KILLS_A_RUN = 50, 3, 7
COLUMNS = ("kill", "run", "process", "stage", "seconds into it", "what went on", "equal")
HEADING = f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|"


@dataclass
class Kill:
    """One kill: in which directory, where the run was and for how long, what went on afterwards, and what differs from
    the unbroken run, orphans and temporary files included."""

    number: int
    run: int
    process: Kind
    stage: str
    seconds: float
    resumed: str = "the run itself, with a new engine"
    wrong: list[str] = field(default_factory=list)

    def row(self) -> str:
        equal = "yes" if not self.wrong else f"no: {'; '.join(self.wrong)}"
        cells = (self.number, self.run, self.process, f"`{self.stage}`", f"{self.seconds:.1f}", self.resumed, equal)
        return f"| {' | '.join(map(str, cells))} |"


def points(spans: Sequence[At], *, num: int) -> list[At]:
    """The middles of `num` equal parts of the time: the stage each lies in, and the seconds into it.

    >>> points([At("start", 2.0), At("a", 2.0)], num=2)
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


class KillTest:
    """Kills the runs of one directory after another; `kills` are the results."""

    def __init__(self, expected: Outcome, *, work: Path, arguments: Sequence[str]) -> None:
        self._expected, self._work, self._arguments = expected, work, arguments
        self.kills: list[Kill] = []

    def run(self, number: int, wanted: Sequence[tuple[int, At]]) -> None:
        """Kill one run at each of the points, in order, then let it end."""
        run = Run(self._work / f"run-{number:02d}", self._arguments)
        try:
            run.start()
            for index, point in wanted:
                while run.is_running and not _reached(run, point):
                    time.sleep(POLL_SECONDS)
                if not run.is_running:
                    break  # it ended before the point: it was slower when it was measured
                self._kill(run, index=index, number=number)
            self._let_end(run, number)
        finally:
            run.end()

    def _kill(self, run: Run, *, index: int, number: int) -> None:
        alive = run.processes()
        so_far = Counter(kill.process for kill in self.kills)
        kind = min((kind for kind in KINDS if alive[kind]), key=lambda kind: so_far[kind])
        now = run.at()
        kill = Kill(index + 1, number, kind, now.stage, round(now.seconds, 2))
        others = run.kill(kind)
        if kind != "engine":
            code = run.wait()
            kill.wrong += [f"orphan: {line}" for line in run.left_behind(others)]
            kill.resumed = f"the next call, from {now.stage} ({', '.join(run.kept(now.stage)) or 'from its start'})"
            if kind == "worker" and code != 1:
                kill.wrong.append(f"the run ended with {code} after its worker was killed")
        kill.wrong += self._checked(published(run.dir), partly=True)
        self.kills.append(kill)
        print(kill.row(), flush=True)
        if kind != "engine":
            run.start()

    def _let_end(self, run: Run, number: int) -> None:
        code = run.wait()
        mine = [kill for kill in self.kills if kill.run == number]
        wrong = [f"the last call ended with {code}: see {run.folder / 'output.txt'}"]
        if code == 0:
            wrong = self._checked(whole(run.dir), partly=False)
        wrong += [f"left in the temporary folder: {name}" for name in run.temporary_files()]
        for kill in mine:
            kill.wrong += wrong
        print(f"run {number}: {len(mine)} kills, {run.num_calls} calls: {'; '.join(wrong) or 'equal'}", flush=True)

    def _checked(self, found: Outcome, *, partly: bool) -> list[str]:
        return [f"differs: {name}" for name in differences(self._expected, found, partly=partly)]


def _reached(run: Run, point: At) -> bool:
    """Whether the point is reached, or the end of its stage if that comes first."""
    now = run.at()
    over = now.stage != START if point.stage == START else run.is_published(point.stage)
    return over or (now.stage == point.stage and now.seconds >= point.seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """0 where every kill left the same bytes, no process and no temporary file; 1 otherwise."""
    options = _options(argv)
    num = options.kills or (QUICK_KILLS if options.quick else KILLS)
    num_runs = max(1, -(-num // options.kills_a_run))
    work = options.work or Path(tempfile.mkdtemp(prefix="kill-test-"))
    arguments = [str(RECIPE), *(part for value in options.set or () for part in ("--set", value))]
    started = time.monotonic()
    unbroken = Run(work / "unbroken", arguments)
    try:
        unbroken.start()
        spans = unbroken.spans()
    except RunFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        unbroken.end()
    seconds = sum(span.seconds for span in spans)
    print(f"unbroken run: {seconds:.0f} s; {num} kills in {num_runs} runs\n\n{HEADING}", flush=True)
    test = KillTest(whole(unbroken.dir), work=work, arguments=arguments)
    at = list(enumerate(points(spans, num=num)))
    for number in range(num_runs):
        test.run(number + 1, at[number::num_runs])
    return _report(options, test.kills, spans, work=work, missed=num - len(test.kills), took=time.monotonic() - started)


def _report(
    options: argparse.Namespace, kills: list[Kill], spans: Sequence[At], *, work: Path, missed: int, took: float
) -> int:
    """The summary, the table and the JSON file; the runs are removed where all is well."""
    bad = any(kill.wrong for kill in kills)
    print(f"\n{len(kills)} kills, {sum(bool(kill.wrong) for kill in kills)} not equal, {took / 60:.0f} minutes")
    if missed:
        print(f"{missed} points were not reached: a run ended before them")
    print("\n".join(["", HEADING, *(kill.row() for kill in sorted(kills, key=lambda kill: kill.number))]))
    if options.json:
        stages = {span.stage: round(span.seconds, 2) for span in spans}
        rows = [asdict(kill) | {"equal": not kill.wrong} for kill in kills]
        values = {"stages": stages, "kills": rows, "seconds": round(took, 1)}
        options.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    if bad:
        print(f"the runs lie in {work}", file=sys.stderr)
    elif options.work is None:
        shutil.rmtree(work)
    return int(bad)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/kill_test", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, help=f"default {KILLS}")
    parser.add_argument("--kills-a-run", type=int, default=KILLS_A_RUN, help="in one directory")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_KILLS} kills")
    parser.add_argument("--set", action="append", metavar="A.B=VALUE", help="as for `alignloop run`")
    parser.add_argument("--work", type=Path, help="an empty folder for the runs, which stay there")
    parser.add_argument("--json", type=Path, help="write kills and stage times there")
    options = parser.parse_args(argv)
    if (options.kills is not None and options.kills < 1) or options.kills_a_run < 1:
        parser.error("--kills and --kills-a-run must be at least 1")
    if options.work and options.work.exists() and (not options.work.is_dir() or any(options.work.iterdir())):
        parser.error(f"--work {options.work}: is no empty folder")
    if options.json and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
        parser.error(f"--json {options.json}: no file can be written there")
    return options


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the run at work ends with this
    sys.exit(main())
