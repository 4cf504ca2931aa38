"""Damaged and made-up inputs against the readers of data, recipes and judges' answers.

A finding is an error that is not one of ours, or more than two seconds for one input. Hypothesis makes the inputs, and
of one that is found the smallest that does the same; it is printed and kept. The same seed makes the same inputs.
"""

from __future__ import annotations

import argparse
import faulthandler
import math
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import hypothesis

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.faults.targets import TARGETS, Target

SLOW_SECONDS = 2.0
HANG_SECONDS = 120
"""An input that takes so long ends the script, with where it is; the input is on disk."""
MEMORY_BYTES = 6 << 30
SHOWN_BYTES = 300
MOST_BYTES = 200_000
"""Of an input: larger ones take long, and find nothing more."""
SETTINGS = hypothesis.settings(
    max_examples=20,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    report_multiple_bugs=False,
    print_blob=False,
)
"""Of one round; rounds follow each other until the time is up."""


class Fuzz:
    """A target at work: `num` inputs so far, the most seconds one took; kind of finding -> the file it is kept in."""

    def __init__(self, name: str, target: Target, *, out: Path) -> None:
        self._name, self._target, self._out = name, target, out
        self.num, self.slowest = 0, 0.0
        self.kept: dict[str, Path] = {}

    def run(self, *, seconds: float, seed: int) -> None:
        end, turn = time.monotonic() + seconds, 0
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            print(f"{self._name}: the input at hand lies in {folder}, should it end the process itself", flush=True)

            @SETTINGS
            @hypothesis.given(self._target.inputs)
            def read(made: tuple[bytes, str]) -> None:
                hypothesis.assume(len(made[0]) <= MOST_BYTES)
                self._read(Path(folder, made[1]), made[0])

            while time.monotonic() < end:
                turn += 1
                try:
                    hypothesis.seed(seed * 1_000_000 + turn)(read)()
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    frames = traceback.extract_tb(error.__traceback__)
                    ours = next((frame for frame in reversed(frames) if "alignloop" in frame.filename), frames[-1])
                    kind = f"{type(error).__name__} from {Path(ours.filename).name}:{ours.lineno} {ours.name}"
                    # Hypothesis reads the smallest such input last.
                    self._keep(kind, details="".join(traceback.format_exception(error)))

    def _read(self, file: Path, content: bytes) -> None:
        self._last = file.name, content
        file.write_bytes(content)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=2)
        started = time.process_time()
        try:
            self._target.read(file)
        finally:
            faulthandler.cancel_dump_traceback_later()
            took = time.process_time() - started
            self.num, self.slowest = self.num + 1, max(self.slowest, took)
            file.unlink()
        if took > SLOW_SECONDS:
            self._keep("slow", details=f"{took:.1f} s of processor time")

    def _keep(self, kind: str, *, details: str) -> None:
        """Keep the input read last, where it is the first of its kind."""
        if kind in self.kept:
            return
        name, content = self._last
        self._out.mkdir(parents=True, exist_ok=True)
        path = self._out / f"{self._name}-{len(self.kept) + 1:02d}-{name}"
        path.write_bytes(content)
        path.with_name(path.name + ".txt").write_text(details, encoding="utf-8", errors="backslashreplace")
        self.kept[kind] = path
        cut = "" if len(content) <= SHOWN_BYTES else f" ... ({len(content):,} bytes)"
        print(f"FOUND {self._name}: {kind}\n  {content[:SHOWN_BYTES]!r}{cut}\n  kept in {path}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """0 where nothing was found, 1 otherwise."""
    options = _options(argv)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    faulthandler.enable()
    found = 0
    for name in options.target or TARGETS:
        fuzz = Fuzz(name, TARGETS[name](), out=options.out)
        fuzz.run(seconds=options.minutes * 60, seed=options.seed)
        found += len(fuzz.kept)
        print(
            f"{name}: {fuzz.num:,} inputs in {options.minutes:g} minutes, seed {options.seed}, slowest "
            f"{fuzz.slowest:.2f} s: {len(fuzz.kept) or 'no'} finding{'' if len(fuzz.kept) == 1 else 's'}",
            flush=True,
        )
    return 1 if found else 0


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
