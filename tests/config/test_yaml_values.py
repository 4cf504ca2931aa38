"""YAML as people write it: what each scalar means, what is refused, and that no file keeps its reader long."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from alignloop.config import load_recipe
from alignloop.config.training import TrainingConfig
from alignloop.config.yaml_values import YamlProblem, YamlRefused, dump_yaml, parse_yaml, read_yaml
from alignloop.errors import DataError, RecipeError, UserError
from alignloop.evaluation.tasks import check_task_files
from alignloop.judging.prompt_file import load_prompt
from alignloop.training.accelerate_file import accelerate_file

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("+1", 1),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("0x1f", 31),
        ("0o17", 15),
        ("5e-7", 5e-7),
        ("1E5", 100000.0),
        ("-.5", -0.5),
        ("-.INF", -math.inf),
        ("true", True),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),  # YAML 1.1: 90
        ("2026-11-29", "2026-11-29"),  # a date
        ("yes", "yes"),  # true
        ("off", "off"),
        ("'010'", "010"),
        ("1_0", "1_0"),
        ("٣", "٣"),  # a digit to Python's \d
        ("{1: a, on: b, <<: {on: c, d: e}}", {"1": "a", "on": "b", "d": "e"}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("[" * 32 + "]" * 32, None),
    ],
)
def test_what_a_scalar_means(text: str, value: Any) -> None:
    found = parse_yaml(text)
    if text.startswith("["):
        return
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 010", "line 2, column 4: '010': a number that begins with 0 is octal in YAML 1.1"),
        ("-08", "begins with 0"),
        ("!!bool maybe", "'maybe' is neither true nor false"),
        ("!!int abc", "'abc' is no whole number"),
        ("!!int 010", "no whole number"),
        ("!!float x", "no number"),
        ("!!null x", "not null"),
        ("!!timestamp x", "the tag '!!timestamp' is not read"),
        ("!!python/object:os.system x", "not read here"),
        ("!!map x", "expected `key: value` lines"),
        ("9" * 5000, "a number of 5,000 digits"),
        ("a: &a [*a]", "holds an alias of itself"),
        (BOMB, "more than 10,000 values"),
        ("[" + "a," * 20_000 + "]", "more than 10,000 values"),
        ("[" * 5000, "more than 32 deep"),
        ("- " * 5000, "more than 32 deep"),
        ("{a: " * 5000, "more than 32 deep"),
        ("a: &a " + "[" * 20 + "]" * 20 + "\nb: " + "[" * 20 + "*a" + "]" * 20, "more than 32 deep"),
        ("? [a]\n: b", "a key must be a text"),
        ("<<: {[a]: b}", "a key must be a text"),
        ('<<: {"\\0": 1}', "no file can"),
        ('"\\ud800"', "no file can"),
        ('"\\0": 1', "no file can"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    start = time.process_time()
    with pytest.raises(YamlRefused) as raised:
        parse_yaml(text)
    assert said in str(raised.value)
    assert len(str(raised.value)) < 250
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("text", ['"\\UFFFFFFFF"', f"%YAML {'9' * 5000}.1\n--- a", "\x01", "*a", "'a", "a\n---\nb"])
def test_what_is_no_yaml(text: str) -> None:
    with pytest.raises(YamlProblem, match="not valid YAML"):
        parse_yaml(text)


def test_files_too_large_or_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: " + b"x" * 300_000)
    with pytest.raises(YamlRefused, match="larger than 256 KiB"):
        read_yaml(path)
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(path) == {"a": 1}
    path.write_bytes(b"a: \xff")
    with pytest.raises(YamlProblem, match="no text in UTF-8"):
        read_yaml(path)


def test_every_reader_of_yaml_refuses_a_bomb(tmp_path: Path) -> None:
    """Recipes, `--set`, judging prompts, accelerate's and lm-eval's files: one reader."""
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMB)
    with pytest.raises(RecipeError, match="more than 10,000 values"):
        load_recipe(path)
    with pytest.raises(RecipeError, match=r"--set rounds=010: .*begins with 0"):
        load_recipe({"preferences": "p"}, overrides=["rounds=010"])
    with pytest.raises(RecipeError, match=r"--set a=\[\[.*more than 32 deep"):
        load_recipe({"preferences": "p"}, overrides=["a=" + "[" * 5000])
    with pytest.raises(RecipeError, match="5000 sections within each other"):
        load_recipe({"preferences": "p"}, overrides=["a." * 5000 + "b=1"])
    with pytest.raises(UserError, match="more than 10,000 values"):
        load_prompt(str(path))
    with pytest.raises(UserError, match="more than 10,000 values"):
        accelerate_file(TrainingConfig(num_processes=2, accelerate=str(path)))
    with pytest.raises(DataError, match=r"bomb\.yaml: .*more than 10,000 values"):
        check_task_files(tmp_path)
    path.write_text("task: mine\ndoc_to_text: !function mine.text\n")
    check_task_files(tmp_path)


def test_a_mapping_that_holds_itself_is_no_recipe() -> None:
    values: dict[str, Any] = {"preferences": "p"}
    values["sft"] = values
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe(values)


def test_texts_that_look_like_numbers_come_back_as_texts() -> None:
    values = {"name": "5e-7", "a": ["010", "08", "0o17", "1_000", "yes", "~", "1:30", ".inf"], "b": [5e-7, 3, True]}
    assert parse_yaml(dump_yaml(values)) == values


@pytest.mark.parametrize("mark", ["\x85", "\r", "\u2028", "\u2029", "\ufeff", "\x7f", "\t", "\u200b"])
def test_breaks_and_marks_in_texts_come_back(mark: str) -> None:
    texts = [mark, f"a{mark}b", f"{mark} a\n{mark}", f"# {mark}{mark}: \\ \"'", "a" * 90 + mark + " b" * 50]
    values = {"texts": texts, **dict.fromkeys(texts, "key")}
    assert parse_yaml(dump_yaml(values)) == values
