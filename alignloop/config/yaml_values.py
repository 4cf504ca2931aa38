"""YAML that people write, as plain values: recipes, `--set`, judging prompts, configurations of other tools.

The scalars are YAML 1.2's, because YAML 1.1 reads things that nobody means:

    1:30, 2026-11-29, yes, no, on, off      texts (1.1: 90, a date, true, false)
    5e-7, 1_000, 0x1f, .inf                 numbers, as Python writes them
    010                                     refused: 8 in YAML 1.1, 10 in YAML 1.2
    true, false, null, ~                    as in both

What a file can do to its reader is bounded: its size, its depth, and what its aliases make of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

import yaml

MAX_BYTES = 256 * 1024
"""Of a file. The longest bundled one has 5 KB; a list of a thousand files takes 50."""
MAX_DEPTH = 32
"""Lists and sections within each other."""
MAX_VALUES = 10_000
"""Values and keys in a file, each counted as often as aliases repeat it. So many are read in half a second."""
MAX_DIGITS = 40
_TAG = "tag:yaml.org,2002:"
_LEADING_ZERO = "alignloop:leading-zero"
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?(?!0[0-9_]*[0-9]\Z)(?:[0-9]+|[0-9]{1,3}(?:_[0-9]{3})+|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+)\Z")
_OCTAL = re.compile(r"[-+]?0[0-9_]*[0-9]\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:[0-9]{1,3}(?:_[0-9]{3})+|[0-9]+)?(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?(?<![-+.])"
    r"|[-+]?[0-9]+\.|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_UNUSABLE = re.compile("[\0\ud800-\udfff]")


class YamlProblem(ValueError):
    """What is wrong with a text, with its line and column where there is one. No YAML at all, or one of:"""


class YamlRefused(YamlProblem):
    """It is YAML, and is not read: too large, or it can be read in two ways."""


def read_yaml(path: Path, *, tags: Collection[str] = ()) -> Any:
    """The values of a file: texts, numbers, booleans, None, lists, and dicts with texts as keys.

    Args:
        tags: whose scalars are taken as texts, for example lm-eval's `!function`.

    Raises:
        YamlProblem: it cannot be read, in one sentence without the path.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise YamlProblem(f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise YamlRefused(f"is larger than {MAX_BYTES // 1024} KiB, which is no file that a person writes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlProblem(f"is no text in UTF-8 ({error.reason}, byte {error.start})") from error
    return parse_yaml(text, tags=tags)


def parse_yaml(text: str, *, tags: Collection[str] = ()) -> Any:
    """The values of a text; see `read_yaml`."""
    try:
        loader = _Loader(text)
        loader.text_tags = frozenset(tags)
        node = loader.get_single_node()
        if node is None:
            return None
        _Measure().measure(node, depth=0)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise YamlProblem(_sentence(error)) from error
    except YamlProblem:
        raise
    except (ValueError, OverflowError) as error:  # the library's own: a code point or a version beyond all bounds
        raise YamlProblem(f"not valid YAML: {str(error)[:100]}") from error


def dump_yaml(values: Any, *, sort_keys: bool = False) -> str:
    """Plain values as YAML that `parse_yaml` reads back as they are."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=sort_keys, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes texts which YAML 1.2 takes for numbers, too, and escapes what it would lose."""


def _text_node(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # The library writes NEL as a line break outside double quotes, and reads a space.
    return dumper.represent_scalar(f"{_TAG}str", text, style='"' if "\x85" in text else None)


class _Loader(yaml.SafeLoader):
    """Composes and constructs what the table above says, and nothing else."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (the library's name and type)
    yaml_constructors: ClassVar[dict[Any, Any]] = {}
    text_tags: frozenset[str] = frozenset()
    _depth = 0
    _num_nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        # Counted here, too: what is nested a hundred thousand deep would end Python's stack before it can be measured,
        # and half a million brackets would take their time.
        self._depth += 1
        self._num_nodes += 1
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if self._num_nodes > MAX_VALUES:
            raise _refusal(event, f"there are more than {MAX_VALUES:,} values up to here")
        if self._depth > MAX_DEPTH:
            raise _refusal(event, f"lists and sections stand more than {MAX_DEPTH} deep in each other")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = _key(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here a second time", key_node.start_mark
                )
            seen.add(key)
        self.flatten_mapping(node)
        # What `<<` brings in has come through here only where it stands elsewhere, too.
        return {_key(key): self.construct_object(value, deep=True) for key, value in node.value}


class _Measure:
    """How much a node is with its aliases written out."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int]] = {}
        self._within: set[int] = set()

    def measure(self, node: yaml.Node, *, depth: int) -> tuple[int, int]:
        """(values, depth) of it.

        Raises:
            YamlRefused: more than the bounds, or it holds itself.
        """
        if id(node) in self._within:
            raise _refusal(node, "what this anchor names holds an alias of itself")
        known = self._known.get(id(node))
        if known is None:
            self._within.add(id(node))
            children = [child for entry in _entries(node) for child in entry]
            sizes = [self.measure(child, depth=depth + 1) for child in children] if depth < MAX_DEPTH else [(0, 1)]
            known = 1 + sum(size for size, _ in sizes), 1 + max((height for _, height in sizes), default=0)
            self._within.discard(id(node))
            self._known[id(node)] = known
        if known[0] > MAX_VALUES:
            raise _refusal(node, f"with its aliases written out this holds more than {MAX_VALUES:,} values")
        if depth + known[1] > MAX_DEPTH + 1:
            raise _refusal(node, f"lists and sections stand more than {MAX_DEPTH} deep in each other")
        return known


def _entries(node: yaml.Node) -> list[tuple[yaml.Node, ...]]:
    if isinstance(node, yaml.MappingNode):
        return [tuple(entry) for entry in node.value]
    return [(child,) for child in node.value] if isinstance(node, yaml.SequenceNode) else []


def _key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _refusal(node, "a key must be a text")
    return _usable(node)


def _usable(node: yaml.ScalarNode) -> str:
    """The text; no path, name or prompt can hold a NUL or half a character."""
    found = _UNUSABLE.search(node.value)
    if found is not None:
        raise _refusal(node, f"the text holds the character {found[0]!r}, which no file can")
    return str(node.value)


def _scalar(pattern: re.Pattern[str], what: str, value: Callable[[str], Any]) -> Callable[[_Loader, Any], Any]:
    """A constructor that refuses, as `what`, a text that its tag does not fit."""

    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        text = loader.construct_scalar(node)
        if not pattern.match(text):
            raise _refusal(node, f"{_short(text)} is {what}")
        if pattern is _INT and len(text) > MAX_DIGITS:
            raise _refusal(
                node, f"a number of {len(text):,} digits; write one of at most {MAX_DIGITS}, or a text in quotes"
            )
        return value(text)

    return construct


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    loader.construct_scalar(node)
    return _usable(node)


def _dict(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise _refusal(node, "expected `key: value` lines")
    return loader.construct_mapping(node)


def _leading_zero(loader: _Loader, node: yaml.ScalarNode) -> Any:
    text = loader.construct_scalar(node)
    raise _refusal(
        node,
        f"{_short(text)}: a number that begins with 0 is octal in YAML 1.1 and decimal in YAML 1.2; write it without "
        "the 0, octal as 0o17, or a text in quotes",
    )


def _unknown(loader: _Loader, node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode) and node.tag in loader.text_tags:
        return _usable(node)
    raise _refusal(node, f"the tag {_short(node.tag.replace(_TAG, '!!'))} is not read here")


def _refusal(where: Any, what: str) -> YamlRefused:
    """Of a node or an event."""
    mark = where.start_mark
    return YamlRefused(f"line {mark.line + 1}, column {mark.column + 1}: {what}")


def _sentence(error: yaml.YAMLError) -> str:
    """Line, column and what is wrong there."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return f"not valid YAML: {' '.join(str(error).split())[:200]}"
    what = " ".join(str(part) for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part)
    return f"line {mark.line + 1}, column {mark.column + 1}: not valid YAML: {what[:200]}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


_NUMBER_STARTS = list("-+.0123456789")
_Loader.add_implicit_resolver(f"{_TAG}null", _NULL, ["~", "n", "N", ""])
_Loader.add_implicit_resolver(f"{_TAG}bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver(_LEADING_ZERO, _OCTAL, list("-+0"))
_Loader.add_implicit_resolver(f"{_TAG}int", _INT, _NUMBER_STARTS)
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, _NUMBER_STARTS)
_Loader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"<<\Z"), ["<"])
for _name, _pattern in ((f"{_TAG}int", _INT), (f"{_TAG}float", _FLOAT), (_LEADING_ZERO, _OCTAL)):
    _Dumper.add_implicit_resolver(_name, _pattern, _NUMBER_STARTS)
_Dumper.add_representer(str, _text_node)
_CONSTRUCTORS: dict[str, Callable[[Any, Any], Any]] = {
    "null": _scalar(_NULL, "not null", lambda text: None),
    "bool": _scalar(_BOOL, "neither true nor false", lambda text: text.lower() == "true"),
    "int": _scalar(_INT, "no whole number", lambda text: int(text.replace("_", ""), 0)),
    "float": _scalar(_FLOAT, "no number", lambda text: float(re.sub(r"\.(?=[in])", "", text.replace("_", "").lower()))),
    "str": _text,
    "seq": lambda loader, node: loader.construct_sequence(node, deep=True),
    "map": _dict,
}
for _name, _construct in _CONSTRUCTORS.items():
    _Loader.add_constructor(f"{_TAG}{_name}", _construct)
_Loader.add_constructor(_LEADING_ZERO, _leading_zero)
_Loader.add_constructor(None, _unknown)
