"""A run directory: locked by its run, and of one recipe."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from alignloop.artifacts import OUT_OF_SPACE, disk_errors_named, load_json, write_text
from alignloop.config import Recipe
from alignloop.config.yaml_values import dump_yaml
from alignloop.errors import RunDirError
from alignloop.records import round_name
from alignloop.run_dir.manifest import MANIFEST, MANIFEST_VERSION, NOT_THERE, PARTIAL, read_manifest

RESOLVED = "resolved.json"
LOCK = "run.lock"
_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "rounds": (int,),
    "base": (str,),
    "preferences": (list,),
    "judge": (dict, type(None)),
}
_FLOCK = "hhqqi4x"
"""C's `struct flock` on 64-bit Linux: type, whence, start, length, process."""
_ROUND = re.compile(r"round-([0-9]{2,6})")
STAGE_FOLDER = re.compile(rf"[0-9]{{2}}_[a-z_]+({re.escape(PARTIAL)})?")
BEFORE_A_RUN = {LOCK, "rejected_rows.jsonl"}
"""What a directory may hold before its first run begins: the checks write rejected rows there."""
ANY_VALUE = {
    "rounds",
    "name",
    "training.num_processes",
    "training.accelerate",
    "training.trackers",
    "collect.min_annotated",
    "evaluate.test_rounds",
    "engine.max_restarts",
    "engine.stall_seconds",
    "engine.seconds_per_token",
    "engine.max_num_seqs",
    "engine.kv_cache_gb",
    "engine.gpu_memory_utilization",
    "engine.data_parallel",
    "judge.endpoint",
    "judge.api_key_variable",
    "judge.max_retries",
    "judge.timeout_seconds",
    "judge.concurrency",
}
"""Fields that may change between two calls on one run directory: no result depends on them. (Whether a judge is behind
an endpoint or on the engine does count, through its stage's fingerprint.)"""


def round_dir(run_dir: Path, number: int) -> Path:
    return run_dir / round_name(number)


def stage_folder(position: int, name: str) -> str:
    """`NN_<name>`: the folder of a round's stage, the first at position 1."""
    return f"{position:02d}_{name}"


def round_numbers(run_dir: Path) -> list[int]:
    """Rounds that have begun, in order; 0 holds what comes before the first."""
    found = (_ROUND.fullmatch(folder.name) for folder in run_dir.glob("round-*"))
    return sorted({int(match[1]) for match in found if match})


