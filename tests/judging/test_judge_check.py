"""What is found of a judge before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from judge_peer import Peer

from alignloop.config.bundled import QUICKSTART
from alignloop.config.recipe import Recipe
from alignloop.stages import collect
from alignloop.stages.facts import BaseFacts, Facts, Findings

BASE = QUICKSTART / "base"


def look(
    *, run_dir: Path | None = None, rounds: int = 2, num: int = 4, engine_len: int = 2048, **judge: Any
) -> Findings:
    recipe = Recipe.model_validate(
        {
            "preferences": ("quickstart",),
            "rounds": rounds,
            "collect": {"annotator": "judge", "num_annotations": num},
            "engine": {"max_model_len": engine_len},
            "sample": {"max_tokens": 64},
            "judge": judge,
        }
    )
    findings = Findings()
    collect.check(Facts(recipe, findings, base=BaseFacts(folder=BASE), run_dir=run_dir))
    return findings


def problem(**judge: Any) -> str:
    (found,) = look(**judge).problems
    return found


def test_a_good_model_has_no_problem() -> None:
    assert look(model=str(BASE)) == Findings()


def test_stretched_positions_are_no_problem(tmp_path: Path) -> None:
    long = shutil.copytree(BASE, tmp_path / "long")
    config = json.loads((long / "config.json").read_text())
    stretched = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    (long / "config.json").write_text(
        json.dumps({**config, "rope_parameters": {**config["rope_parameters"], **stretched}})
    )
    assert not look(model=str(long), engine_len=4096).problems


def test_another_architecture_is_a_note(tmp_path: Path) -> None:
    other = shutil.copytree(BASE, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    found = look(model=str(other))
    assert not found.problems
    assert "another architecture" in found.notes[0]


def test_an_endpoint_that_lists_the_model_is_asked_nothing(peer: Peer) -> None:
    peer.models = (200, {"data": [{"id": "m"}]}, {})
    assert look(model="m", endpoint=peer.url) == Findings()
    assert peer.bodies == []


def test_an_endpoint_that_does_not_list_it_is_asked(peer: Peer) -> None:
    peer.models = (200, {"data": [{"id": "other"}]}, {})
    peer.reply = lambda body, number: (200, {"choices": [{"message": {"content": "o"}}]}, {})
    assert look(model="m", endpoint=peer.url) == Findings()
    assert peer.bodies[0]["max_tokens"] == 1
    peer.reply = lambda body, number: (404, {"error": {"message": "no model m"}}, {})
    assert "It lists the models: other." in problem(model="m", endpoint=peer.url)


def test_an_endpoint_that_does_not_answer(peer: Peer) -> None:
    peer.models = (401, {"error": {"message": "who are you?"}}, {})
    assert "OPENAI_API_KEY" in problem(model="m", endpoint=peer.url)
    assert "http://127.0.0.1:9/v1 (model m): ConnectError" in problem(model="m", endpoint="http://127.0.0.1:9/v1")
    assert "is no URL" in problem(model="m", endpoint="127.0.0.1:9/v1")


def test_a_judge_that_is_not_asked_is_not_called(tmp_path: Path) -> None:
    dead = {"model": "m", "endpoint": "http://127.0.0.1:9/v1"}
    assert "never asks it" in look(rounds=1, **dead).notes[0]
    assert "never asked" in look(num=0, **dead).notes[0]
    assert look(run_dir=tmp_path, **dead).problems
    published = tmp_path / "round-02" / "01_collect"
    published.mkdir(parents=True)
    (published / "manifest.json").write_text("{}")
    assert look(run_dir=tmp_path, **dead) == Findings()
    assert look(run_dir=tmp_path, rounds=3, **dead).problems
