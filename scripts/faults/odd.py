"""Odd bytes, texts and values made from valid ones: cut, repeated, spliced, nested, put in other types."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from functools import reduce
from typing import Any

from hypothesis import strategies as st

DEPTH, LONG = 3_000, 5_000
PIECES: tuple[bytes, ...] = (
    *(piece.encode() for piece in "{ } [ ] : , \" ' \\ # & * ! | > - ? % @ ` ~ <think> </think> ```json ```".split()),
    *(b"\n", b"\r\n", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"),
    *("\u2028\u202e\U0001f600\u0000\x1b[31m".encode(), b"\\ud800", b"\\u0000", b"\\", b"NaN", b"-0", b"1e999", b"null"),
    *(b"9" * LONG, b"[" * DEPTH, b'{"a":' * DEPTH),
)
"""Trips readers of any kind of text."""
YAML_PIECES: tuple[bytes, ...] = (
    *(b"!!bool maybe", b"!!int abc", b"!!float x", b"!!binary ====", b"!!timestamp x", b"!!set {a}", b"!!omap [a]"),
    *(b"!!python/object:os.system", b"&a [*a]", b"*a", b"<<: *a", b"? [a]\n: b", b"---", b"...", b"%YAML 1.1\n---"),
    *(b"010", b"1:30", b"0x1F", b"0o17", b"1_000", b".inf", b".nan", b"2024-01-01", b"yes", b"~", b"=", b"5e-7"),
    *(b"a: &x {b: *x}", b"[&l [lol, lol], *l, *l]", b"\t- a", b"|\n  text", b">-\n  text", b"{a: b, a: c}"),
)
SCALARS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", " ", "\0", "\ud800", "\u202e", "a" * LONG, "true", "1", "user", "assistant", "human", "gpt", "better"),
    *("\n\nHuman: a\n\nAssistant: b", "<think>a</think>b", "<|eot_id|>", "../..", "hub:a/b", "%s {} {0}", "A", "tie"),
)


@st.composite
def odd_bytes(draw: st.DrawFn, seeds: Sequence[bytes], pieces: Sequence[bytes] = PIECES) -> bytes:
    """A seed with one to six spans cut out, repeated, or replaced."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from((0, 1, 8, 40, 400, len(content)))))
        repeated = st.sampled_from((2, 50)).map(content[start : min(end, start + 500)].__mul__)
        other = draw(st.just(b"") | st.sampled_from(pieces) | st.binary(max_size=4) | repeated | st.sampled_from(seeds))
        content = content[:start] + other + content[end:]
    return content


def any_value(keys: Sequence[str]) -> st.SearchStrategy[Any]:
    """A new value from known keys and odd scalars."""
    return st.recursive(
        st.sampled_from(SCALARS),
        lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.sampled_from(keys), parts, max_size=3),
        max_leaves=8,
    )


@st.composite
def odd_value(draw: st.DrawFn, values: Sequence[Any], keys: Sequence[str]) -> Any:
    """One of the values with one to four of its parts replaced, dropped, renamed, repeated or wrapped."""
    made = deepcopy(draw(st.sampled_from(values)))
    for _ in range(draw(st.integers(1, 4))):
        made = _changed(draw, made, keys)
    return made


def _changed(draw: st.DrawFn, value: Any, keys: Sequence[str]) -> Any:
    key = st.sampled_from(keys)
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 6)) == 0:
        deep = st.sampled_from((1, 2, 20, 200)).map(lambda times: reduce(lambda inner, _: [inner], range(times), value))
        return draw(deep | st.dictionaries(key, st.just(value), min_size=1, max_size=1) | any_value(keys))
    at = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    match draw(st.integers(0, 5)):
        case 0:
            del value[at]
        case 1 if isinstance(value, dict):
            value[draw(key)] = value[at]
        case 1 if isinstance(value, list):
            value *= draw(st.sampled_from((2, 30)))
        case _:
            value[at] = _changed(draw, value[at], keys)
    return value


def as_json(value: Any, *, ascii_only: bool) -> bytes:
    """As JSON; lone surrogates are kept."""
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", errors="surrogatepass")


def json_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Values as JSON, with or without escapes."""
    return st.builds(lambda value, ascii_only: as_json(value, ascii_only=ascii_only), values, st.booleans())


def all_keys(values: Sequence[Any]) -> list[str]:
    """Every key in values, each once."""
    found: dict[str, None] = {}
    queue = list(values)
    for value in queue:
        if isinstance(value, dict):
            found |= dict.fromkeys(map(str, value))
            queue += value.values()
        elif isinstance(value, list):
            queue += value
    return list(found)
