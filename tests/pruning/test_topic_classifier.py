"""A real classifier, fine-tuned from the quickstart's base on labelled rows, in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignloop.config.bundled import QUICKSTART
from alignloop.config.pruning import TopicConfig
from alignloop.errors import DataError, ModelError, UserError
from alignloop.progress import QuietProgress
from alignloop.pruning.classifier import MARK, classify, heldout_rows
from alignloop.pruning.topic import read_labelled

BASE = str(QUICKSTART / "base")
QUESTIONS = {
    "price": "How many coins does the {} cost?",
    "place": "In what place do people keep the {}?",
    "story": "Tell me about the {}. Do not use any commas.",
}
THINGS = "whistle lamp needle wagon clock kettle bucket barrel anvil ladder umbrella pencil scissors telescope".split()


def labelled(path: Path) -> Path:
    rows = [{"topic": topic, "prompt": text.format(thing)} for topic, text in QUESTIONS.items() for thing in THINGS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(file: Path | None, **values: object) -> TopicConfig:
    given = {"by": "classifier", "model": BASE, "labelled": None if file is None else str(file)}
    return TopicConfig.model_validate({**given, "epochs": 4, "learning_rate": 1e-3, "heldout_fraction": 0.25, **values})


def test_it_learns_is_measured_kept_and_taken_over(tmp_path: Path) -> None:
    wanted = config(labelled(tmp_path / "labelled.jsonl"), min_accuracy=0.8)
    texts = ["How many coins does the violin cost?", "Tell me about the castle. Do not use any commas."]
    found = classify(texts, wanted, folder=tmp_path, seed=3, progress=QuietProgress())
    assert found.labels == ["price", "story"]
    assert found.metrics["heldout_accuracy"] >= 0.8 > found.metrics["heldout_majority"]
    assert found.metrics["num_heldout"] == 12  # a quarter of 14 is 4 (3.5, to even), of three topics
    assert "of 12 held-out rows right" in found.notes[0]
    mark = (tmp_path / "topic_classifier" / MARK).stat().st_mtime_ns
    again = classify(texts, wanted, folder=tmp_path, seed=3, progress=QuietProgress())
    assert again == found
    assert (tmp_path / "topic_classifier" / MARK).stat().st_mtime_ns == mark
    # What was kept is a classifier of anyone's.
    ready = config(None, model=str(tmp_path / "topic_classifier"))
    assert classify(texts, ready, folder=None, seed=0, progress=QuietProgress()).labels == found.labels


def test_every_topic_is_learnt_from_and_measured_on() -> None:
    labels = ["a"] * 20 + ["b"] * 2 + ["c"]
    held = heldout_rows(labels, fraction=0.1, seed=3)
    assert [labels[row] for row in held] == ["a", "a", "b"]  # 2 of 20, 1 of 2, none of a single row
    assert held == heldout_rows(labels, fraction=0.1, seed=3)
    assert len(heldout_rows(labels, fraction=0.99, seed=3)) == 19 + 1


def test_one_that_is_too_bad_stops_with_its_figures(tmp_path: Path) -> None:
    wanted = config(labelled(tmp_path / "labelled.jsonl"), min_accuracy=1.0, learning_rate=1e-9, epochs=0.1)
    with pytest.raises(UserError, match=r"held-out rows are right, under prune\.topic\.min_accuracy"):
        classify(["x"], wanted, folder=None, seed=3, progress=QuietProgress())


def test_models_and_rows_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no classifier with labels"):
        classify(["x"], config(None), folder=None, seed=0, progress=QuietProgress())
    with pytest.raises(ModelError, match="no Hugging Face model folder"):
        classify(["x"], config(None, model=str(tmp_path)), folder=None, seed=0, progress=QuietProgress())
    for lines, said in {
        '{"topic": "a"}\n{"prompt": "x"}\n': "line 1: has no text.*line 2: field topic: None",
        "[1]\n{\n": "line 1: not a JSON object; line 2: not JSON",
        '{"topic": "a", "prompt": "x"}\n' * 3: "1 topics in 3 rows",
        '{"topic": "a", "prompt": "x"}\n' * 2 + '{"topic": "b", "text": "z"}\n': "only one row of topic 'b'",
    }.items():
        (tmp_path / "bad.jsonl").write_text(lines)
        with pytest.raises(DataError, match=f"bad.jsonl: .*{said}"):
            read_labelled(tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_labelled(tmp_path / "none.jsonl")
