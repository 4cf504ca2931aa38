"""Files: what a recipe's names and patterns stand for, a file's bytes (decompressed), and what kind of file it is.

pattern --> files in an order that a person expects
path --first bytes--> a `FileKind`, or a DataError that names the kind that cannot be read
pipe --copied once--> a file on disk
"""

from __future__ import annotations

import atexit
import glob
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from alignloop.artifacts import disk_errors_named
from alignloop.config.bundled import resolve_file
from alignloop.errors import DataError, did_you_mean

HUB = "hub:"
BOM = b"\xef\xbb\xbf"
FileKind = Literal["json", "csv", "parquet", "arrow", "saved"]
_TABLES: dict[bytes, FileKind] = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
_POINTER = b"version https://git-lfs.github.com/spec/"
_OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
_READABLE = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst")
_HEADER = frozenset(
    "prompt messages conversations instruction question chosen rejected chosen_response completion response".split()
)
"""Columns by one of which a first line is known as a header, whatever the file is called."""
_COPIES: dict[tuple[int, int, str], Path] = {}
"""Pipe -> its copy: a pipe can be read once, and readers look at a file's beginning before they read it."""
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, OSError)
"""What reading a damaged compressed file raises."""


def data_files(names: Sequence[str], *, kind: str) -> list[Path]:
    """The files of `names`, in the order of the names; a pattern's in sorted order (`round-2` before `round-10`).

    Hidden files are not matched by `*`.

    Args:
        names: paths, patterns (`*`, `?`, `[...]`, `**`), or `quickstart`.
        kind: `preferences` or `prompts`: of the bundled file, and of the field that messages name.

    Raises:
        DataError: patterns that match no file, and what a run cannot read; all of them are named.
    """
    files: list[Path] = []
    problems: list[str] = []
    for name in names:
        path = resolve_file(name, kind=kind)
        if (reason := why_not_twice(name)) is not None:
            problems.append(f"{kind}: {name}: {reason}")
        elif not is_pattern(name):
            files.append(path)
        elif found := sorted(_matching(path), key=_in_natural_order):
            files += found
        else:
            problems.append(f"{kind}: {name}: the pattern matches no file{_nearby(path)}")
    if problems:
        raise DataError("\n".join(problems))
    return files


def why_not_twice(name: str) -> str | None:
    """Why a name's file cannot be read again, byte for byte the same, as a digest needs; None where it can."""
    if name.startswith(HUB):
        what = "what is made from data keeps its digest, and a hub may change"
    elif _is_pipe(Path(name).expanduser()):
        what = "a pipe or device can be read only once"
    else:
        return None
    return f"{what}: write a file (`alignloop data convert {name} --out rows.jsonl`) and name that"


def is_pattern(name: str) -> bool:
    """Whether a name of a recipe is to be expanded; the name of a file that exists never is, whatever is in it."""
    return glob.has_magic(name) and not Path(name).expanduser().exists()


