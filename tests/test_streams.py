"""A terminal, pipe or disk that does not take what is printed: reported in a line, and nothing of the work is lost."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from alignloop.streams import Output

GOOD_ROW = json.dumps({"prompt": "Name a river.", "chosen": "The Elbe.", "rejected": "A hill."})
STAGE = (
    "stage ingest --out made --set engine.name=transformers --set data.heldout_fraction=0 --input preferences=r.jsonl"
)


@pytest.mark.parametrize(
    ("arguments", "redirection", "code", "said"),
    [
        ("recipes", "> /dev/full", 1, "stdout: No space left on device: not all was printed; the command itself ended"),
        ("--help", ">&-", 1, "stdout: it is closed: not all was printed; the command itself ended well"),
        (STAGE, "> >(exit 0)", 141, "stdout: Broken pipe: not all was printed; the command itself ended well"),
        ("status none", "> /dev/full", 2, "error: none: no run lies here"),
        ("status none", ">&-", 2, "error: none: no run lies here"),
        ("recipes", "> /dev/full 2>&- <&-", 1, ""),
    ],
)
def test_what_could_not_be_printed_is_said(
    tmp_path: Path, arguments: str, redirection: str, code: int, said: str
) -> None:
    (tmp_path / "r.jsonl").write_text(GOOD_ROW + "\n")
    # The reader has gone before anything is printed.
    command = f"sleep 0.1; exec {shlex.quote(sys.executable)} -m alignloop {arguments}"
    done = subprocess.run(
        ["bash", "-c", f"({command}) {redirection}"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == (1 if said else 0), done.stderr
    assert said in done.stderr
    if arguments == STAGE:
        assert (tmp_path / "made" / "manifest.json").is_file()
        assert (tmp_path / "made" / "preferences.jsonl").read_text().count("\n") == 1


def test_what_follows_a_failure_goes_nowhere_and_the_failure_is_kept() -> None:
    reading, writing = os.pipe()
    output = Output(writing)
    text = io.TextIOWrapper(io.BufferedWriter(output), "ascii", errors="backslashreplace", write_through=True)
    print("é \udcff", file=text, flush=True)
    assert os.read(reading, 100) == b"\\xe9 \\udcff\n"
    os.close(reading)
    for _ in range(3):
        print("nobody reads this", file=text, flush=True)
    assert isinstance(output.error, BrokenPipeError)
    os.close(writing)


def test_a_pipe_that_does_not_wait_gets_everything() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    output, total = Output(writing), 1_000_000
    got = bytearray()

    def read() -> None:
        while len(got) < total:
            got.extend(os.read(reading, 65_536))

    reader = threading.Thread(target=read)
    reader.start()
    io.BufferedWriter(output).write(b"x" * total)
    reader.join(timeout=20)
    assert (len(got), output.error) == (total, None)
    os.close(reading)
    os.close(writing)
