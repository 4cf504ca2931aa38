"""A peer that misbehaves: an HTTP server whose replies a test decides on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import pytest

Reply = tuple[int, Any, dict[str, str]]
"""Status, body (text, or what becomes JSON), headers."""


class Peer:
    """What was asked, and what is replied.

    Attributes:
        reply: of (body, number of the request, from 0).
        models: reply to `GET /v1/models`.
    """

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any], int], Reply] = lambda body, number: (500, "not set", {})
        self.models: Reply = (404, {}, {})
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = Lock()
        self.url = ""


@pytest.fixture
def peer() -> Iterator[Peer]:
    """The peer, on a port of this machine."""
    peer = Peer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send(peer.models if self.path == "/v1/models" else (404, {}, {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with peer.lock:
                number = len(peer.bodies)
                peer.bodies.append(body)
                peer.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.send(peer.reply(body, number) if self.path == "/v1/chat/completions" else (404, {}, {}))

        def send(self, reply: Reply) -> None:
            status, value, headers = reply
            data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, text)
            with suppress(OSError):  # the judge has hung up
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    peer.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield peer
    server.shutdown()
    server.server_close()
    thread.join()
