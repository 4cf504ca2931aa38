"""Templates that loop or multiply without end."""

from __future__ import annotations

import pytest

from alignloop.chat import trial
from alignloop.chat.template_defaults import with_defaults
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


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "condition",
    [
        "enable_thinking is defined and enable_thinking",
        "thinking is defined and thinking",
        "'</think>' in messages[-1].content",
    ],
)
def test_a_template_that_ends_only_without_reasoning_is_stopped(
    condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "CPU_SECONDS", 2)
    jinja = f"{{% if {condition} %}}{ENDLESS}{{% endif %}}"
    with pytest.raises(ModelError, match=r"mine.jinja: the chat template did not come to an end within 2 s"):
        check_ends(jinja, name="mine.jinja")


def test_a_template_is_tried_with_the_kwargs_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CPU_SECONDS", 2)
    jinja = f"{{% if effort == 'high' %}}{ENDLESS}{{% endif %}}"
    check_ends(jinja, name="mine.jinja")
    with pytest.raises(ModelError, match="did not come to an end"):
        check_ends(with_defaults(jinja, {"effort": "high"}), name="mine.jinja")


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
    of_its_own = {"content", "reasoning_content", "role", "system_message", "tool_call", "loop_messages", "ns_args"}
    assert {name: found for name, names in read.items() if (found := names & of_its_own)} == {}


@pytest.mark.parametrize(
    ("jinja", "read"),
    [
        ("{% if a %}{% set x = 1 %}{% else %}{% set x = 2 %}{% endif %}{{ x }}", {"a"}),
        ("{% if a %}{% set x = 1 %}{% elif b %}{% else %}{{ x }}{% endif %}", {"a", "b", "x"}),
        ("{% if x is not defined %}{% set x = 1 %}{% endif %}{{ x }}", {"x"}),
        ("{%- set x = x | default(true) %}{{ x }}", {"x"}),
        ("{% for m in list if m.a %}{% set x = m.content %}{{ x, loop.index }}{% endfor %}{{ x }}", {"list", "x"}),
        ("{% for m in list %}{% else %}{{ m }}{% endfor %}", {"list", "m"}),
        ("{% macro f(x, y=d) %}{{ x, y, later, z }}{% endmacro %}{% set later = 1 %}{{ f(1) }}", {"d", "z"}),
        ("{% with x = y %}{{ x }}{% endwith %}{{ x }}", {"x", "y"}),
        ("{% set x %}{{ y }}{% endset %}{{ x | upper }}", {"y"}),
        ("{% set ns = namespace(a=b) %}{% set ns.a = c %}{{ ns.a, range(3) }}", {"b", "c"}),
        ("{% call(x) f(y) %}{{ x, z }}{% endcall %}", {"f", "y", "z"}),
    ],
)
def test_a_name_is_read_where_nothing_before_sets_it(jinja: str, read: set[str]) -> None:
    assert names_read(jinja) == read
