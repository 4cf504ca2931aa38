"""What has a grammar: JSON by a schema, and code blocks that parse. Nothing is run."""

from __future__ import annotations

import ast
import json
import re
import textwrap
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from alignloop.rewards.rows import Messages, by_row

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_BLOCK = re.compile(r"^[ \t]*```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
"""A fenced block: its language, and what is in it; the last one may be left open."""
_LANGUAGES = {"python": "python", "python3": "python", "py": "python", "json": "json"}


def fits_schema(
    prompts: Sequence[Messages], completions: Sequence[Messages], schema: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 where the answer is JSON (alone, or in its one fenced block) that the row's JSON Schema allows, else 0.

    Args:
        schema: an object, or JSON text of one; draft 2020-12 where `$schema` names no other. References lead within it
            alone: nothing is fetched.

    Raises:
        DataError: a column that is no schema, or one that refers to itself without end.
    """
    return by_row(_fits, schema, name="fits_schema", prompts=prompts, completions=completions)


def code_parses(
    prompts: Sequence[Messages],
    completions: Sequence[Messages],
    code_language: Sequence[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1 where every block of the answer's Python and JSON parses, else 0; None where it has no such block.

    Args:
        code_language: `python` or `json`, where a row says which is asked for: then only blocks of it count, and those
            that name no language, and an answer without one has 0. A gate needs it, for without it an answer passes
            by having no code.

    Raises:
        DataError: a language of another name.
    """
    languages = ["" if name is None else name for name in code_language or [None] * len(prompts)]
    return by_row(_parses, languages, name="code_parses", prompts=prompts, completions=completions)


def _fits(answer: str, schema: object) -> float:
    validator = _validator(schema if isinstance(schema, str) else json.dumps(schema, sort_keys=True))
    blocks = _BLOCK.findall(answer)
    try:
        value = _strict_json(blocks[0][1] if len(blocks) == 1 else answer)
        return float(validator.is_valid(value))
    except (ValueError, RecursionError):  # no JSON, or deeper than anyone means
        return 0.0


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Validator:
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from jsonschema_specifications import REGISTRY
    from referencing.exceptions import Unresolvable

    try:
        read = json.loads(schema)
    except ValueError as error:
        raise ValueError(f"column schema: no JSON ({error}): {schema[:60]!r}") from error
    if not isinstance(read, dict):
        raise ValueError(f"column schema: {schema[:60]}: a JSON Schema is an object")
    kind = validator_for(read, default=Draft202012Validator)
    # The drafts alone: without a registry jsonschema would fetch references from the network.
    validator: Validator = kind(read, registry=REGISTRY)
    try:
        kind.check_schema(read)
        validator.is_valid(None)
    except SchemaError as error:
        raise ValueError(f"column schema: no JSON Schema: {error.message}") from error
    except Unresolvable as error:
        raise ValueError(f"column schema: {error}: references must lead within it") from error
    except RecursionError as error:
        raise ValueError("column schema: it refers to itself without end") from error
    return validator


def _strict_json(text: str) -> Any:
    """Raises ValueError where it is no JSON; NaN and Infinity are none."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def _parses(answer: str, wanted: object) -> float | None:
    if wanted and (not isinstance(wanted, str) or wanted not in ("python", "json")):
        raise ValueError(f"column code_language: {wanted!r}: python or json is known")
    blocks = [
        (_LANGUAGES.get(language.lower(), "" if language else wanted), textwrap.dedent(text))
        for language, text in _BLOCK.findall(answer)
        if text.strip()
    ]
    asked = [(language, text) for language, text in blocks if language and language == (wanted or language)]
    if not asked:
        return 0.0 if wanted else None
    return float(all(_is_python(text) if language == "python" else _is_json(text) for language, text in asked))


def _is_python(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" is allowed, if unwise
            ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the last two: nested too deep for the parser
        return False
    return True


def _is_json(text: str) -> bool:
    try:
        _strict_json(text)
    except (ValueError, RecursionError):
        return False
    return True
