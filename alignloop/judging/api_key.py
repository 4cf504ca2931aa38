"""An endpoint's key: fit for a header before it is used, and taken out of everything a server sends back."""

from __future__ import annotations

import base64
import json
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import quote

from alignloop.errors import UserError

_SHORTEST = 6
"""Shorter ones are no secrets: servers that want none are given `EMPTY` or `x`, which answers may well hold."""


@dataclass(frozen=True)
class ApiKey:
    """Attributes:
    value: printable ASCII without blanks; empty: there is none.
    """

    value: str = field(repr=False)

    @classmethod
    def of_environment(cls, name: str) -> ApiKey:
        """The variable's value, without white space around it.

        Raises:
            UserError: no header can hold it; says where, and nothing of the value.
        """
        value = os.environ.get(name, "").strip()
        wrong = next((place for place, letter in enumerate(value) if not "!" <= letter <= "~"), None)
        if wrong is not None:
            raise UserError(
                f"the environment variable {name}: character {wrong + 1} of its {len(value)} is {_kind(value[wrong])}, "
                "which no HTTP header can hold: set it to the key alone"
            )
        return cls(value)

    @cached_property
    def _forms(self) -> re.Pattern[str] | None:
        """The key as it is, quoted for URLs and JSON, and in base64, in letters of either case."""
        if len(self.value) < _SHORTEST:
            return None
        raw = self.value.encode()
        in_base64 = [base64.b64encode(prefix + raw).decode().rstrip("=") for prefix in (b"", b"Bearer ")]
        forms = {self.value, quote(self.value, safe=""), json.dumps(self.value)[1:-1], *in_base64}
        return re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)), re.IGNORECASE)

    def taken_out(self, text: str) -> str:
        """The text without the key."""
        return self._forms.sub("(the key)", text) if self._forms is not None else text


def _kind(letter: str) -> str:
    if letter in "\r\n":
        return "a line break"
    if letter.isspace():
        return "a blank"
    return "a letter that is not ASCII" if letter.isprintable() else "a control character"


def whole_characters(text: str) -> str:
    """The text with halves of surrogate pairs, which no file can hold, as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
