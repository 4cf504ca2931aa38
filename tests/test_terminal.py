"""Names and values of others on the terminal."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import alignloop as package
from alignloop.progress import PlainProgress, TerminalProgress
from alignloop.terminal import printable, say_json

NAME = "\x1b[31mred\x07\u202e"
ESCAPED = "\\x1b[31mred\\x07\\u202e"


def test_what_steers_the_terminal_is_escaped() -> None:
    assert printable(f"a\tb\n{NAME}") == f"a\tb\n{ESCAPED}"
    assert printable("a\r\x9b\x7f\ud800\u2028") == "a\\r\\x9b\\x7f\\ud800\\u2028"
    assert printable("día 火\u3000曜 \U0001f468\u200d\U0001f469") == "día 火\u3000曜 \U0001f468\u200d\U0001f469"
    assert printable("a\nb\u00a0", keep="") == "a\\nb\\xa0"


def test_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"name": f"{NAME}\x9b\U000e0041é"}
    say_json(json.dumps(values, ensure_ascii=False, indent=1))
    out = capsys.readouterr().out
    assert json.loads(out) == values
    assert printable(out) == out
    assert "é" in out


def test_progress_and_its_labels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    PlainProgress().say(NAME)
    monkeypatch.setenv("COLUMNS", "120")
    progress = TerminalProgress()
    progress.say(f"{NAME} [bold]x")
    with progress.task(f"{NAME} [bold]", total=1, unit="rows") as advance:
        advance(1)
    out = capsys.readouterr().out
    assert out.count(ESCAPED) >= 2
    assert "\x07" not in out
    assert "[bold]x" in out


@pytest.mark.parametrize("verb", ["plan", "run", "status", "eval", "report", "inspect", "why"])
def test_every_verb_escapes(alignloop, verb: str, tmp_path: Path) -> None:
    """A recipe's name, a path, an option: none of them reaches the terminal as it is."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text('name: "\\e[31mred\\a"\npreferences: "\\e[31mnone.jsonl"\n"\\e[31mx\\n": 1\n')
    named = {"plan": [recipe], "run": [recipe], "why": ["x", NAME], "inspect": [f"{NAME}:1"]}
    outcome = alignloop(verb, *named.get(verb, [NAME]))
    assert outcome.code == 2
    assert "\\x1b[31m" in outcome.out + outcome.err
    assert printable(outcome.out + outcome.err) == outcome.out + outcome.err
    wrong = alignloop(verb, f"--{NAME}")
    assert wrong.code == 2
    assert ESCAPED in wrong.err


def test_a_name_with_a_line_break_is_refused(alignloop, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text('name: "a\\nbest round   6"\npreferences: quickstart\n')
    outcome = alignloop("plan", recipe)
    assert outcome.code == 2
    assert "name: holds a line break, which no name or path here has" in outcome.err
    recipe.write_text(
        'preferences: ["a\\nfinal model"]\nsample: {system_prompts: [{text: "two\\nlines"}], policy: "b\\ec\\rd"}\n'
    )
    outcome = alignloop("plan", recipe)
    assert "preferences.0: holds a line break" in outcome.err
    assert "sample.policy: holds a line break" in outcome.err
    assert "system_prompts" not in outcome.err
    for verb in ("plan", "status", "report", "eval"):
        outcome = alignloop(verb, "a\nfinal model")
        assert (outcome.code, outcome.err) == (
            2,
            "error: a\\nfinal model: a name with a line break; give the file another\n",
        )


def test_nothing_is_printed_past_it() -> None:
    """`print`, `typer.echo` and writes to the streams are in the modules that escape."""
    root = Path(str(package.__file__)).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                text = ast.unparse(node)
                if called in ("print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write") and (
                    "printable(" not in text and path.name != "terminal.py"
                ):
                    found.append(f"{path.relative_to(root)}:{node.lineno} {text[:60]}")
    assert found == []
