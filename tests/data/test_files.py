"""Files as a recipe names them (patterns), as they come (pipes, devices) and as they go wrong: never a traceback."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignloop.config.bundled import QUICKSTART
from alignloop.data import check_files
from alignloop.data.check_files import check_file
from alignloop.data.files import data_files, is_pattern
from alignloop.data.rawfile import open_rows
from alignloop.errors import DataError

ROWS = "".join(json.dumps({"prompt": f"Q{n}?", "chosen": "a", "rejected": "b"}) + "\n" for n in range(400))


def test_a_pattern_is_expanded_with_numbers_as_numbers(tmp_path: Path) -> None:
    for name in ("round-10.jsonl", "round-2.jsonl", "round-1.jsonl", "notes.txt"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "round-3.jsonl").mkdir()  # a folder is no file of rows
    found = data_files([str(tmp_path / "round-*.jsonl")], kind="preferences")
    assert [path.name for path in found] == ["round-1.jsonl", "round-2.jsonl", "round-10.jsonl"]


def test_names_keep_their_order_and_a_file_is_no_pattern(tmp_path: Path) -> None:
    odd = tmp_path / "a[1].jsonl"
    odd.write_text("{}\n")
    assert not is_pattern(str(odd))
    names = [str(tmp_path / "gone.jsonl"), str(odd), "quickstart"]
    assert data_files(names, kind="prompts") == [Path(names[0]), odd, QUICKSTART / "data" / "prompts.jsonl"]


def test_patterns_that_match_nothing_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(DataError) as caught:
        data_files([str(tmp_path / "round-*.jsonl"), str(tmp_path / "no" / "*.jsonl")], kind="preferences")
    message = str(caught.value)
    assert "round-*.jsonl: the pattern matches no file" in message
    assert "holds b.jsonl" in message
    assert f"there is no folder {tmp_path / 'no'}" in message


def command(line: str, **more: object) -> subprocess.CompletedProcess[str]:
    script = line.replace("alignloop", f"{shlex.quote(sys.executable)} -m alignloop", 1)
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, **more)  # type: ignore[call-overload,no-any-return]


def test_pipes_are_data(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(ROWS)
    done = command(f"alignloop data check --base none --workers 2 <(cat {tmp_path}/a.jsonl) /dev/stdin", input=ROWS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("400 read = 400 kept") == 2
    done = command(f"alignloop data check --base none /dev/stdin < {tmp_path}/a.jsonl")
    assert (done.returncode, "400 read = 400 kept" in done.stdout) == (0, True)
    done = command("alignloop data check /dev/zero /dev/stdin", input="")
    assert (done.returncode, done.stderr) == (1, "")
    assert "/dev/zero: this is a device" in done.stdout
    assert "/dev/stdin: the file is empty" in done.stdout


def test_what_cannot_be_read_twice_is_no_data_of_a_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, why in ((str(tmp_path / "pipe"), "can be read only once"), ("hub:owner/name", "a hub may change")):
        with pytest.raises(DataError, match=rf"preferences: .*{why}.*alignloop data convert {name} --out"):
            data_files([name], kind="preferences")


def test_read_errors_name_the_file(tmp_path: Path) -> None:
    memory = Path("/proc/self/mem")  # reading its first page is an I/O error
    if not memory.exists():
        pytest.skip("there is no /proc/self/mem")
    with pytest.raises(DataError, match="/proc/self/mem: cannot be read"):
        open_rows(memory)
    with pytest.raises(DataError, match="cannot be read"):
        check_file(memory)
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "a.jsonl").write_text(ROWS)
    closed.chmod(0o000)
    if os.access(closed, os.R_OK):
        pytest.skip("root reads everything")
    for name in (closed / "a.jsonl", closed):
        with pytest.raises(DataError, match=r"cannot be read|no such file"):
            open_rows(name)


def test_a_file_that_shrinks_is_not_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(ROWS * 200)
    rows = iter(open_rows(file).rows())
    next(rows)
    os.truncate(file, 100 * len(ROWS))
    last = list(rows)[-1]
    assert last.problem is not None
    assert "became shorter while it was read" in last.problem.reason
    assert last.ends

    def shrinking(*parts: Any) -> object:
        found = spans(*parts)
        os.truncate(file, 50 * len(ROWS))
        return found

    spans = check_files._spans
    monkeypatch.setattr(check_files, "MIN_PART", 1000)
    monkeypatch.setattr(check_files, "_spans", shrinking)
    with pytest.raises(DataError, match="its size changed while it was read"):
        check_file(file, workers=2)