def unpublished(folder: Path) -> str | None:
    """What is wrong where a stage would be published: something that never was lies there; None where nothing does."""
    if folder.is_dir() and (not any(folder.iterdir()) or read_manifest(folder) is not None):
        return None
    return f"{folder}: lies there without a {MANIFEST}" if os.path.lexists(folder) else None


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory; the lock ends with the process, however that ends. A directory that was made for this and
    stayed empty is removed. Raises RunDirError where another process holds it, or it cannot be held."""
    is_new = not run_dir.exists()
    with disk_errors_named(run_dir), _lock(run_dir) as file:
        name = f"{os.getpid()}\n".encode()
        os.pwrite(file.fileno(), name, 0)
        os.truncate(file.fileno(), len(name))
        try:
            yield
        finally:
            if is_new and _is_at(file, run_dir / LOCK) and _entries(run_dir) == [LOCK]:
                (run_dir / LOCK).unlink()
                with suppress(OSError):  # the next owner has begun
                    run_dir.rmdir()


def holder(run_dir: Path) -> str | None:
    """The process that holds a run directory; None where none does. Locks and writes nothing."""
    try:
        file = _open_lock(run_dir / LOCK, os.O_RDONLY)
    except OSError:
        return None
    with file:
        try:
            found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK))
        except OSError:  # a file system without locks
            return None
        return None if struct.unpack(_FLOCK, found)[0] == fcntl.F_UNLCK else _named_in(file)


def _lock(run_dir: Path) -> IO[bytes]:
    path = run_dir / LOCK
    for attempt in range(100):
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            file = _open_lock(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and attempt < 99:
                continue  # the owner before has just removed the directory
            if error.errno in OUT_OF_SPACE:
                raise
            raise RunDirError(
                f"{run_dir}: cannot be used as a run directory ({error.filename}: {error.strerror}); choose another"
            ) from error
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK))
            # Who held it before may have removed it: a lock on a file that nobody finds holds nothing.
            if _is_at(file, path):
                return file
        except BlockingIOError as error:
            with file:
                raise RunDirError(
                    f"{run_dir}: in use by process {_named_in(file)}; wait or choose another --run-dir"
                ) from error
        except OSError as error:
            raise RunDirError(f"{path}: cannot be locked ({error.strerror}); choose another --run-dir") from error
        file.close()
    raise RunDirError(f"{path}: is made and removed again by others; choose another --run-dir")


def remove_locked(folder: Path) -> None:
    """Remove a folder that this process holds in one step: another process finds all of it or nothing."""
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.removed-", dir=folder.parent))
    folder.rename(aside / folder.name)
    shutil.rmtree(aside)


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _open_lock(path: Path, flags: int) -> IO[bytes]:
    # What lies there may be a pipe: nobody may wait for its other end.
    file = open(os.open(path, flags | os.O_NONBLOCK, 0o666), "rb+" if flags & os.O_RDWR else "rb", buffering=0)  # noqa: PTH123, SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "not a file", str(path))


def _named_in(file: IO[bytes]) -> str:
    name = os.pread(file.fileno(), 20, 0).decode(errors="replace").partition("\n")[0]
    return name if name.isdecimal() else "unknown"


def _flock(kind: int) -> bytes:
    """A lock on the whole file, of its open description: looking does not take it, closing another does not drop it."""
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def _entries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def require_same(run_dir: Path, recipe: Recipe, *, rebuild: bool) -> None:
    """Check that a run of this recipe may begin or go on here; writes nothing. Raises RunDirError where the directory
    holds something else, a run of another recipe or of a newer version, or where what should be a round's folder is
    none."""
    if run_dir.exists() and not run_dir.is_dir():
        raise RunDirError(f"{run_dir}: cannot be used as a run directory (not a folder); choose another")
    known = read_resolved(run_dir)
    if known is None and set(_entries(run_dir)) - BEFORE_A_RUN:
        raise RunDirError(f"{run_dir}: holds files but no {RESOLVED}: not a run directory; choose another --run-dir")
    for folder in (round_dir(run_dir, number) for number in round_numbers(run_dir)):
        if os.path.lexists(folder) and not folder.is_dir():
            raise RunDirError(f"{folder}: is no folder, and no link to one; put the round's folder back, or remove it")
    changes = [] if known is None or rebuild else changed_fields(known, recipe.model_dump(mode="json"))
    if changes:
        # What a run is made from is kept with every field, so that one which is missing was not there to be set.
        is_older = any(NOT_THERE in change for change in changes)
        back = "Go on with the version of alignloop that began it (defaults may have moved since)"
        raise RunDirError(
            f"{run_dir}: is a run of another recipe{', or of another version of alignloop' if is_older else ''}:\n"
            + "\n".join(f"  - {change}" for change in changes)
            + f"\n{back if is_older else 'Put it back'}, choose another --run-dir, or pass --rebuild to redo what "
            "depends on it."
        )


def enter(run_dir: Path, recipe: Recipe, *, rebuild: bool) -> None:
    """Write what the run is made from, or check that it is still the same; raises as `require_same`."""
    require_same(run_dir, recipe, rebuild=rebuild)
    wanted = {"run_version": MANIFEST_VERSION, "recipe": recipe.model_dump(mode="json")}
    write_text(run_dir / RESOLVED, json.dumps(wanted, indent=1) + "\n")
    sparse = recipe.model_dump(mode="json", exclude_defaults=True)
    write_text(run_dir / "recipe.yaml", dump_yaml(sparse))


def is_run(folder: Path) -> bool:
    """Whether a run has begun there, whatever has become of it since."""
    return os.path.lexists(folder / RESOLVED)


def run_around(path: Path) -> Path | None:
    """The run directory that contains a path, or is it; None where there is none."""
    return next((folder for folder in (path.resolve(), *path.resolve().parents) if is_run(folder)), None)


def read_resolved(run_dir: Path) -> dict[str, Any] | None:
    """The recipe a run directory was made from, as plain values; None where it is no run directory yet."""
    path = run_dir / RESOLVED
    if not is_run(run_dir):
        return None
    try:
        values = load_json(path)
        version, recipe = int(values["run_version"]), dict(values["recipe"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise RunDirError(f"{path}: not the recipe of a run ({error}); choose another --run-dir") from error
    if version > MANIFEST_VERSION:
        raise RunDirError(
            f"{path}: run_version {version} was written by a newer alignloop (this one knows {MANIFEST_VERSION}): "
            "update alignloop, or choose another --run-dir"
        )
    if wrong := _wrong_kinds(recipe):
        raise RunDirError(f"{path}: not the recipe of a run ({wrong}); choose another --run-dir")
    return recipe


def _wrong_kinds(recipe: dict[str, Any]) -> str | None:
    """The first field whose value is of a kind that no version of the recipe has there; None where all are right."""
    for name, field in Recipe.model_fields.items():
        default = field.get_default(call_default_factory=True)
        kinds: tuple[type, ...] = (dict,) if isinstance(default, BaseModel) else _KINDS.get(name, ())
        if kinds and name in recipe and not isinstance(recipe[name], kinds):
            return f"{name}: {str(recipe[name])[:40]!r}"
    return None


def changed_fields(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """`a.b: old -> new` for every recipe field that differs and may not; `NOT_THERE` for one that a side lacks."""
    changes = []
    for key in sorted({*before, *after}):
        name = f"{prefix}{key}"
        old, new = before.get(key, NOT_THERE), after.get(key, NOT_THERE)
        if name in ANY_VALUE or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changes += changed_fields(old, new, f"{name}.")
        else:
            changes.append(f"{name}: {old} -> {new}")
    return changes
