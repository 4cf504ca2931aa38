"""One request to an OpenAI-compatible endpoint, and what its reply means.

    messages --POST /chat/completions--> ChatReply | RequestRefused | EndpointFault | EndpointUnusable

Servers differ in what they take: a request refused for a parameter is repeated without it, and where that helps, all
later ones leave it out, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from alignloop.config.engine import JudgeConfig
from alignloop.errors import UserError
from alignloop.judging.http_client import ApiKey, HttpAnswer, HttpClient, TooLarge, TooSlow, whole_characters
from alignloop.records import Message

_SHORTEST_LIMIT = 2**16
_CHARACTERS_A_TOKEN = 64
"""More than any token has: what is longer than `judge.max_tokens` of these was not written under that limit."""
_BUSY = (429, 503)
_NO_RIGHT = (401, 403)
_LOCAL = ("localhost", "127.0.0.1", "::1")
_TOO_LONG = ("context length", "context_length", "maximum context", "max_model_len", "too long", "too many tokens")
"""What servers say of a prompt that does not fit."""


class RequestRefused(Exception):
    """The endpoint does not take this request; another one it may."""


class EndpointFault(Exception):
    """The endpoint failed in a way that may pass. `busy`: it asks to wait, `wait_seconds` where it names a time."""

    def __init__(self, what: str, *, busy: bool = False, wait_seconds: float | None = None) -> None:
        super().__init__(what)
        self.busy = busy
        self.wait_seconds = wait_seconds


class EndpointUnusable(Exception):
    """Asking again cannot help: no right, no such model, no such address."""


@dataclass(frozen=True)
class ChatReply:
    """What the model wrote; `cut`: it was stopped at its token limit."""

    text: str
    cut: bool


@dataclass(frozen=True)
class _Style:
    form: Literal["json_schema", "json_object", "none"] = "json_schema"
    max_tokens_name: str = "max_tokens"
    left_out: frozenset[str] = frozenset()

    def without(self, parameter: str, message: str) -> tuple[_Style, str] | None:
        """A style that a refusal of the present one may not meet, and what it changes; None: there is no other."""
        words = f"{parameter} {message}".lower()
        if "max_completion_tokens" in words and self.max_tokens_name == "max_tokens":
            return replace(self, max_tokens_name="max_completion_tokens"), "max_tokens"
        for name in ("seed", "temperature"):
            if name in words and name not in self.left_out:
                return replace(self, left_out=self.left_out | {name}), name
        if self.form == "none":
            return None
        return replace(self, form="json_object" if self.form == "json_schema" else "none"), "response_format"


class ChatCompletions:
    """A client of one endpoint; `say` gets one line where the endpoint does not take a parameter.

    Raises:
        UserError: the endpoint is no URL, or its key is none.
    """

    def __init__(self, config: JudgeConfig, *, say: Callable[[str], None] = lambda line: None) -> None:
        self.url = endpoint_url(config)
        self._config = config
        self._say = say
        self._style = _Style()
        self._key = ApiKey.of_environment(config.api_key_variable)
        self._client = HttpClient(
            headers={"Authorization": f"Bearer {self._key.value}"} if self._key.value else {},
            seconds=config.timeout_seconds,
            connections=config.concurrency,
            trust_env=urlsplit(self.url).hostname not in _LOCAL,  # a proxy does not know this machine's own ports
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.close()

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        temperature: float,
        max_tokens: int,
        seed: int | None,
        schema: dict[str, Any],
    ) -> ChatReply:
        """Ask once; answers are checked against `schema` by whoever reads them, for not every server can.

        Raises:
            RequestRefused, EndpointFault, EndpointUnusable: see there.
        """
        values = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        style = self._style
        changes: list[tuple[str, str]] = []
        while True:
            response = await self._send("POST", "/chat/completions", self._body(style, messages, values, schema))
            if response.status not in (400, 422):
                break
            parameter, message = self._refusal(response)
            other = None if any(words in message.lower() for words in _TOO_LONG) else style.without(parameter, message)
            if other is None:
                raise RequestRefused(f"the endpoint refuses the request: {message}")
            style = other[0]
            changes.append((other[1], message))
        reply = self._read(response, longest=max(_SHORTEST_LIMIT, _CHARACTERS_A_TOKEN * max_tokens))
        self._adopt(style, changes)
        return reply

    async def models(self) -> tuple[str, ...] | None:
        """Names under which models are served; None where the endpoint does not list them.

        Raises:
            EndpointFault, EndpointUnusable: see there.
        """
        try:
            response = await self._send("GET", "/models", None)
            return tuple(self._key.taken_out(str(model["id"]))[:200] for model in response.json()["data"])
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

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> HttpAnswer:
        """A success, a refusal of this very request, or a `GET` of a missing path: few servers list their models."""
        response = await self._response(method, path, body)
        status = response.status
        if status < 300 or status in (400, 422) or (method == "GET" and status in (404, 405, 501)):
            return response
        what = f"HTTP {status}: {self._quoted(response)}"
        if status in _BUSY or status == 408 or status >= 500:
            try:
                wait = max(0.0, float(response.headers["retry-after"]))
            except (KeyError, ValueError):
                wait = None
            raise EndpointFault(what, busy=status in _BUSY, wait_seconds=wait)
        if status in _NO_RIGHT:
            key = "refused the key in" if self._key.value else "wants a key; none is set in"
            raise EndpointUnusable(
                f"{what} - the endpoint {key} the environment variable {self._config.api_key_variable}"
            )
        if status == 413:
            raise RequestRefused(f"the endpoint refuses the request: {what}")
        raise EndpointUnusable(what)

    async def _response(self, method: str, path: str, body: dict[str, Any] | None) -> HttpAnswer:
        import httpx

        try:
            return await self._client.request(method, self.url + path, body=body)
        except httpx.ConnectTimeout as error:
            raise EndpointFault("no connection (judge.timeout_seconds)") from error
        except TooSlow as error:
            seconds = f"{self._config.timeout_seconds:g} s"
            raise EndpointFault(f"no answer within {seconds} (judge.timeout_seconds)") from error
        except TooLarge as error:
            raise EndpointFault(f"the endpoint's answer is not read: {error}") from error
        except httpx.InvalidURL as error:
            raise EndpointUnusable(f"judge.endpoint is no URL: {self._shown(str(error))}") from error
        except httpx.HTTPError as error:
            raise EndpointFault(f"{type(error).__name__}: {self._shown(str(error))}") from error

    def _refusal(self, response: HttpAnswer) -> tuple[str, str]:
        """(the parameter named, the message) of a refusal. What a server repeats of the request is not looked at."""
        try:
            value = response.json()
        except ValueError:
            return "", self._quoted(response)
        error = value.get("error", value) if isinstance(value, dict) else value
        if isinstance(error, dict) and isinstance(error.get("detail"), list):
            found = [item for item in error["detail"] if isinstance(item, dict)]
            locations = [item.get("loc", ()) for item in found]
            where = " ".join(str(part) for at in locations for part in (at if isinstance(at, list) else [at]))
            return where, self._shown("; ".join(str(item.get("msg", "")) for item in found))
        if isinstance(error, dict) and error.get("message"):
            return str(error.get("param") or ""), self._shown(str(error["message"]))
        return "", self._quoted(response)

    def _read(self, response: HttpAnswer, *, longest: int) -> ChatReply:
        """What the model wrote; what is longer than its token limit allows is cut, and so it is no answer."""
        try:
            choice = response.json()["choices"][0]
            content = choice["message"]["content"]
        except (ValueError, KeyError, TypeError, IndexError):
            what = f"HTTP {response.status}, but no chat completion: {self._quoted(response)}"
            raise EndpointFault(what) from None
        if isinstance(content, list):  # some servers send the text in parts
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        text = self._key.taken_out(whole_characters(content)) if isinstance(content, str) else ""
        return ChatReply(text[:longest], choice.get("finish_reason") == "length" or len(text) > longest)

    def _adopt(self, style: _Style, changes: Sequence[tuple[str, str]]) -> None:
        """What helped one request is done for all from here on; said once."""
        if not changes or self._style == style:
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

    def _quoted(self, response: HttpAnswer) -> str:
        return self._shown(response.text) or "(empty)"

    def _shown(self, text: str) -> str:
        return " ".join(self._key.taken_out(whole_characters(text)).split())[:300]


def endpoint_url(config: JudgeConfig) -> str:
    """The base URL without a slash at its end; UserError where it is no URL, or holds a password."""
    assert config.endpoint is not None, "an endpoint's judge has one"
    try:
        parts = urlsplit(config.endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # brackets that do not close, a port that is none
        usable = False
    if not usable or not config.endpoint.isprintable() or " " in config.endpoint:
        raise UserError(f"judge.endpoint: {config.endpoint!r} is no URL - write for example http://localhost:8000/v1")
    if parts.username or parts.password:
        raise UserError(
            f"judge.endpoint: the URL of {parts.hostname} holds a user name or password, which would be written into "
            f"the run directory: take it out and set the environment variable {config.api_key_variable}"
        )
    return config.endpoint.rstrip("/").removesuffix("/chat/completions")
