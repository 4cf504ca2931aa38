"""The endpoint's judge against a peer that misbehaves in the ways servers do."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_peer import Peer, Reply, judge_of

from alignloop.errors import EngineError, UserError
from alignloop.judging.verdicts import Appraisal, PairToCompare, Verdict
from alignloop.progress import QuietProgress
from alignloop.records import Message

GOOD = '{"reason": "", "verdict": "A better"}'
POINTS = '{"reason": "", "points": 2}'


class Said(QuietProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def chat(text: str | None, *, finish: str = "stop") -> Reply:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}, {}


def error(status: int, message: str, *, param: str | None = None, headers: dict[str, str] | None = None) -> Reply:
    return status, {"error": {"message": message, "param": param}}, headers or {}


def items(number: int) -> list[PairToCompare]:
    asked = (Message(role="user", content="Name a tree."),)
    return [PairToCompare(f"p{i}", asked, f"Oak {i}", f"Elm {i}") for i in range(number)]


def winners(verdicts: list[Verdict]) -> list[str]:
    return [verdict.winner for verdict in verdicts]


def by_content(body: dict[str, Any]) -> Reply:
    """A judge that likes oaks, wherever they stand."""
    text = body["messages"][-1]["content"]
    return chat(
        json.dumps({"reason": "", "verdict": "A better" if text.index("Oak") < text.index("Elm") else "B better"})
    )


def test_verdicts_of_both_orders(peer: Peer, tmp_path: Path) -> None:
    peer.reply = lambda body, number: by_content(body)
    verdicts = judge_of(peer.url, tmp_path, both_orders=True).compare(items(5))
    assert winners(verdicts) == ["first"] * 5
    assert [verdict.id for verdict in verdicts] == ["p0", "p1", "p2", "p3", "p4"]
    assert [len(verdict.answers) for verdict in verdicts] == [2] * 5
    assert len(peer.bodies) == 10
    body = peer.bodies[0]
    assert body["model"] == "m"
    assert body["temperature"] == 0
    assert body["max_tokens"] == 512
    assert "seed" not in body
    assert body["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"][::4] == [
        "A significantly better",
        "B significantly better",
        "tie",
    ]
    peer.reply = lambda body, number: chat(GOOD)  # always the first place
    assert winners(judge_of(peer.url, tmp_path / "2", both_orders=True).compare(items(2))) == ["tie", "tie"]


@pytest.mark.parametrize("bad", ["", "A", None, '{"reason": "", "verdict": "C"}'])
def test_an_unreadable_answer_is_asked_for_again(peer: Peer, tmp_path: Path, bad: str | None) -> None:
    peer.reply = lambda body, number: chat(GOOD if number == 2 else bad)
    (verdict,) = judge_of(peer.url, tmp_path, max_retries=2).compare(items(1))
    assert verdict.winner == "first"
    assert verdict.answers == (bad or "", bad or "", GOOD)
    assert [body["temperature"] for body in peer.bodies] == [0.0, 0.3, 0.3]
    assert [("seed" in body) for body in peer.bodies] == [False, True, True]
    assert peer.bodies[1]["seed"] != peer.bodies[2]["seed"]


def test_what_stays_unreadable_is_counted_as_that(peer: Peer, tmp_path: Path) -> None:
    peer.reply = lambda body, number: chat("Both are fine.", finish="length")
    (verdict,) = judge_of(peer.url, tmp_path, max_retries=1).compare(items(1))
    assert verdict.winner == "unreadable"
    assert "judge.max_tokens" in verdict.reason
    assert len(peer.bodies) == 2


@pytest.mark.parametrize(
    "failure",
    [
        error(500, "oops"),
        error(503, "loading"),
        error(429, "slow down", headers={"retry-after": "0"}),
        error(429, "slow down", headers={"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        (200, "<html>log in</html>", {}),
        (200, {"choices": []}, {}),
    ],
)
def test_failures_that_pass(peer: Peer, tmp_path: Path, failure: Reply) -> None:
    peer.reply = lambda body, number: failure if number < 2 else chat(GOOD)
    assert winners(judge_of(peer.url, tmp_path, max_retries=2).compare(items(1))) == ["first"]
    assert len(peer.bodies) == 3


def test_a_busy_endpoint_is_given_more_time_than_a_broken_one(peer: Peer, tmp_path: Path) -> None:
    peer.reply = lambda body, number: error(429, "slow down") if number < 5 else chat(GOOD)
    assert winners(judge_of(peer.url, tmp_path, max_retries=0).compare(items(1))) == ["first"]


def refusing(*refused: str) -> Callable[[dict[str, Any], int], Reply]:
    def reply(body: dict[str, Any], number: int) -> Reply:
        form = body.get("response_format", {}).get("type")
        if form == "json_schema" and form in refused:
            return error(400, "This response_format type is unavailable now")
        if form in refused:
            where = {
                "type": "extra_forbidden",
                "loc": ["body", "response_format"],
                "msg": "not permitted",
                "input": body,
            }
            return 422, {"detail": [where]}, {}
        return chat(GOOD)

    return reply


@pytest.mark.parametrize(
    ("refused", "left"), [(("json_schema",), {"type": "json_object"}), (("json_schema", "json_object"), None)]
)
def test_a_refused_response_format_is_left_out_and_said_once(
    peer: Peer, tmp_path: Path, refused: tuple[str, ...], left: object
) -> None:
    peer.reply = refusing(*refused)
    said = Said()
    assert winners(judge_of(peer.url, tmp_path, concurrency=1, progress=said).compare(items(4))) == ["first"] * 4
    assert len(peer.bodies) == 4 + len(refused)
    assert [body.get("response_format") for body in peer.bodies[-3:]] == [left] * 3
    (line,) = said.lines
    assert "This response_format type is unavailable now" in line
    assert peer.url in line


def test_parameters_that_newer_models_do_not_take(peer: Peer, tmp_path: Path) -> None:
    def reply(body: dict[str, Any], number: int) -> Reply:
        if "max_tokens" in body:
            return error(400, "Use 'max_completion_tokens' instead.", param="max_tokens")
        if "temperature" in body:
            return error(400, "Unsupported value: 'temperature' does not support 0.0.", param="temperature")
        return chat(GOOD)

    peer.reply = reply
    said = Said()
    assert winners(judge_of(peer.url, tmp_path, concurrency=1, progress=said).compare(items(2))) == ["first"] * 2
    assert peer.bodies[-1]["max_completion_tokens"] == 512
    assert peer.bodies[-1]["response_format"]["type"] == "json_schema"
    assert len(said.lines) == 2


@pytest.mark.parametrize("words", ["This model's maximum context length is 64 tokens", "blocked by a filter"])
def test_a_refused_question_is_unreadable_and_changes_nothing_for_others(
    peer: Peer, tmp_path: Path, words: str
) -> None:
    def reply(body: dict[str, Any], number: int) -> Reply:
        return error(400, words) if "Oak 1" in body["messages"][-1]["content"] else chat(GOOD)

    peer.reply = reply
    said = Said()
    verdicts = judge_of(peer.url, tmp_path, concurrency=1, progress=said).compare(items(3))
    assert winners(verdicts) == ["first", "unreadable", "first"]
    assert words in verdicts[1].reason
    assert peer.bodies[-1]["response_format"]["type"] == "json_schema"
    assert said.lines == []


def test_the_key_is_sent_and_never_shown(peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret\n")
    peer.reply = lambda body, number: error(401, "no such key: sk-secret") if number else chat(GOOD)
    judge = judge_of(peer.url, tmp_path, api_key_variable="MY_KEY", concurrency=1)
    with pytest.raises(EngineError) as raised:
        judge.compare(items(3))
    assert "MY_KEY" in str(raised.value)
    assert peer.headers[0]["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(raised.value)
    assert not any("sk-secret" in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


def test_a_missing_model_is_named_at_once(peer: Peer, tmp_path: Path) -> None:
    peer.reply = lambda body, number: error(404, "The model `m` does not exist.")
    with pytest.raises(EngineError, match=re.escape(f"{peer.url} (model m): HTTP 404: ")):
        judge_of(peer.url, tmp_path, concurrency=1).compare(items(3))
    assert len(peer.bodies) == 1


def test_an_endpoint_that_dies_half_way(peer: Peer, tmp_path: Path) -> None:
    peer.reply = lambda body, number: by_content(body) if number < 6 else error(500, "out of memory")
    with pytest.raises(EngineError) as raised:
        judge_of(peer.url, tmp_path, concurrency=2, max_retries=1).compare(items(10))
    kept = (tmp_path / "finished.jsonl").read_bytes()
    assert kept.count(b"\n") == 6
    assert "6 of 10 comparisons are finished and kept in" in str(raised.value)
    assert str(tmp_path / "finished.jsonl") in str(raised.value)
    assert peer.url in str(raised.value)
    assert "failed 2 times, the last time with HTTP 500" in str(raised.value)

    asked = len(peer.bodies)
    (tmp_path / "finished.jsonl").write_bytes(kept + b'{"key": "half a li')  # a crash within a line
    peer.reply = lambda body, number: by_content(body)
    resumed = judge_of(peer.url, tmp_path, concurrency=2).compare(items(10))
    assert len(peer.bodies) == asked + 4
    assert (tmp_path / "finished.jsonl").read_bytes().startswith(kept)
    assert resumed == judge_of(peer.url, tmp_path / "unbroken").compare(items(10))
    assert judge_of(peer.url, tmp_path).compare(items(10)) == resumed  # all of it taken over
    assert len(peer.bodies) == asked + 4 + 10


def test_another_prompt_model_or_seed_is_asked_anew(peer: Peer, tmp_path: Path) -> None:
    peer.reply = lambda body, number: by_content(body)
    judge_of(peer.url, tmp_path).compare(items(1))
    judge_of(peer.url, tmp_path, timeout_seconds=9.0, concurrency=1).compare(items(1))
    assert len(peer.bodies) == 1
    judge_of(peer.url, tmp_path, model="other").compare(items(1))
    judge_of(peer.url, tmp_path, temperature=0.5).compare(items(1))
    assert len(peer.bodies) == 3


def test_nobody_listens(peer: Peer, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EngineError, match=r"ConnectError.*\n0 of 2 comparisons are finished"):
        judge_of(url, tmp_path, max_retries=1).compare(items(2))


def test_an_endpoint_that_never_answers(peer: Peer, tmp_path: Path) -> None:
    def reply(body: dict[str, Any], number: int) -> Reply:
        time.sleep(1.0)
        return chat(GOOD)

    peer.reply = reply
    with pytest.raises(EngineError, match=r"no answer within 0\.1 s"):
        judge_of(peer.url, tmp_path, max_retries=1, timeout_seconds=0.1).compare(items(1))


@pytest.mark.parametrize(
    ("url", "said"),
    [("localhost:8000", "is no URL"), ("ftp://a/v1", "is no URL"), ("http://me:pw@host/v1", "password")],
)
def test_urls_that_cannot_be_used(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        judge_of(url, tmp_path).compare(items(1))
    assert "pw" not in str(raised.value).replace("password", "")


def test_a_base_url_may_end_in_a_slash_or_in_the_path(peer: Peer, tmp_path: Path) -> None:
    peer.reply = lambda body, number: chat(GOOD)
    for number, url in enumerate((f"{peer.url}/", f"{peer.url}/chat/completions")):
        assert winners(judge_of(url, tmp_path / str(number)).compare(items(1))) == ["first"]


def test_a_points_prompt_does_not_compare(peer: Peer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pairwise"):
        judge_of(peer.url, tmp_path, prompt="difficulty").compare(items(1))


def test_points_and_what_is_none(peer: Peer, tmp_path: Path) -> None:
    peer.reply = lambda body, number: chat("many" if "Elm" in body["messages"][-1]["content"] else POINTS)
    asked = [Appraisal(text, (Message(role="user", content=f"Describe an {text}."),)) for text in ("Oak", "Elm")]
    oak, elm = judge_of(peer.url, tmp_path, prompt="difficulty", max_retries=0).rate(asked)
    assert (oak.points, oak.answers) == (2, (POINTS,))
    assert (elm.points, "no JSON object" in elm.reason) == (None, True)
