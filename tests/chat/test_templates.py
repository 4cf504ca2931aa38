from __future__ import annotations

from pathlib import Path

import pytest

from alignloop.chat.templates import load_template
from alignloop.errors import ModelError


def test_shipped_templates_end_turns_with_their_end_of_turn() -> None:
    for name in ("llama3", "chatml"):
        template = load_template(name)
        assert template.end_of_turn in template.special_tokens
        assert template.bos is None or template.bos in template.special_tokens
        assert not template.jinja.endswith("\n")


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"'lama3'.*did you mean llama3"):
        load_template("lama3")


def test_a_jinja_file_tells_its_markers(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|stop|><|sep|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}\n"
    )
    template = load_template(str(path))
    assert template.end_of_turn == "<|stop|>"
    assert template.special_tokens == ("<|stop|>", "<|sep|>", "<|assistant|>")
    assert template.bos is None


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        ("{% for m in messages %}", "cannot be rendered"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "could not stop"),
        ("hello", "leaves the assistant's message out"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, jinja: str, message: str) -> None:
    path = tmp_path / "broken.jinja"
    path.write_text(jinja)
    with pytest.raises(ModelError, match=f"broken.jinja.*{message}"):
        load_template(str(path))
