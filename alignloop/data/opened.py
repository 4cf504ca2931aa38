"""A file's bytes, decompressed, with what kind of file it is.

path --magic bytes--> `json` or `parquet`, or a DataError that names the kind that cannot be read
"""

from __future__ import annotations

import difflib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from alignloop.data.parsing import BOM
from alignloop.errors import DataError

_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"ARROW1": "an Arrow file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
_READABLE = (".jsonl", ".json", ".parquet", ".gz", ".zst")
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, OSError)
"""What reading a damaged compressed file raises."""


def kind_of(path: Path, name: str) -> Literal["json", "parquet"]:
    """What the file holds.

    Raises:
        DataError: it is missing, a directory, unreadable, or of a kind that is not read.
    """
    with open_bytes(path, name) as stream:
        start = _start(stream, name)
    if start.startswith(_PARQUET):
        return "parquet"
    for magic, kind in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise DataError(f"{name}: this is {kind}; JSON lines or a JSON array in UTF-8 is read. Convert it first")
    if b"\0" in start.removeprefix(BOM)[:4]:
        raise DataError(
            f"{name}: this looks like UTF-16 or UTF-32 text (or binary data): every other byte is zero. JSON lines or "
            "a JSON array in UTF-8 is read. Convert it first (for example `iconv -f utf-16 -t utf-8`)"
        )
    return "json"


@contextmanager
def open_bytes(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The file's bytes; gzip and zstd are decompressed as they are read.

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
        start = stream.read(4)
        stream.seek(0)
        yield _decompressed(stream, start)


def _decompressed(stream: IO[bytes], start: bytes) -> IO[bytes]:
    if start.startswith(_GZIP):
        return io.BufferedReader(gzip.GzipFile(fileobj=stream), 2**20)
    if start.startswith(_ZSTD):
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(stream, "zstd"), 2**20)
    return stream


def _start(stream: IO[bytes], name: str) -> bytes:
    try:
        return stream.read(16)
    except DAMAGED as error:
        raise DataError(f"{name}: cannot be read: {error}. Is the file whole?") from None


def _inside(folder: Path) -> str:
    inside = sorted(p.name for p in folder.iterdir() if p.suffix in _READABLE)[:5]
    return f"name the file itself, for example {', '.join(inside)}" if inside else "it holds no .jsonl or .json file"


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f"The folder {path.parent} does not exist either: check the path (it counts from {Path.cwd()})"
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=3, cutoff=0.5)
    found = f"did you mean {' or '.join(near)}?" if near else "no file there has a name like it; check the path"
    return f"In {path.parent}: {found}"
