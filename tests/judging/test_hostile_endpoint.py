"""The endpoint's judge against a server that means harm, or is very broken: no hang, no gigabytes, no traceback."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import time
import tracemalloc
from pathlib import Path

import pytest
from judge_peer import Peer, Write, judge_of, sent

from alignloop.config.engine import JudgeConfig
from alignloop.errors import EngineError, UserError
from alignloop.judging.chat_completions import ChatCompletions
from alignloop.judging.http_client import LONGEST_BODY, ApiKey
from alignloop.judging.reading import UnreadableAnswer, object_in
from alignloop.judging.verdicts import PairToCompare, Verdict
from alignloop.records import Message

KEY = "sk-very+secret/key123"
GOOD = '{"reason": "", "verdict": "A better"}'


@pytest.fixture(autouse=True)
def _key(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def chat(content: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}).encode()


def dripped(data: bytes) -> Write:
    def write(connection: socket.socket) -> None:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(0.03)

    return write


def asked(peer: Peer, folder: Path, **changes: object) -> Verdict:
    judge = judge_of(peer.url, folder, **{"max_retries": 0, **changes})
    (verdict,) = judge.compare([PairToCompare("p", (Message(role="user", content="A tree?"),), "Oak", "Elm")])
    assert KEY not in (folder / "finished.jsonl").read_text()
    return verdict


def failure(peer: Peer, folder: Path, **changes: object) -> str:
    with pytest.raises(EngineError) as raised:
        asked(peer, folder, **changes)
    said = str(raised.value)
    assert KEY not in said
    assert len(said) < 1500
    return said


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"X-A: b\r\n" * 100,
        HEAD + b"Content-Length: 3000\r\n\r\n" + b" " * 3000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 500,
    ],
    ids=["headers", "body", "chunks"],
)
def test_a_request_has_one_deadline(peer: Peer, tmp_path: Path, data: bytes) -> None:
    """A byte now and then is no answer; httpx's own limits are for each read."""
    peer.reply = lambda *_: dripped(data)
    start = time.monotonic()
    assert "no answer within 0.3 s (judge.timeout_seconds)" in failure(peer, tmp_path, timeout_seconds=0.3)
    assert time.monotonic() - start < 8.0  # the whole would take 15 s and more


def endless(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"Connection: close\r\n\r\n")
    for _ in range(3000):
        connection.sendall(b"x" * 2**20)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (endless, "longer than 4 MiB"),
        (sent(gzip.compress(b" " * 2**28), headers="Content-Encoding: gzip\r\n"), "longer than 4 MiB"),
        (sent(b"hello", headers="Content-Encoding: gzip\r\n"), "cannot be decompressed"),
        (sent(b"x", headers="Content-Encoding: br\r\n"), "compressed (br), which was not asked for"),
        (sent(gzip.compress(b"x"), headers="Content-Encoding: gzip, gzip\r\n"), "not asked for"),
        (sent(b"[" * 200_000), "no chat completion"),
        (sent(b'{"a":' * 200 + b"1" + b"}" * 200), "no chat completion"),
        (sent(b"9" * 5000), "no chat completion"),
        (sent(b'{"choices":[{"message":{"content":"\xff"}}]}'), "no chat completion"),
        (sent(b'{"choices":{"0":1}}'), "no chat completion"),
        (sent(b""), "no chat completion: (empty)"),
        (lambda connection: connection.sendall(b"\x00\x01 not http\r\n\r\n"), "ProtocolError"),
        (lambda connection: connection.close(), "Error"),
        (sent(f"headers were {KEY}".encode(), status=401), "HTTP 401: headers were (the key)"),
        (sent((" " * 990 + KEY).encode(), status=500), "HTTP 500: (the key)"),
        (sent(base64.b64encode(f"Bearer {KEY}".encode()), status=500), "HTTP 500: (the key)"),
        (sent("\ud800".encode("utf-8", "surrogatepass"), status=500), "HTTP 500: "),
    ],
)
def test_answers_that_are_none(peer: Peer, tmp_path: Path, write: Write, said: str) -> None:
    peer.reply = lambda *_: write
    tracemalloc.start()
    try:
        assert said in failure(peer, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 8 * LONGEST_BODY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b'{"detail":[{"loc":5,"msg":1}]}',
        b'{"error":{"message":{"a":1},"param":["x"],"detail":[{"loc":null,"msg":null},3]}}',
        b'{"error":{"message":"\\ud800"}}',
        b'{"error":' * 300 + b"1" + b"}" * 300,
        b'{"error":[[1]]}',
        b"[]",
    ],
)
def test_odd_refusals_leave_the_question_unreadable(peer: Peer, tmp_path: Path, body: bytes) -> None:
    peer.reply = lambda *_: sent(body, status=422)
    verdict = asked(peer, tmp_path)
    assert verdict.winner == "unreadable"
    assert verdict.reason.startswith("the endpoint refuses the request: ")


