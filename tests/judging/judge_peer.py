"""A peer that misbehaves: an endpoint whose replies, or the very bytes of them, a test decides on."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from threading import Lock
from typing import Any

Reply = tuple[int, Any, dict[str, str]]
"""Status, body (text, or what becomes JSON), headers."""
Write = Callable[[socket.socket], None]
"""Has the connection once a request is read."""


class Peer:
    """What was asked, and what is replied.

    Attributes:
        reply: of (body, number of the request, from 0).
        models: reply to `GET /v1/models`.
    """

    def __init__(self, url: str) -> None:
        self.reply: Callable[[dict[str, Any], int], Reply | Write] = lambda body, number: (500, "not set", {})
        self.models: Reply = (404, {}, {})
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = Lock()
        self.url = url

    def answer(self, method: str, path: str, headers: dict[str, str], data: bytes) -> Reply | Write:
        if method == "GET":
            return self.models if path == "/v1/models" else (404, {}, {})
        body = json.loads(data)
        with self.lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
        return self.reply(body, number) if path == "/v1/chat/completions" else (404, {}, {})


def sent(body: bytes, *, status: int = 200, headers: str = "") -> Write:
    """A whole response."""
    head = f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return lambda connection: connection.sendall(head.encode() + body)
