"""Kwargs at the head of a template."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from alignloop.chat.template_defaults import Value, defaults_of, in_yaml, with_defaults

JINJA = (
    "\n{%- macro said(x) -%}{{ x }}{{ mode }}{%- endmacro -%}{% for m in messages %}{{ said(m.content) }}{% endfor %}"
)
DIALOG = [{"role": "user", "content": "a"}]


def rendered(jinja: str, **options: Value) -> str:
    return str(render_jinja_template([DIALOG], chat_template=jinja, **options)[0][0])


@pytest.mark.parametrize("value", [True, False, 3, 0.5, 'it\'s "so" %} {{ }}', "na\u00efve \U0001f600\n", ""])
def test_a_template_with_defaults_renders_as_with_kwargs(value: Value) -> None:
    changed = with_defaults(JINJA, {"mode": value})
    assert rendered(changed) == rendered(JINJA, mode=value)
    assert rendered(changed, mode="other") == rendered(JINJA, mode="other")
    assert defaults_of(changed) == {"mode": value}
    assert type(defaults_of(changed)["mode"]) is type(value)


def test_later_defaults_take_the_place_of_earlier_ones() -> None:
    changed = with_defaults(with_defaults(JINJA, {"mode": 1, "other": True}), {"mode": 2})
    assert defaults_of(changed) == {"mode": 2, "other": True}
    assert changed.count("set mode") == 1
    assert changed.endswith(JINJA)


def test_a_template_without_defaults_has_none() -> None:
    assert defaults_of(JINJA) == {}
    assert defaults_of("{%- set a = b | default(1) %}\nx") == {}
    assert with_defaults(JINJA, {}) == JINJA


def test_kwargs_are_said_as_a_recipe_takes_them() -> None:
    assert in_yaml({"enable_thinking": True, "effort": "high"}) == '{enable_thinking: true, effort: "high"}'
