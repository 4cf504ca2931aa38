"""Requests to a server that may misbehave: each has one deadline, an answer may not grow, and no answer holds the key.

    request --httpx--> bytes as sent --at most LONGEST_BODY of them, decompressed--> HttpAnswer

httpx's own time limits are for each read, so that a server which sends a byte now and then holds a request for hours,
and its decoders make gigabytes of a small compressed body before anyone can look at their size.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from alignloop.errors import UserError

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10.0
LONGEST_BODY = 4 * 2**20
"""Bytes of an answer after decompression: a hundred times what a judge writes."""
DEEPEST_JSON = 64
"""Lists and objects within each other; no API's answer has ten."""
_CLOSE_SECONDS = 5.0


class TooSlow(Exception):
    """The deadline has passed."""


class TooLarge(Exception):
    """The answer is longer than `LONGEST_BODY`, or cannot be decompressed; says which."""


@dataclass(frozen=True)
class HttpAnswer:
    """A response read to its end: `headers` with names in lower case, `body` decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """ValueError for what is no JSON, or nested beyond all sense."""
        return bounded_json(self.body)


def bounded_json(text: str | bytes, **hooks: Any) -> Any:
    """`json.loads`, where every bad text is a ValueError and every value can be walked through and written out.

    Raises:
        ValueError: no JSON, a number of thousands of digits, or nested deeper than `DEEPEST_JSON`.
    """
    try:
        value = json.loads(text, **hooks)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST_JSON}") from None
    level, depth = [value], 0
    while level := [child for item in level for child in _children(item)]:
        depth += 1
        if depth > DEEPEST_JSON:
            raise ValueError(f"nested deeper than {DEEPEST_JSON}")
    return value


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


class HttpClient:
    """Many requests at a time, each with one deadline: `seconds` from its beginning to the last byte of its answer.

    Raises:
        UserError: one of the settings cannot be.
    """

    def __init__(self, *, headers: Mapping[str, str], seconds: float, connections: int, trust_env: bool) -> None:
        import httpx

        self._seconds = seconds
        try:
            self._client = httpx.AsyncClient(
                # Answers are small: compression would save nothing, and open the way to bombs.
                headers={**headers, "Accept-Encoding": "identity"},
                timeout=httpx.Timeout(None, connect=min(seconds, CONNECT_SECONDS)),
                limits=httpx.Limits(max_connections=connections),
                trust_env=trust_env,
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise UserError(
                f"the proxy that the environment names (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY) cannot be used: {error}"
            ) from error

    async def request(self, method: str, url: str, *, body: Mapping[str, Any] | None = None) -> HttpAnswer:
        """Ask once.

        Raises:
            TooSlow, TooLarge: see there.
            httpx.HTTPError, httpx.InvalidURL: no connection, not HTTP, no URL.
        """
        headers = {} if body is None else {"Content-Type": "application/json"}
        content = None if body is None else json.dumps(body).encode("ascii")
        try:
            async with (
                asyncio.timeout(self._seconds),
                self._client.stream(method, url, content=content, headers=headers) as response,
            ):
                return HttpAnswer(response.status_code, dict(response.headers), await _body(response))
        except TimeoutError:
            raise TooSlow from None

    async def close(self) -> None:
        """A server that does not let go of its connection is not waited for."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._client.aclose()


async def _body(response: httpx.Response) -> bytes:
    """The body decompressed; TooLarge where it is too long, or compressed in a way that nobody asked for."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise TooLarge(f"it is compressed ({encoding[:40]}), which was not asked for")
    inflate = zlib.decompressobj(wbits=47) if encoding not in ("", "identity") else None
    body = bytearray()
    async for chunk in response.aiter_raw():
        try:
            body += chunk if inflate is None else inflate.decompress(chunk, LONGEST_BODY + 1 - len(body))
        except zlib.error as error:
            raise TooLarge(f"it cannot be decompressed ({encoding}: {error})") from None
        if len(body) > LONGEST_BODY:
            raise TooLarge(f"it is longer than {LONGEST_BODY // 2**20} MiB, which no judge's answer is")
    return bytes(body)


_SHORTEST = 6
"""Shorter ones are no secrets: servers that want none are given `EMPTY` or `x`, which answers may well hold."""


@dataclass(frozen=True)
class ApiKey:
    """A key of printable ASCII without blanks; empty where there is none."""

    value: str = field(repr=False)

    @classmethod
    def of_environment(cls, name: str) -> ApiKey:
        """The variable's value, without white space around it.

        Raises:
            UserError: no header can hold it; says where, and nothing of the value.
        """
        value = os.environ.get(name, "").strip()
        wrong = next((index for index, letter in enumerate(value) if not "!" <= letter <= "~"), None)
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
