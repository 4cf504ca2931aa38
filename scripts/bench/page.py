"""What the benchmarks' commands have in common: flags, checks of them, and the pages they write."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser, *, quick: str, work: str) -> None:
    """The flags of every benchmark.

    Args:
        quick, work: what `--quick` does, and what `--work` keeps.
    """
    parser.add_argument("--pairs", type=int, metavar="N", help="measurements of each side; default 3, with --quick 1")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores given to this process")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the values, as one flat object")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table")
    parser.add_argument("--date", default="", help="written above the table")
    parser.add_argument("--work", type=Path, help=work)


def check_flags(
    parser: argparse.ArgumentParser, options: argparse.Namespace, *, known: Iterable[str], counts: Sequence[str]
) -> None:
    """End the program with a message where a flag makes no sense.

    Args:
        known: the cases there are.
        counts: flags that take a number of at least one.
    """
    known = list(known)
    if unknown := [name for name in options.cases or () if name not in known]:
        parser.error(f"--cases: there is no case {', '.join(unknown)}; choose from {', '.join(known)}")
    for name in counts:
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name}: must be at least 1, not {value}")
    for path in (options.json, options.markdown):
        if path is not None and not path.resolve().parent.is_dir():
            parser.error(f"{path}: there is no folder {path.resolve().parent} to write it to")


def heading(options: argparse.Namespace, *, packages: Sequence[str], pairs: int) -> str:
    """Date, machine, versions and what the figures are medians of."""
    threads = options.threads or len(os.sched_getaffinity(0))
    date = f"{options.date}. " if options.date else ""
    quick = " Quick: a check, not a result." if options.quick else ""
    return (
        f"{date}{processor()}, {threads} thread{'s' if threads > 1 else ''}; Python {platform.python_version()}, "
        f"{', '.join(_versions(packages))}; medians of {pairs} pair{'s' if pairs > 1 else ''}.{quick}"
    )


def write(table: str, values: Mapping[str, float], options: argparse.Namespace) -> None:
    """The table on the screen, and the files that were asked for."""
    print(f"\n{table}", end="", flush=True)
    if options.markdown:
        options.markdown.write_text(table)
    if options.json:
        options.json.write_text(json.dumps(dict(values), indent=2) + "\n")


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


def _versions(packages: Sequence[str]) -> list[str]:
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
