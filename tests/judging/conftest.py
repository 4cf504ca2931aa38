"""The endpoint that tests of the judge decide on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from http.client import parse_headers
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread

import pytest
from judge_peer import Peer, sent

from alignloop.judging import endpoint


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    """The peer, on a port of this machine; failed calls are soon made again, and no key is set."""
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

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