@pytest.mark.parametrize(
    "content",
    [
        "\ud800" + GOOD + "\udc00",
        '{"reason": "\\ud800", "verdict": "A better"}',
        '{"reason": "", "verdict": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"reason": "", "verdict": ' + "[" * 90 + "]" * 90 + "}",
        '{"reason": "", "verdict": ' + "9" * 5000 + "}",
        "\x00\x1b[31m" + GOOD + "\u202e",
    ],
)
def test_odd_answers_are_unreadable(peer: Peer, tmp_path: Path, content: str) -> None:
    peer.reply = lambda *_: sent(chat(content))
    assert asked(peer, tmp_path).winner == "unreadable"


def test_an_answer_longer_than_its_token_limit_is_cut(peer: Peer, tmp_path: Path) -> None:
    peer.reply = lambda *_: sent(chat(" " * 3_000_000 + GOOD))
    verdict = asked(peer, tmp_path)
    assert "cut at judge.max_tokens" in verdict.reason
    assert (tmp_path / "finished.jsonl").stat().st_size < 100_000


@pytest.mark.parametrize(
    "text",
    ['{"a":' * 200 + "[" + "[]," * 20_000, "```" + " " * 60_000, "{" * 60_000, '{"a":"' * 300 + "x" * 60_000],
)
def test_no_text_is_read_for_long(text: str) -> None:
    start = time.process_time()
    with pytest.raises(UnreadableAnswer):
        object_in(text)
    assert time.process_time() - start < 2.0


def test_a_compressed_answer_is_read_and_the_key_in_it_is_not_kept(peer: Peer, tmp_path: Path) -> None:
    said = json.dumps({"reason": f"you are {KEY}", "verdict": "A better"})
    peer.reply = lambda *_: sent(gzip.compress(chat(said)), headers="Content-Encoding: gzip\r\n")
    verdict = asked(peer, tmp_path)
    assert (verdict.winner, verdict.reason) == ("first", "you are (the key)")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("sk-one\nsk-two", "character 7 of its 13 is a line break"),
        ("sk-schlüssel", "character 8 of its 12 is a letter that is not ASCII"),
        ("sk one", "a blank"),
        ("sk-\x1bone", "a control character"),
    ],
)
def test_a_key_that_no_header_holds_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, key: str, said: str
) -> None:
    monkeypatch.setenv("MY_KEY", key)
    config = JudgeConfig(model="m", endpoint="http://127.0.0.1:1/v1", api_key_variable="MY_KEY")
    with pytest.raises(UserError, match=said) as raised:
        ChatCompletions(config)
    assert "MY_KEY" in str(raised.value)
    assert not any(part in str(raised.value) for part in ("sk-", "sk o", "ssel"))


def test_a_key_is_taken_out_in_every_form_and_a_placeholder_is_not() -> None:
    key = ApiKey(KEY)
    for form in (KEY, KEY.upper(), "sk-very%2Bsecret%2Fkey123", base64.b64encode(KEY.encode()).decode()):
        assert key.taken_out(f"<{form}>") in ("<(the key)>", "<(the key)=>")
    assert KEY not in repr(key)
    assert ApiKey("EMPTY").taken_out("EMPTY") == "EMPTY"


def test_a_proxy_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://a")
    with pytest.raises(UserError, match=r"the proxy that the environment names .*ALL_PROXY"):
        ChatCompletions(JudgeConfig(model="m", endpoint="http://judge.example/v1"))


@pytest.mark.parametrize("url", ["http://[::1", "http://a:99999999/v1", "http://a b/v1", "http://a\nb/v1"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(UserError, match="is no URL"):
        ChatCompletions(JudgeConfig(model="m", endpoint=url))
