"""One request to an OpenAI-compatible endpoint, and what its reply means.

    messages --POST /chat/completions--> Reply | RequestRefused | EndpointFault | EndpointUnusable

Servers differ in what they take: a request refused for a parameter is repeated without it, and where that helps, all
later ones leave it out, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from alignloop.config.engine import JudgeConfig
from alignloop.errors import UserError
from alignloop.records import Message

if TYPE_CHECKING:
    import httpx

_CONNECT_SECONDS = 10.0
_BUSY = (429, 503)
_NO_RIGHT = (401, 403)
_LOCAL = ("localhost", "127.0.0.1", "::1")
_TOO_LONG = ("context length", "context_length", "maximum context", "max_model_len", "too long", "too many tokens")
"""What servers say of a prompt that does not fit."""


class RequestRefused(Exception):
    """The endpoint does not take this request; another one it may."""


class EndpointFault(Exception):
    """The endpoint failed in a way that may pass.

    Args:
        busy: it is there and asks for patience.
        wait_seconds: as it says itself.
    """

    def __init__(self, what: str, *, busy: bool = False, wait_seconds: float | None = None) -> None:
        super().__init__(what)
        self.busy = busy
        self.wait_seconds = wait_seconds


class EndpointUnusable(Exception):
    """Asking again cannot help: no right, no such model, no such address."""


@dataclass(frozen=True)
class Reply:
    """What the model wrote; `cut`: it was stopped at its token limit."""

    text: str
    cut: bool


@dataclass(frozen=True)
class _Style:
    """How requests are written for this endpoint."""

    form: Literal["json_schema", "json_object", "none"] = "json_schema"
    max_tokens_name: str = "max_tokens"
    left_out: frozenset[str] = frozenset()

    def without(self, parameter: str, message: str) -> tuple[_Style, str] | None:
        """A style that a refusal of the present one may not meet, and what it changes; None: there is no other."""
        said = f"{parameter} {message}".lower()
        if "max_completion_tokens" in said and self.max_tokens_name == "max_tokens":
            return replace(self, max_tokens_name="max_completion_tokens"), "max_tokens"
        for name in ("seed", "temperature"):
            if name in said and name not in self.left_out:
                return replace(self, left_out=self.left_out | {name}), name
        if self.form == "none":
            return None
        return replace(self, form="json_object" if self.form == "json_schema" else "none"), "response_format"


class ChatCompletions:
    """A client of one endpoint; many threads may use it at once.

    Args:
        config: `endpoint` is set.
        say: gets one line where the endpoint does not take a parameter.
    """

    def __init__(self, config: JudgeConfig, *, say: Callable[[str], None] = lambda line: None) -> None:
        import httpx

        self.url = endpoint_url(config)
        self._config = config
        self._say = say
        self._style = _Style()
        self._lock = Lock()
        self._key = os.environ.get(config.api_key_variable, "").strip()
        seconds = config.timeout_seconds
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            # Each request waits for its model, and for none of the others.
            timeout=httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS), pool=None),
            limits=httpx.Limits(max_connections=config.concurrency),
            trust_env=urlsplit(self.url).hostname not in _LOCAL,  # a proxy does not know this machine's own ports
        )

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def complete(
        self,
        messages: Sequence[Message],
        *,
        temperature: float,
        max_tokens: int,
        seed: int | None,
        schema: dict[str, Any],
    ) -> Reply:
        """Ask once.

        Args:
            schema: JSON schema of the answer; checked by whoever reads the answer, for not every server can.

        Raises:
            RequestRefused, EndpointFault, EndpointUnusable: see there.
        """
        values = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        style = self._style
        changes: list[tuple[str, str]] = []
        while True:
            response = self._send("POST", "/chat/completions", self._body(style, messages, values, schema))
            if response.status_code not in (400, 422):
                break
            parameter, message = self._refusal(response)
            other = None if any(words in message.lower() for words in _TOO_LONG) else style.without(parameter, message)
            if other is None:
                raise RequestRefused(f"the endpoint refuses the request: {message}")
            style = other[0]
            changes.append((other[1], message))
        reply = _read(response, text=self._quoted(response))
        self._adopt(style, changes)
        return reply

    def models(self) -> tuple[str, ...] | None:
        """Names under which models are served; None where the endpoint does not list them.

        Raises:
            EndpointFault, EndpointUnusable: see there.
        """
        try:
            response = self._send("GET", "/models", None)
            return tuple(str(model["id"]) for model in response.json()["data"])
        except (ValueError, KeyError, TypeError):
            return None

    def _body(
        self, style: _Style, messages: Sequence[Message], values: dict[str, Any], schema: dict[str, Any]
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
        }
        for name, value in values.items():
            if value is not None and name not in style.left_out:
                body[style.max_tokens_name if name == "max_tokens" else name] = value
        if style.form == "json_schema":
            wanted = {"name": "answer", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        elif style.form == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """A response that is a success, or a refusal of this very request.

        `GET` of a path that is not there is a response, too: few servers list their models.
        """
        import httpx

        try:
            response = self._client.request(method, self.url + path, json=body)
        except httpx.TimeoutException as error:
            seconds = f"{self._config.timeout_seconds:g} s"
            what = "no connection" if isinstance(error, httpx.ConnectTimeout) else f"no answer within {seconds}"
            raise EndpointFault(f"{what} (judge.timeout_seconds)") from error
        except httpx.TransportError as error:
            raise EndpointFault(f"{type(error).__name__}: {self._redacted(str(error))}") from error
        status = response.status_code
        if status < 300 or status in (400, 422) or (method == "GET" and status in (404, 405, 501)):
            return response
        what = f"HTTP {status}: {self._quoted(response)}"
        if status in _BUSY or status == 408 or status >= 500:
            raise EndpointFault(what, busy=status in _BUSY, wait_seconds=_wait_asked(response))
        if status in _NO_RIGHT:
            key = "refused the key in" if self._key else "wants a key; none is set in"
            raise EndpointUnusable(
                f"{what} - the endpoint {key} the environment variable {self._config.api_key_variable}"
            )
        if status in (413,):
            raise RequestRefused(f"the endpoint refuses the request: {what}")
        raise EndpointUnusable(what)

    def _refusal(self, response: httpx.Response) -> tuple[str, str]:
        """(the parameter named, the message) of a refusal. What a server repeats of the request is not looked at."""
        try:
            value = response.json()
        except ValueError:
            return "", self._quoted(response)
        error = value.get("error", value) if isinstance(value, dict) else value
        if isinstance(error, dict) and isinstance(error.get("detail"), list):
            found = [item for item in error["detail"] if isinstance(item, dict)]
            where = " ".join(str(part) for item in found for part in item.get("loc", ()))
            return where, self._redacted("; ".join(str(item.get("msg", "")) for item in found))[:300]
        if isinstance(error, dict) and error.get("message"):
            return str(error.get("param") or ""), self._redacted(str(error["message"]))[:300]
        return "", self._quoted(response)

    def _adopt(self, style: _Style, changes: Sequence[tuple[str, str]]) -> None:
        """What helped one request is done for all from here on; said once."""
        if not changes:
            return
        with self._lock:
            if self._style == style:
                return
            self._style = style
        for name in dict.fromkeys(name for name, _ in changes):
            message = next(message for changed, message in changes if changed == name)
            what = {
                "max_tokens": "wants max_completion_tokens for max_tokens",
                "response_format": f"does not hold answers to the prompt's schema (asking with {style.form!r} instead; "
                "every answer is checked all the same)",
            }.get(name, f"does not take `{name}`: it is left out")
            self._say(f"judge: {self.url} {what}: {' '.join(message.split())[:160]}")

    def _quoted(self, response: httpx.Response) -> str:
        return self._redacted(" ".join(response.text[:1000].split()))[:300] or "(empty)"

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "(the key)") if self._key else text


def endpoint_url(config: JudgeConfig) -> str:
    """The base URL, without a slash at its end.

    Raises:
        UserError: it is none, or it holds a password.
    """
    assert config.endpoint is not None, "an endpoint's judge has one"
    parts = urlsplit(config.endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"judge.endpoint: {config.endpoint!r} is no URL - write for example http://localhost:8000/v1")
    if parts.username or parts.password:
        raise UserError(
            f"judge.endpoint: the URL of {parts.hostname} holds a user name or password, which would be written into "
            f"the run directory: take it out and set the environment variable {config.api_key_variable}"
        )
    return config.endpoint.rstrip("/").removesuffix("/chat/completions")


def _read(response: httpx.Response, *, text: str) -> Reply:
    try:
        choice = response.json()["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, KeyError, TypeError, IndexError):
        raise EndpointFault(f"HTTP {response.status_code}, but no chat completion: {text}") from None
    if isinstance(content, list):  # some servers send the text in parts
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return Reply(content if isinstance(content, str) else "", choice.get("finish_reason") == "length")


def _wait_asked(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
