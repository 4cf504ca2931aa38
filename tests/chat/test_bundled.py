"""Every template that the installed TRL bundles, on the quickstart's tokenizer: ids as rendered, or a named refusal."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import alignloop
from alignloop.chat.answer import switch
from alignloop.chat.format import ChatFormat
from alignloop.chat.reasoning import split_reasoning
from alignloop.chat.template_defaults import with_defaults
from alignloop.chat.templates import bundled_by_trl, give_template, load_template
from alignloop.errors import ModelError
from alignloop.records import Message

BASE = Path(alignloop.__file__).parent / "quickstart" / "base"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "templates.md"
DATE: dict[str, Any] = {
    "date_string": "26 Jul 2024",
    "strftime_now": datetime(2024, 7, 26).strftime,  # noqa: DTZ001 - as templates see it
}
KEYS = ("reasoning_content", "thinking", "reasoning")
IMAGES = "contents are parts of text and images"


def said(role: str, content: str) -> Message:
    return Message.model_validate({"role": role, "content": content})


MILL = said("user", "Which tree grows by the mill?")
WILLOW = "A willow grows by the mill."
KEEPER, TREE = said("user", "Who keeps the mill?"), said("user", "Which tree grows by it?")
ROWS: dict[str, tuple[list[Message], str]] = {
    "single": ([MILL], WILLOW),
    "multi": ([KEEPER, said("assistant", "Peter keeps it."), TREE], WILLOW),
    "system": ([said("system", "Answer in one sentence."), MILL], WILLOW),
    "thinking": (
        [KEEPER, said("assistant", "<think>\nThe mill is Peter's.\n</think>\n\nPeter keeps it."), TREE],
        f"<think>\nBy the mill stands a willow.\n</think>\n\n{WILLOW}",
    ),
}


@cache
def base_with(name: str, **kwargs: bool) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE)
    give_template(tokenizer, load_template(str(bundled_by_trl()[name])))
    tokenizer.chat_template = with_defaults(tokenizer.chat_template, kwargs)
    return tokenizer


def as_taken(tokenizer: PreTrainedTokenizerFast, message: Message) -> dict[str, str]:
    """The message with its reasoning where the template looks for it: under a key that changes what it writes."""
    reasoning, answer = split_reasoning(message.content)
    whole = {"role": message.role, "content": message.content}
    if reasoning is None:
        return whole
    question = {"role": "user", "content": "Q"}

    def written(**more: str) -> str:
        return str(
            tokenizer.apply_chat_template([question, {"role": "assistant", "content": "A", **more}], tokenize=False)
        )

    key = next((key for key in KEYS if written(**{key: "R"}) != written()), None)
    return whole if key is None else {"role": message.role, "content": answer, key: reasoning}


def rendered(tokenizer: PreTrainedTokenizerFast, messages: list[Message], *, prompt: bool, **kwargs: Any) -> str:
    dialog = [as_taken(tokenizer, message) for message in messages]
    text = tokenizer.apply_chat_template(dialog, tokenize=False, add_generation_prompt=prompt, **DATE, **kwargs)
    assert isinstance(text, str)
    return text


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def outcome(name: str, row: str) -> str:
    """What comes of a row under a template: how its ids compare with the rendered dialog's, or that it is refused."""
    messages, text = ROWS[row]
    tokenizer = base_with(name)
    form = ChatFormat(tokenizer)
    chosen = ""
    if row == "thinking" and form.takes_reasoning and not form.trains_reasoning:
        kwargs = switch(tokenizer, thinking=True)
        assert kwargs is not None
        tokenizer = base_with(name, **kwargs)
        form = ChatFormat(tokenizer)
        chosen = "".join(f", `{key}: {str(value).lower()}`" for key, value in kwargs.items())
    try:
        prompt, completion = form.prompt_ids(messages), form.completion(text).token_ids
    except ModelError:
        return "refused"
    asked = rendered(tokenizer, messages, prompt=True, **form.template_kwargs)
    assert prompt == ids_of(tokenizer, asked)
    assert form.decode(completion) == text
    whole = rendered(tokenizer, [*messages, said("assistant", text)], prompt=False, **form.template_kwargs)
    if prompt + completion == ids_of(tokenizer, whole):
        assert form.dialog([*messages, said("assistant", text)]).token_ids == prompt + completion
        return "equal" + chosen + (", as text" if row == "thinking" and not form.takes_reasoning else "")
    if prompt + completion == ids_of(tokenizer, whole) + form.stop_token_ids[:1]:
        end = tokenizer.decode(form.stop_token_ids[:1]).replace("|", "\\|")
        return f"equal{chosen}, then `{end}`"
    # The template takes the reasoning off what it asked for: the answer stands as the model would write it.
    reasoning, answer = split_reasoning(text)
    sampled = f"{asked}{reasoning}\n</think>\n\n{answer}{tokenizer.eos_token}"
    assert prompt + completion == ids_of(tokenizer, sampled)
    return "as asked"


def table_row(name: str) -> str:
    try:
        form = ChatFormat(base_with(name))
    except ModelError:
        return f"| {name} | refused | refused | refused | refused | {IMAGES} |"
    notes = [
        f"`{key}: {str(value).lower()}` where the recipe says nothing" for key, value in form.template_kwargs.items()
    ]
    if form.opens_reasoning:
        notes.append("asks with an open thinking block")
    if not form.opens_reasoning and form.earlier_refusal(WILLOW) is not None:
        notes.append("trains the last answer of a dialog only")
    return f"| {name} | {' | '.join(outcome(name, row) for row in ROWS)} | {'; '.join(notes)} |"


@pytest.mark.parametrize("name", bundled_by_trl())
def test_a_bundled_templates_ids_are_as_rendered_or_it_is_refused(name: str) -> None:
    if not DOCS.is_file():
        pytest.skip("no docs beside the package")
    assert table_row(name) in DOCS.read_text(encoding="utf-8").splitlines()


def test_refusals_of_bundled_templates_say_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"smolvlm.jinja: .*lists of parts.*set chat_template to llama3 or chatml"):
        load_template("smolvlm")
    distilled = ChatFormat(base_with("deepseek_r1_distill"))
    with pytest.raises(ModelError, match=r"holds no reasoning.*a copy of it that asks without <think>"):
        distilled.completion("A willow.")
    quiet = ChatFormat(base_with("qwen3"))
    with pytest.raises(ModelError, match=r"holds reasoning.*set chat_template_kwargs: \{enable_thinking: true\}"):
        quiet.completion(ROWS["thinking"][1])
    thinks = ChatFormat(base_with("qwen3_5_think", enable_thinking=True))
    with pytest.raises(ModelError, match=r"holds no reasoning.*set chat_template_kwargs: \{enable_thinking: false\}"):
        thinks.completion("A willow.")
    with pytest.raises(ModelError, match="holds reasoning and no answer behind it"):
        thinks.completion("<think>\nBy the mill\n</think>\n\n")
    with pytest.raises(ModelError, match="holds <think> or </think> beyond the reasoning"):
        thinks.completion("<think>\nBy the mill")


def test_an_unknown_name_is_told_the_nearest_of_all() -> None:
    with pytest.raises(ModelError, match=r"'qwen3_5'.*did you mean qwen3_5_nothink or"):
        load_template("qwen3_5")
