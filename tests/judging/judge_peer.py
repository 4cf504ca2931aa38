"""A peer that misbehaves: an endpoint whose replies, or the very bytes of them, a test decides on."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import parse_headers
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Lock, Thread
from typing import Any, cast

from alignloop.config.engine import JudgeConfig
from alignloop.engines.base import Engine
from alignloop.judging.judge import open_judge
from alignloop.judging.verdicts import Judge
from alignloop.progress import QuietProgress

Reply = tuple[int, Any, dict[str, str]]
"""Status, body (text, or what becomes JSON), headers."""
Write = Callable[[socket.socket], None]
"""Has the connection once a request is read."""


class Peer:
    """`reply` gets (body, number of the request, from 0); `models` is the reply to `GET /v1/models`."""

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
    head = f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return lambda connection: connection.sendall(head.encode() + body)


@contextmanager
def served() -> Iterator[Peer]:
    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            method, path, _ = self.rfile.readline().decode().split(" ", 2)
            headers = {name.lower(): value for name, value in parse_headers(self.rfile).items()}
            reply = peer.answer(method, path, headers, self.rfile.read(int(headers.get("content-length", 0))))
            if isinstance(reply, tuple):
                status, value, more = reply
                data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                reply = sent(data, status=status, headers="".join(f"{k}: {v}\r\n" for k, v in more.items()))
            with suppress(OSError):  # the judge has hung up
                reply(self.connection)

    server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    peer = Peer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield peer
    server.shutdown()
    server.server_close()
    thread.join()


def judge_of(url: str, folder: Path, *, progress: QuietProgress | None = None, **changes: Any) -> Judge:
    values = {"model": "m", "endpoint": url, "both_orders": False, "timeout_seconds": 5.0, **changes}
    return open_judge(JudgeConfig(**values), cast(Engine, None), dir=folder, seed=1, progress=progress)
