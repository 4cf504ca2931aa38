"""Damaged and made-up inputs against the readers of data, recipes and judges' answers.

A finding is an error that is not one of ours, or more than two seconds for one input; the input is printed and kept.
The same seed makes the same inputs.
"""

from __future__ import annotations

import argparse
import faulthandler
import math
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.faults.targets import TARGETS, Input, Target

SLOW_SECONDS, GIVE_UP_SECONDS = 2.0, 20.0
HANG_SECONDS = 120
"""An input that holds the interpreter itself for so long ends the script, with where it is; the input is on disk."""
MEMORY_BYTES = 6 << 30
SHOWN_BYTES = 300
MOST_BYTES = 200_000
"""Of an input: more takes its time, and says nothing."""


class GaveUpError(BaseException):
    """An input takes too long. No `Exception`, so that nothing takes it for an error of its own."""


class Findings:
    """What was found, each kind once: kind -> the file that the first input of it is kept in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: dict[str, Path] = {}

    def add(self, kind: str, target: str, made: Input, *, details: str) -> None:
        if kind in self.kept:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{target}-{len(self.kept) + 1:02d}-{made.name}"
        path.write_bytes(made.content)
        path.with_name(path.name + ".txt").write_text(details, encoding="utf-8", errors="backslashreplace")
        self.kept[kind] = path
        cut = "" if len(made.content) <= SHOWN_BYTES else f" ... ({len(made.content):,} bytes)"
        print(f"FOUND {target}: {kind}\n  {made.content[:SHOWN_BYTES]!r}{cut}\n  kept in {path}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """0 where nothing was found, 1 otherwise."""
    options = _options(argv)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sys.setrecursionlimit(1_000)
    faulthandler.enable()
    findings = Findings(options.out)
    for name in options.target or TARGETS:
        num, slowest = fuzz(name, TARGETS[name](), seconds=options.minutes * 60, seed=options.seed, findings=findings)
        found = sum(path.name.startswith(name) for path in findings.kept.values())
        print(
            f"{name}: {num:,} inputs in {options.minutes:g} minutes, seed {options.seed}, slowest {slowest:.2f} s: "
            f"{found or 'no'} finding{'' if found == 1 else 's'}",
            flush=True,
        )
    return 1 if findings.kept else 0


def fuzz(name: str, target: Target, *, seconds: float, seed: int, findings: Findings) -> tuple[int, float]:
    """Make and read inputs until the time is up; how many, and the most seconds one took."""
    draw = random.Random(f"{seed}/{name}")
    num, slowest, end = 0, 0.0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        print(f"{name}: the input at hand lies in {folder}, should the process itself be ended by it", flush=True)
        while time.monotonic() < end:
            while len((made := target.make(draw)).content) > MOST_BYTES:
                pass
            file = Path(folder, made.name)
            file.write_bytes(made.content)
            started = time.process_time()
            kind, details = _read(target, file)
            took = time.process_time() - started
            if took > SLOW_SECONDS and not kind:
                kind, details = "slow", f"{took:.1f} s of processor time"
            if kind:
                findings.add(kind, name, made, details=details)
            file.unlink()
            num, slowest = num + 1, max(slowest, took)
    return num, slowest


def _read(target: Target, file: Path) -> tuple[str, str]:
    """What went wrong, as the error and the place it comes from, and the traceback; empty where nothing did."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=2)
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, GIVE_UP_SECONDS)
    try:
        target.read(file)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = next((frame for frame in reversed(frames) if "alignloop" in frame.filename), frames[-1])
        where = f"{Path(ours.filename).name}:{ours.lineno} {ours.name}"
        return f"{type(error).__name__} from {where}", "".join(traceback.format_exception(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    return "", ""


def _give_up(signum: int, frame: FrameType | None) -> None:
    raise GaveUpError


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="of each target (default 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=tuple(TARGETS), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"), help="where findings are kept")
    options = parser.parse_args(argv)
    if not 0 < options.minutes < math.inf:
        parser.error("--minutes must be above 0")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out}: is no folder")
    return options


if __name__ == "__main__":
    sys.exit(main())
