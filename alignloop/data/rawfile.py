"""A user's file as raw JSON values with their places: JSON lines or one JSON array, told apart by content.

bytes --decode (UTF-8, byte order mark dropped)--> text --parse--> RawRow (value, or what is wrong with the line)
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignloop.data.problems import BadRow
from alignloop.errors import DataError

_BOM = b"\xef\xbb\xbf"
_OTHER_KINDS = {
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "gzip-compressed",
    b"PK\x03\x04": "a zip archive",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


@dataclass(frozen=True)
class RawRow:
    """One row as found.

    Attributes:
        line: 1-based line (JSON lines) or element (JSON array).
        value: the parsed JSON value; None where `problem` is set.
        text: the first 200 characters as found; empty for elements of an array.
        problem: why the line is not JSON.
    """

    line: int
    value: Any
    text: str = ""
    problem: BadRow | None = None

    def excerpt(self) -> str:
        """The first 200 characters, for a person who looks for the row."""
        try:
            return self.text or json.dumps(self.value, ensure_ascii=True)[:200]
        except RecursionError:
            return ""


@dataclass(frozen=True)
class RawFile:
    """All rows of a file; `unit` is what `RawRow.line` counts."""

    name: str
    unit: Literal["line", "element"]
    rows: tuple[RawRow, ...]


def read_raw(file: Path | str) -> RawFile:
    """Read a JSON-lines file or a JSON array.

    A line that is not JSON becomes a row with a `problem`; NaN, which JSON lacks and Python writes, becomes null.

    Raises:
        DataError: the file is missing, a directory, empty, unreadable, of another kind, or a broken JSON array.
    """
    name = str(file)
    data = _bytes_of(Path(file).expanduser(), name).removeprefix(_BOM)
    for magic, kind in _OTHER_KINDS.items():
        if data.startswith(magic):
            raise DataError(f"{name}: this is {kind}; JSON lines or a JSON array in UTF-8 is read. Convert it first")
    start = data.lstrip()[:1]
    if not start:
        raise DataError(f"{name}: the file is empty; one JSON object a line (or one JSON array of objects) is needed")
    if start == b"[":
        return RawFile(name, "element", tuple(_elements(_parse_whole(data, name))))
    rows = tuple(_lines(data))
    if start == b"{" and rows[0].problem is not None and (whole := _single_object(data)) is not None:
        return RawFile(name, "element", tuple(_elements([whole])))
    return RawFile(name, "line", rows)


def _bytes_of(path: Path, name: str) -> bytes:
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (".jsonl", ".json"))[:5]
        hint = (
            f"name the file itself, for example {', '.join(inside)}" if inside else "it holds no .jsonl or .json file"
        )
        raise DataError(f"{name}: this is a directory; {hint}")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{name}: no such file. {_near(path)}") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}. Check its permissions") from error


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f"The folder {path.parent} does not exist either: check the path (it counts from {Path.cwd()})"
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=3, cutoff=0.5)
    found = f"did you mean {' or '.join(near)}?" if near else "no file there has a name like it; check the path"
    return f"In {path.parent}: {found}"


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=lambda _: None)


def _parse_whole(data: bytes, name: str) -> list[Any]:
    try:
        value = _parse(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line}: {_not_utf8(error, error.start)}") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{name}, line {error.lineno}, column {error.colno}: invalid JSON: {error.msg}. The file begins with `[`, "
            "so it is read as one JSON array: mend it there"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: the JSON array cannot be parsed: {error}") from None
    assert isinstance(value, list)
    if not value:
        raise DataError(f"{name}: the JSON array is empty; it must hold rows")
    return value


def _elements(values: list[Any]) -> Iterator[RawRow]:
    for number, value in enumerate(values, start=1):
        yield RawRow(number, value)


def _single_object(data: bytes) -> dict[str, Any] | None:
    """The file as one object written over several lines, or None."""
    try:
        value = _parse(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _lines(data: bytes) -> Iterator[RawRow]:
    offset = 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield _line(line.removeprefix(_BOM).strip(), number, offset)
        offset += len(line) + 1


def _line(line: bytes, number: int, offset: int) -> RawRow:
    shown = line[:800].decode("utf-8", errors="replace")[:200]
    try:
        return RawRow(number, _parse(line.decode("utf-8")), shown)
    except UnicodeDecodeError as error:
        problem = BadRow(None, _not_utf8(error, offset + error.start))
    except json.JSONDecodeError as error:
        problem = BadRow(None, f"invalid JSON at column {error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:
        problem = BadRow(None, f"invalid JSON: {error}")
    return RawRow(number, None, shown, problem)


def _not_utf8(error: UnicodeDecodeError, offset: int) -> str:
    return (
        f"not UTF-8: byte 0x{error.object[error.start]:02x} at byte offset {offset}. Save the file as UTF-8 "
        "(for example `iconv -f latin1 -t utf-8`)"
    )
