"""Temporary folders of processes that are gone go with the next start; those of the living, and others', stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignloop.temporary import clear_abandoned, make_temporary

MAKE = """
import sys, time
from alignloop.temporary import make_temporary
folder = make_temporary("engine")
(folder.path / "weights").write_text("x")
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_goes_with_its_lock(temporary: Path) -> None:
    folder = make_temporary("engine")
    assert folder.path.is_dir()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert names(temporary) == [folder.path.name, f"{folder.path.name}.lock"]
    folder.remove()
    assert names(temporary) == []


def test_those_of_a_killed_process_are_cleared_by_the_next_start(temporary: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)}
    )
    assert process.stdout is not None
    theirs = Path(process.stdout.readline().strip())
    clear_abandoned()
    assert (theirs / "weights").is_file()  # its owner lives
    process.kill()
    process.wait()
    process.stdout.close()
    assert (theirs / "weights").is_file()
    ours = make_temporary("training")
    assert names(temporary) == [ours.path.name, f"{ours.path.name}.lock"]
    ours.remove()


def test_what_has_no_lock_and_what_was_kept_stays(temporary: Path) -> None:
    (temporary / "alignloop-engine-old").mkdir()
    (temporary / "alignloop.lock").touch()
    kept = make_temporary("log")
    kept.keep()
    clear_abandoned()
    assert names(temporary) == sorted(["alignloop-engine-old", "alignloop.lock", kept.path.name])


def test_a_link_is_not_followed(temporary: Path) -> None:
    (temporary / "precious").write_text("x")
    (temporary / "alignloop-x.lock").symlink_to(temporary / "precious")
    clear_abandoned()
    assert (temporary / "precious").is_file()
