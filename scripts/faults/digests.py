"""What a short run publishes, as a list of digests: written before a change that may not change a byte, checked after.

    copy of the code at a fixed path --run--> everything published --> NAME DIGEST, a line each --> written, or compared

Rows name the file they come from by its path, so the code runs from a copy that lies at the same path whatever checkout
it is of. Numbers depend on the processor's instructions and on the threads: the list says in its head which they were,
and a list of another machine says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from alignloop.artifacts import digest_of, fingerprint
from alignloop.run_dir.manifest import read_manifest
from scripts.bench.case import processor
from scripts.faults.running import Run, RunFailedError

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Path(__file__).with_name("kill_test.yaml")
FOLDER = Path(tempfile.gettempdir()) / "alignloop-digests"
"""Always the same: published files name it."""
COPIED = ("alignloop", "recipes")
HEAD = "# "
Outcome = Mapping[str, Any]
"""Name of a thing -> its digest or values."""
ROUNDS, TRAIN_LOG = "rounds.jsonl", "train_log.jsonl"
TIMES = ("seconds", "tokens_per_second")
"""Fields that say how long it took."""
FILES = ("differences.json", "recipe.yaml", "resolved.json")


def published(run_dir: Path) -> Outcome:
    """Of each published stage: its manifest but for the times, and the digests of its outputs on disk."""
    found: dict[str, Any] = {}
    for folder in sorted(path.parent for path in run_dir.glob("round-*/*/manifest.json")):
        manifest = read_manifest(folder)
        assert manifest is not None
        stage, outputs = f"{folder.parent.name}/{folder.name}", dict[str, Any]()
        values = manifest.model_dump(mode="json", exclude={"started", "ended", "seconds", "digest", "outputs"})
        found[stage] = values | {"outputs": outputs}
        for name, record in manifest.outputs.items():
            for one in record if isinstance(record, list) else [record]:
                is_log = Path(one.path).name == TRAIN_LOG  # its bytes are never the same
                outputs[f"{name}: {one.path}"] = one.rows if is_log else one.digest
                found[f"{stage}/{one.path}"] = _rows(folder / one.path) if is_log else digest_of(folder / one.path)
    return found


def whole(run_dir: Path) -> Outcome:
    """Also rounds but for their seconds, and every file of `final/`: all that is not time or path."""
    files = [run_dir / name for name in FILES]
    files += sorted(path for path in (run_dir / "final").rglob("*") if path.is_file())
    digests = {path.relative_to(run_dir).as_posix(): digest_of(path) for path in files if path.is_file()}
    return {**published(run_dir), ROUNDS: _rows(run_dir / ROUNDS), **digests}


def differences(expected: Outcome, found: Outcome, *, partly: bool) -> list[str]:
    """Names that differ; with `partly`, what is still missing is no difference."""
    return [name for name in (found if partly else {**expected, **found}) if expected.get(name) != found.get(name)]


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def digests_of(outcome: Outcome) -> dict[str, str]:
    """One digest a file, a manifest's field, or a file of rows whose times are left out."""
    found = {}
    for name, value in outcome.items():
        parts = {f"{name} {field}": part for field, part in value.items()} if isinstance(value, dict) else {name: value}
        for part_name, part in parts.items():
            found[part_name.replace(" ", "#")] = part if isinstance(part, str) else fingerprint(part)
    return dict(sorted(found.items()))


def head_of(arguments: Sequence[str]) -> dict[str, str]:
    """What a list is from: all but the commit must equal that of a run compared with it."""
    import torch

    changed = " and changes" if _git("status", "--porcelain", "--", *COPIED) else ""
    return {
        "commit": (_git("rev-parse", "HEAD") or "unknown") + changed,
        "folder": str(FOLDER),
        "processor": f"{processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{torch.get_num_threads()}",
        "run": " ".join(arguments),
    }


def _git(*arguments: str) -> str:
    """The output of git; empty outside a checkout."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def text_of(head: Mapping[str, str], digests: Mapping[str, str]) -> str:
    """The list as a file."""
    lines = [f"{HEAD}{name}: {value}" for name, value in head.items()]
    return "\n".join([*lines, *(f"{name} {digest}" for name, digest in digests.items())]) + "\n"


def read(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Head and digests of a list."""
    lines = text.splitlines()
    head = [line.removeprefix(HEAD).partition(": ") for line in lines if line.startswith(HEAD)]
    rows = [line.rpartition(" ") for line in lines if line and not line.startswith(HEAD)]
    return {name: value for name, _, value in head}, {name: digest for name, _, digest in rows}


def run_once(arguments: Sequence[str]) -> dict[str, str]:
    """The digests of one unbroken run of the code at its fixed path, which is removed.

    A RunFailedError where it ended with an error, or another call is using the path.
    """
    try:
        FOLDER.mkdir()
    except FileExistsError as error:
        raise RunFailedError(f"{FOLDER}: another call is at work there; where none is, remove it") from error
    run = Run(FOLDER / "unbroken", arguments)
    try:
        for name in COPIED:
            shutil.copytree(ROOT / name, FOLDER / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
        os.environ["PYTHONPATH"] = str(FOLDER / "code")
        run.start()
        run.spans()
        return digests_of(whole(run.dir))
    finally:
        run.end()
        shutil.rmtree(FOLDER)


def main(argv: Sequence[str] | None = None) -> int:
    """0 where the list was written, or is the same; 1 otherwise."""
    options = _options(argv)
    arguments = [options.recipe, *(["--rounds", str(options.rounds)] if options.rounds else [])]
    arguments += [part for value in options.set or () for part in ("--set", value)]
    head = head_of([Path(options.recipe).name, *arguments[1:]])
    try:
        digests = run_once(arguments)
    except RunFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.check:
        return compare(options.file, head, digests)
    options.file.write_text(text_of(head, digests), encoding="utf-8")
    print(f"{len(digests)} digests: {options.file}")
    return 0


def compare(file: Path, head: Mapping[str, str], digests: Mapping[str, str]) -> int:
    known_head, known = read(file.read_text(encoding="utf-8"))
    for name in ("folder", "processor", "threads", "run"):
        if known_head.get(name) != head[name]:
            print(f"{name}: {known_head.get(name)} -> {head[name]}: the two need not be the same")
    found = differences(known, digests, partly=False)
    for name in found:
        print(f"differs: {name}: {known.get(name, '(not there)')} -> {digests.get(name, '(not there)')}")
    print(f"{len(found)} of {len({*known, *digests})} differ from {file} ({known_head.get('commit')})")
    return 1 if found else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/digests", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="the list: written, or compared with")
    parser.add_argument("--check", action="store_true", help="compare with the list, and write nothing")
    parser.add_argument("--recipe", default=str(RECIPE), help="default: two short rounds of every stage")
    parser.add_argument("--rounds", type=int, help="as for `alignloop run`")
    parser.add_argument("--set", action="append", metavar="A.B=VALUE", help="as for `alignloop run`")
    options = parser.parse_args(argv)
    if options.check and not options.file.is_file():
        parser.error(f"{options.file}: no such list")
    if not options.check and (options.file.is_dir() or not options.file.absolute().parent.is_dir()):
        parser.error(f"{options.file}: no file can be written there")
    if Path(options.recipe).is_file():
        options.recipe = str(Path(options.recipe).resolve())  # the run has a folder of its own
    return options


if __name__ == "__main__":
    sys.exit(main())
