"""Odd bytes, texts and values made from valid ones: cut, repeated, spliced, nested, put in other types.

Everything is drawn from one `random.Random`, so that a seed gives the same inputs again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

DEPTH, LONG = 3_000, 5_000
PIECES: tuple[bytes, ...] = (
    *(piece.encode() for piece in "{ } [ ] : , \" ' \\ # & * ! | > - ? % @ ` ~ <think> </think> ```json ```".split()),
    *(b"\n", b"\r\n", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"),
    *("\u2028\u202e\U0001f600\u0000\x1b[31m".encode(), b"\\ud800", b"\\u0000", b"\\", b"NaN", b"-0", b"1e999", b"null"),
    *(b"9" * LONG, b"[" * DEPTH, b'{"a":' * DEPTH),
)
"""What readers of any kind of text trip over."""
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


def odd_bytes(draw: random.Random, seeds: Sequence[bytes], *, pieces: Sequence[bytes] = PIECES) -> bytes:
    """A seed with one to six changes of its bytes."""
    content = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        at = draw.randrange(len(content) + 1)
        match draw.randrange(7):
            case 0:
                content[at:at] = draw.choice(pieces)
            case 1:
                del content[at : at + draw.choice((1, 4, 40, 400))]
            case 2 if at < len(content):
                content[at] = draw.randrange(256)
            case 3:
                content[at:at] = content[at : at + draw.choice((5, 50, 500))] * draw.choice((1, 2, 50))
            case 4:
                del content[at:]
            case 5:
                other = draw.choice(seeds)
                content[at:] = other[draw.randrange(len(other) + 1) :]
            case 6:
                content[at : at + draw.choice((1, 8, 30))] = draw.choice(pieces)
    return bytes(content)


def odd_value(draw: random.Random, value: Any, *, keys: Sequence[str]) -> Any:
    """A value with one to four of its parts replaced, dropped, renamed, repeated or wrapped."""
    made = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 2, 4))):
        made = _changed(draw, made, keys)
    return made


def any_value(draw: random.Random, *, keys: Sequence[str], depth: int = 3) -> Any:
    """A value of its own, from known keys and odd scalars."""
    if depth == 0 or draw.random() < 0.4:
        return draw.choice(SCALARS)
    parts = [any_value(draw, keys=keys, depth=depth - 1) for _ in range(draw.randrange(4))]
    return parts if draw.random() < 0.5 else {draw.choice(keys): part for part in parts}


def as_json(draw: random.Random, value: Any) -> bytes:
    """As JSON, with or without escapes; lone surrogates stay what they are."""
    return json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", errors="surrogatepass")


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


def _changed(draw: random.Random, value: Any, keys: Sequence[str]) -> Any:
    """The value with one change: of one of its parts, or of itself."""
    if not isinstance(value, dict | list) or not value or draw.random() >= 0.85:
        return _replaced(draw, value, keys)
    at = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
    match draw.randrange(6):
        case 0:
            del value[at]
        case 1 if isinstance(value, dict):
            value[draw.choice(keys)] = value[at]
        case 2 if isinstance(value, dict):
            value[draw.choice(keys)] = any_value(draw, keys=keys, depth=2)
        case 1:
            value *= draw.choice((2, 30))
        case _:
            value[at] = _changed(draw, value[at], keys)
    return value


def _replaced(draw: random.Random, value: Any, keys: Sequence[str]) -> Any:
    """In a list, under a key, deep in lists, or another value."""
    match draw.randrange(5):
        case 0:
            return [value]
        case 1:
            return {draw.choice(keys): value}
        case 2:
            for _ in range(draw.choice((2, 20, 200))):
                value = [value]
            return value
        case _:
            return any_value(draw, keys=keys, depth=1)