def is_saved(path: Path) -> bool:
    """Whether a folder is a data set, or several splits of one, as `save_to_disk` of `datasets` writes it."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _matching(pattern: Path) -> Iterator[Path]:
    start = Path(pattern.anchor)
    for file in start.glob(str(pattern.relative_to(start))):
        if (file.is_file() or is_saved(file)) and not file.name.startswith("."):
            yield file


def _in_natural_order(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.as_posix())
    return [(0, int(part), part) if part.isdigit() and part.isascii() else (1, 0, part) for part in parts]


def _nearby(path: Path) -> str:
    """The end of an error about a pattern that matches nothing: what the folder it names holds, and what to do."""
    folder = path.parent
    if glob.has_magic(str(folder)):
        return f" (looked from {Path.cwd()}) - write the path of your files"
    if not folder.is_dir():
        return f": there is no folder {folder} (looked from {Path.cwd()}) - write the path of your files"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    if not names:
        return f": the folder {folder} holds no file - put your files there, or write their path"
    more = f" and {len(names) - 4:,} more" if len(names) > 4 else ""
    return f": {folder} holds {', '.join(names[:4])}{more} - write a pattern that fits"


def _is_pipe(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def file_at(path: Path, name: str) -> Path:
    """The path itself; of a pipe (`/dev/stdin`, process substitution) a copy that lives as long as this process.

    Raises:
        DataError: it is a device, or cannot be read.
        DiskFullError: no space left for the copy.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):
        return path  # said where it is opened
    if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        raise DataError(f"{name}: this is a device (a terminal?), which has no end; name a file or a pipe")
    if not stat.S_ISFIFO(found.st_mode):
        return path
    key = (found.st_dev, found.st_ino, str(path))
    if key not in _COPIES:
        folder = Path(tempfile.mkdtemp(prefix="alignloop-pipe-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        with open_bytes(path, name, unpack=False) as stream, disk_errors_named(folder):
            try:
                with (folder / "data").open("wb") as copy:
                    shutil.copyfileobj(stream, copy, 2**20)
            except DAMAGED as error:
                if "No space" in str(error):
                    raise
                raise DataError(f"{name}: cannot be read: {error}") from None
        _COPIES[key] = folder / "data"
    return _COPIES[key]


def kind_of(path: Path, name: str) -> FileKind:
    """The kind of a file by its content.

    Raises:
        DataError: it is missing, a directory, unreadable, or of a kind that is not read.
    """
    if is_saved(path):
        return "saved"
    with open_bytes(path, name) as stream:
        start = _start(stream, name)
    for magic, table in _TABLES.items():
        if start.startswith(magic):
            return table
    if start.startswith(_POINTER):
        raise DataError(f"{name}: this is a Git LFS pointer, not the data: fetch it with `git lfs pull`")
    for magic, kind in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise DataError(f"{name}: this is {kind}; JSON lines or a JSON array in UTF-8 is read. Convert it first")
    text = start.removeprefix(BOM)
    if b"\0" in text[:4]:
        raise DataError(
            f"{name}: this looks like UTF-16 or UTF-32 text (or binary data): every other byte is zero. JSON lines or "
            "a JSON array in UTF-8 is read. Convert it first (for example `iconv -f utf-16 -t utf-8`)"
        )
    return "csv" if _is_separated(text.lstrip(), name) else "json"


def _is_separated(start: bytes, name: str) -> bool:
    if start[:1] in (b"{", b"["):
        return False
    if start and (is_tabbed(name) or ".csv" in _suffixes(name)):
        return True
    header = start.partition(b"\n")[0].decode("utf-8", "replace")
    return any(
        len(names) > 1 and not _HEADER.isdisjoint(name.strip(' "\r') for name in names)
        for names in (header.split(mark) for mark in ",\t;")
    )


def is_tabbed(name: str) -> bool:
    return ".tsv" in _suffixes(name)


def _suffixes(name: str) -> list[str]:
    return [suffix.lower() for suffix in Path(name).suffixes]


def is_plain(stream: IO[bytes]) -> bool:
    """Whether a stream of `open_bytes` holds the file's own bytes, not decompressed ones."""
    return isinstance(getattr(stream, "raw", None), io.FileIO)


@contextmanager
def open_bytes(path: Path, name: str, *, unpack: bool = True) -> Iterator[IO[bytes]]:
    """The file's bytes; gzip and zstd are decompressed as they are read, unless `unpack` is false.

    Raises:
        DataError: it is missing, a directory or unreadable.
    """
    if path.is_dir():
        raise DataError(f"{name}: this is a directory; {_inside(path)}")
    try:
        stream: IO[bytes] = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{name}: no such file. {_near(path)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{name}: cannot be read: {reason}. Check its name and permissions") from error
    with stream:
        yield _decompressed(stream, _start(stream, name, num_bytes=4)) if unpack else stream


def _decompressed(stream: IO[bytes], start: bytes) -> IO[bytes]:
    if start.startswith(b"\x1f\x8b"):
        return io.BufferedReader(gzip.GzipFile(fileobj=stream), 2**20)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(stream, "zstd"), 2**20)
    return stream


def _start(stream: IO[bytes], name: str, *, num_bytes: int = 2**12) -> bytes:
    try:
        start = stream.read(num_bytes)
        if is_plain(stream):
            stream.seek(0)
        return start
    except DAMAGED as error:
        raise DataError(f"{name}: cannot be read: {error}. Is the file whole?") from None


def _inside(folder: Path) -> str:
    if not os.access(folder, os.R_OK | os.X_OK):
        return "it cannot be read: check its permissions"
    inside = sorted(p.name for p in folder.iterdir() if p.suffix in _READABLE)[:5]
    return f"name the file itself, for example {', '.join(inside)}" if inside else "it holds no data file"


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f"The folder {path.parent} does not exist either: check the path (it counts from {Path.cwd()})"
    near = did_you_mean(path.name, (p.name for p in path.parent.iterdir()), most=3, cutoff=0.5)
    return f"In {path.parent}: {near or 'no file there has a name like it; check the path'}"
