"""Temporary folders of processes that are gone go with the next start; those of the living, and others', stay."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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
    (temporary / "precious").mkdir()
    (temporary / "precious.txt").touch()
    (temporary / "alignloop-engine-abcdefgh.lock").symlink_to(temporary / "precious.txt")
    (temporary / "alignloop-engine-ijklmnop.lock").touch()
    (temporary / "alignloop-engine-ijklmnop").symlink_to(temporary / "precious")
    before = names(temporary)
    clear_abandoned()
    assert names(temporary) == before


@pytest.mark.parametrize("name", ["alignloop-main", "alignloop-engine-notes", "alignloop-other-abcdefgh"])
def test_a_folder_with_a_name_of_its_own_stays(temporary: Path, name: str) -> None:
    """Someone's copy of the project in the temporary folder, and whatever locks it."""
    (temporary / name).mkdir()
    (temporary / f"{name}.lock").touch()
    clear_abandoned()
    assert names(temporary) == [name, f"{name}.lock"]


@pytest.mark.parametrize("kind", ["pipe", "written", "folder is a file"])
def test_what_make_temporary_does_not_make_stays(temporary: Path, kind: str) -> None:
    folder, lock = temporary / "alignloop-engine-abcdefgh", temporary / "alignloop-engine-abcdefgh.lock"
    folder.touch() if kind == "folder is a file" else folder.mkdir()
    os.mkfifo(lock) if kind == "pipe" else lock.write_text("mine" if kind == "written" else "")
    clear_abandoned()
    assert names(temporary) == [folder.name, lock.name]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("theirs", ["", ".lock"])
def test_what_belongs_to_another_user_stays(temporary: Path, theirs: str) -> None:
    folder = temporary / "alignloop-engine-abcdefgh"
    folder.mkdir()
    lock = folder.with_name(f"{folder.name}.lock")
    lock.touch()
    os.chown(f"{folder}{theirs}", 65534, 65534)
    clear_abandoned()
    assert names(temporary) == [folder.name, lock.name]
    os.chown(f"{folder}{theirs}", 0, 0)
    clear_abandoned()
    assert names(temporary) == []


def test_a_lock_that_is_taken_before_it_is_held_is_made_again(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another start clears between the making of a lock and its holding."""
    make, made = tempfile.mkstemp, []

    def and_cleared(**more: Any) -> tuple[int, str]:
        made.append(make(**more))
        if len(made) == 1:
            clear_abandoned()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkstemp", and_cleared)
    folder = make_temporary("engine")
    assert len(made) == 2
    clear_abandoned()
    assert names(temporary) == [folder.path.name, f"{folder.path.name}.lock"]
    folder.remove()
