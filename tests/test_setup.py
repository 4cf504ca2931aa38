"""`scripts/setup` on trees of its own: says what is wrong, leaves no stamp behind a failure, does nothing twice."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the script reads, in a folder with a space in its name."""
    root = tmp_path / "a clone"
    for name in ("scripts/setup", "requirements/cpu.txt", "requirements/dev.txt", "pyproject.toml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    return root


def run_setup(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(tree / "scripts" / "setup")], env=os.environ | environment, capture_output=True, text=True, cwd="/"
    )


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def write_stamps(tree: Path) -> None:
    lists = b"".join((tree / "requirements" / name).read_bytes() for name in ("cpu.txt", "dev.txt"))
    project = (tree / "pyproject.toml").read_bytes() + f"{tree.resolve()}\n".encode()
    (tree / ".venv" / "packages.stamp").write_text(hashlib.sha256(lists).hexdigest() + "\n", encoding="utf-8")
    (tree / ".venv" / "project.stamp").write_text(hashlib.sha256(project).hexdigest() + "\n", encoding="utf-8")


def test_where_torch_cannot_be_found_it_says_what_to_do(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "no wheels").mkdir()
    done = run_setup(
        tree, PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1", PIP_FIND_LINKS=(tmp_path / "no wheels").as_uri()
    )
    assert done.returncode == 1
    assert "pip finds no torch==2.13.0+cpu" in done.stderr
    assert "pytorch.org" in done.stderr
    assert "PIP_EXTRA_INDEX_URL" in done.stderr
    assert not list((tree / ".venv").glob("*.stamp"))


def test_a_complete_installation_is_left_alone(tree: Path) -> None:
    write_program(tree / ".venv/bin/python", 'echo "was run" >&2; exit 1')
    write_stamps(tree)
    done = run_setup(tree)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("changed", ["requirements/cpu.txt", "requirements/dev.txt", "pyproject.toml"])
def test_a_changed_list_is_noticed(tree: Path, changed: str) -> None:
    write_program(tree / ".venv/bin/python", 'echo "was run" >&2; exit 1')
    write_stamps(tree)
    with (tree / changed).open("a", encoding="utf-8") as file:
        file.write("# one more line\n")
    done = run_setup(tree)
    assert done.returncode == 1
    assert "was run" in done.stderr


def test_an_environment_of_another_python_is_named(tree: Path) -> None:
    write_program(tree / ".venv/bin/python", '[ "$1" = --version ] && echo "Python 3.9.2"; exit 1')
    done = run_setup(tree)
    assert done.returncode == 1
    assert ".venv has Python 3.9.2; alignloop needs Python >=3.11,<3.15" in done.stderr
    assert f"Remove the folder {tree / '.venv'}" in done.stderr


def test_no_python_of_the_right_version_is_said(tree: Path, tmp_path: Path) -> None:
    for name in ("python3.11", "python3.12", "python3.13", "python3.14", "python3", "python"):
        write_program(tmp_path / "bin" / name, '[ "$1" = --version ] && echo "Python 3.10.4"; exit 1')
    done = run_setup(tree, PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 1
    assert "no Python >=3.11,<3.15 found; python3 is Python 3.10.4" in done.stderr
    assert not (tree / ".venv").exists()
