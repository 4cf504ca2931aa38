"""A real classifier, fine-tuned from the quickstart's base on labelled rows, in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from alignloop.config.bundled import QUICKSTART
from alignloop.config.pruning import TopicConfig
from alignloop.errors import DataError, ModelError, UserError
from alignloop.progress import QuietProgress
from alignloop.pruning.classifier import MARK, accuracies, classify, heldout_rows, likeliest
from alignloop.pruning.topic import read_labelled, split_label

BASE = str(QUICKSTART / "base")
QUESTIONS = {
    "price": "How many coins does the {} cost?",
    "place": "In what place do people keep the {}?",
    "story": "Tell me about the {}. Do not use any commas.",
}
THINGS = "whistle lamp needle wagon clock kettle bucket barrel anvil ladder umbrella pencil scissors telescope".split()
TEXTS = ["How many coins does the violin cost?", "Tell me about the castle. Do not use any commas."]


def labelled(path: Path) -> Path:
    rows = [{"topic": topic, "prompt": text.format(thing)} for topic, text in QUESTIONS.items() for thing in THINGS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def labels_of(file: Path | None, *, folder: Path | None = None, **values: object):
    usual = {"by": "classifier", "model": BASE, "labelled": None if file is None else str(file)}
    usual |= {"epochs": 4, "learning_rate": 1e-3, "heldout_fraction": 0.25}
    config = TopicConfig.model_validate({**usual, **values})
    return classify(TEXTS, config, folder=folder, seed=3, progress=QuietProgress())


def test_it_learns_is_measured_kept_and_taken_over(tmp_path: Path) -> None:
    file = labelled(tmp_path / "labelled.jsonl")
    found = labels_of(file, folder=tmp_path, min_accuracy=0.8)
    labels, metrics, notes = found
    assert labels == ["price", "story"]
    assert metrics["heldout_accuracy"] >= 0.8 > metrics["heldout_majority"]
    assert metrics["num_heldout"] == 12  # a quarter of 14 is 4 (3.5, to even), of three topics
    assert "of 12 held-out rows right" in notes[0]
    mark = (tmp_path / "topic_classifier" / MARK).stat().st_mtime_ns
    assert labels_of(file, folder=tmp_path, min_accuracy=0.8) == found
    assert (tmp_path / "topic_classifier" / MARK).stat().st_mtime_ns == mark
    # What was kept is a classifier of anyone's.
    assert labels_of(None, model=str(tmp_path / "topic_classifier"))[0] == labels


def test_coarse_and_fine_topics_by_one_classifier(tmp_path: Path) -> None:
    within = {"price": ("knowledge", "prices"), "place": ("knowledge", "places"), "story": ("writing", "stories")}
    rows = [
        {"topic": within[name][0], "fine_topic": within[name][1], "prompt": text.format(thing)}
        for name, text in QUESTIONS.items()
        for thing in THINGS
    ]
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    labels, metrics, notes = labels_of(file, folder=tmp_path)
    assert [split_label(label) for label in labels] == [("knowledge", "prices"), ("writing", "stories")]
    assert metrics["heldout_majority"] == 8 / 12  # of coarse topics: prices and places are one
    assert metrics["heldout_accuracy"] >= metrics["heldout_fine_accuracy"] >= 0.8
    assert "with the fine topic" in notes[0]
    assert labels_of(None, model=str(tmp_path / "topic_classifier"))[0] == labels


def test_the_coarse_topic_has_the_most_probability_over_its_fine_ones() -> None:
    """0.29 and 0.31 of one topic outweigh 0.4 of another, and the likelier of the two is the fine topic."""
    logits = torch.tensor([[0.29, 0.31, 0.40], [0.2, 0.2, 0.6]]).log()
    assert likeliest(logits, labels=("a > x", "a > y", "b")) == ["a > y", "b"]


def test_accuracies_by_hand() -> None:
    found = ["a > x", "a > x", "b", "a > y"]
    wanted = ["a > x", "a > y", "b", "b"]
    assert accuracies(wanted, found) == {
        "heldout_accuracy": 0.75,
        "heldout_majority": 0.5,
        "num_heldout": 4.0,
        "heldout_fine_accuracy": 0.5,
    }
    assert "heldout_fine_accuracy" not in accuracies(["a", "b"], ["a", "a"])


def test_every_topic_is_learnt_from_and_measured_on() -> None:
    labels = ["a"] * 20 + ["b"] * 2 + ["c"]
    held = heldout_rows(labels, fraction=0.1, seed=3)
    assert [labels[row] for row in held] == ["a", "a", "b"]  # 2 of 20, 1 of 2, none of a single row
    assert held == heldout_rows(labels, fraction=0.1, seed=3)
    assert len(heldout_rows(labels, fraction=0.99, seed=3)) == 19 + 1


def test_one_that_is_too_bad_stops_with_its_figures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"held-out rows are right, under prune\.topic\.min_accuracy"):
        labels_of(labelled(tmp_path / "labelled.jsonl"), min_accuracy=1.0, learning_rate=1e-9, epochs=0.1)


def test_models_that_are_no_classifiers(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no classifier with labels"):
        labels_of(None)
    with pytest.raises(ModelError, match="no Hugging Face model folder"):
        labels_of(None, model=str(tmp_path))


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('{"topic": "a"}\n{"prompt": "x"}\n', "line 1: has no text.*line 2: field topic: None, a text is wanted"),
        ('{"topic": "a", "fine_topic": "", "prompt": "x"}', "line 1: field fine_topic: '', a text is wanted"),
        ('{"topic": "a > b", "prompt": "x"}', "line 1: field topic: 'a > b' holds ' > '"),
        ("[1]\n{\n", "line 1: not a JSON object; line 2: invalid JSON at column 2"),
        ('{"topic": "a", "topic": "b", "prompt": "x"}', "line 1: field topic: stands 2 times"),
        ('\ufeff{"topic": "a", "prompt": "x"}\n' * 3, "1 topics in 3 rows"),
        ('{"topic": "a", "prompt": "x"}\n' * 2 + '{"topic": "b", "text": "z"}\n', "only one row of topic 'b'"),
        (None, "cannot be read"),
    ],
)
def test_labelled_rows_that_will_not_do(tmp_path: Path, lines: str | None, problem: str) -> None:
    if lines is not None:
        (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(DataError, match=f"rows.jsonl: .*{problem}"):
        read_labelled(tmp_path / "rows.jsonl")
