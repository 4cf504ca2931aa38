"""One row's bytes -> its JSON value. Fast where nothing is odd; else Python's own parser, which says what is wrong.

bytes --orjson--> value, as many keys in it as in the bytes? --no, or an error--> json --> value or BadRow
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import orjson

from alignloop.data.problems import BadRow
from alignloop.errors import DataError

BOM = b"\xef\xbb\xbf"
_EXACT = 2.0**63
"""orjson makes a float of a whole number from here on."""
_SPACED_COLON = re.compile(rb'"\s+:')


def parse_row(data: bytes, *, line: int | None, offset: int) -> Any:
    """The JSON value of `data`; NaN and the infinities, which JSON lacks and Python writes, become null.

    Args:
        line: of its first byte in the file, for values written over several lines; None for a line.
        offset: of its first byte in the file.

    Raises:
        BadRow: no JSON, not UTF-8, a NUL byte, or an object with the same key twice.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return _parse_carefully(data, line=line, offset=offset)
    # A key is followed by a colon; in a text the quote before the colon is escaped.
    num_keys = _num_keys(value)
    if data.count(b":") == num_keys:  # no text has one
        return value
    num_colons = data.count(b'":')
    if num_colons != num_keys and num_colons - data.count(b'\\":') != num_keys:
        return _parse_carefully(data, line=line, offset=offset)
    if b" :" in data and _SPACED_COLON.search(data):
        return _parse_carefully(data, line=line, offset=offset)
    return value


def parse_line(data: bytes, *, offset: int, where: str, form: str) -> Any:
    """`parse_row` of a file that is refused whole for one bad line.

    Args:
        offset: of its first byte in the file.
        where: file and line; form: what the file must be. Both for the message.

    Raises:
        DataError: as `parse_row`.
    """
    try:
        return parse_row(data, line=None, offset=offset)
    except BadRow as bad:
        raise DataError(f"{where}: {bad.reason}. {form}.") from None


def _num_keys(value: Any) -> int:
    """Keys of all objects in `value`; -1 where a number may have lost digits."""
    num_keys = 0
    stack = [value if type(value) is dict or type(value) is list else [value]]
    while stack:
        item = stack.pop()
        inside: Iterable[Any] = item
        if type(item) is dict:
            num_keys += len(item)
            inside = item.values()
        for inner in inside:
            kind = type(inner)
            if kind is str:
                continue
            if kind is dict or kind is list:
                stack.append(inner)
            elif kind is float and not -_EXACT < inner < _EXACT:
                return -1
    return num_keys


def _parse_carefully(data: bytes, *, line: int | None, offset: int) -> Any:
    if data.startswith(BOM):
        data, offset = data.removeprefix(BOM), offset + len(BOM)
    if (nul := data.find(b"\0")) >= 0:
        raise BadRow(None, f"holds a NUL byte at byte offset {offset + nul} of the file: remove it")
    try:
        return json.loads(
            data.rstrip().decode("utf-8"), object_pairs_hook=_with_unique_keys, parse_constant=lambda _: None
        )
    except UnicodeDecodeError as error:
        raise BadRow(
            None,
            f"not UTF-8: byte 0x{data[error.start]:02x} at byte offset {offset + error.start}. Save the file as UTF-8 "
            "(for example `iconv -f latin1 -t utf-8`)",
        ) from None
    except json.JSONDecodeError as error:
        at = offset + len(error.doc[: error.pos].encode("utf-8"))
        place = (
            f"column {error.colno}" if line is None else f"line {line + error.lineno - 1}, byte offset {at} of the file"
        )
        cut = (
            ": it is cut short" if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated") else ""
        )
        raise BadRow(None, f"invalid JSON at {place}: {error.msg}{cut}") from None
    except (ValueError, RecursionError) as error:
        raise BadRow(None, f"invalid JSON: {error}") from None


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow(twice, f"stands {names.count(twice)} times in one object: only one of the values can be meant")
    return found
