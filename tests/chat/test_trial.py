"""Templates that loop or multiply without end."""

from __future__ import annotations

import pytest

from alignloop.chat.templates import bundled_by_trl
from alignloop.chat.trial import check_ends, names_read
from alignloop.errors import ModelError


@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        ("{{ 'a' * 10 ** 10 }}", "fills 1 GiB of memory"),
        (
            "{% set ns = namespace(s='ab') %}{% for m in messages %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
            "fills 1 GiB of memory|writes more than",
        ),
        ("{{ 'a' * 3000000 }}", "writes more than 1,000,000 characters"),
    ],
)
def test_a_template_without_measure_is_stopped_with_its_name(jinja: str, reason: str) -> None:
    with pytest.raises(ModelError, match=f"mine.jinja: the chat template ({reason})"):
        check_ends(jinja, name="mine.jinja")


def test_a_template_that_is_no_text_is_named() -> None:
    with pytest.raises(ModelError, match="the chat template is no text: character 3 is half a pair"):
        check_ends("ab\ud800", name="mine.jinja")


@pytest.mark.parametrize("jinja", ["{{ messages[0].content }}", "{% for", "{{ 1 / 0 }}", "{{ raise_exception('x') }}"])
def test_what_ends_passes_whatever_else_is_wrong_with_it(jinja: str) -> None:
    check_ends(jinja, name="mine.jinja")


def test_every_bundled_template_can_be_read_for_its_variables() -> None:
    read = {name: names_read(file.read_text(encoding="utf-8")) for name, file in bundled_by_trl().items()}
    assert "enable_thinking" in read["qwen3"]
    assert "enable_thinking" not in read["llama3"]
    assert all("messages" in names for names in read.values())
