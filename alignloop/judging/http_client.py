"""Requests to a server that may misbehave: each has one deadline, and an answer may not grow without bounds.

    request --httpx--> bytes as sent --at most LONGEST_BODY of them, decompressed--> HttpAnswer

httpx's own time limits are for each read, so that a server which sends a byte now and then holds a request for hours,
and its decoders make gigabytes of a small compressed body before anyone can look at their size.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    """A response read to its end.

    Attributes:
        headers: names in lower case.
        body: decompressed.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Raises ValueError for what is no JSON, or nested beyond all sense."""
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
    """Many requests at a time, each with one deadline.

    Args:
        headers: sent with every request.
        seconds: of a request, from its beginning to the last byte of its answer.
        connections: at a time.
        trust_env: whether the environment's proxies are used.

    Raises:
        UserError: one of them cannot be.
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
    """The whole of it, decompressed.

    Raises:
        TooLarge: it is too long, or compressed in a way that nobody asked for.
    """
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
