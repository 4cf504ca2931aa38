"""Sampled completions on a template that thinks: ids stay as sampled, a thought that was cut included."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerFast

from alignloop.chat.format import ChatFormat
from alignloop.chat.sampled import completion_tokens, ids_read_as
from alignloop.chat.template_defaults import with_defaults
from alignloop.chat.templates import bundled_by_trl, give_template, load_template
from alignloop.config.bundled import QUICKSTART
from alignloop.records import CompletionText


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(QUICKSTART / "base")
    give_template(tokenizer, load_template(str(bundled_by_trl()["qwen3"])))
    tokenizer.chat_template = with_defaults(tokenizer.chat_template, {"enable_thinking": True})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    return tokenizer


@pytest.fixture(scope="module")
def chat(tokenizer: PreTrainedTokenizerFast) -> ChatFormat:
    return ChatFormat(tokenizer)


def encoded(tokenizer: PreTrainedTokenizerFast, *pieces: str) -> list[int]:
    return [index for piece in pieces for index in tokenizer.encode(piece, add_special_tokens=False)]


def test_reasoning_stays_in_the_ids_it_was_sampled_in(tokenizer: PreTrainedTokenizerFast, chat: ChatFormat) -> None:
    """`<think>` is a token of its own here, and one that an answer may hold."""
    sampled = encoded(tokenizer, "<think>", "\n", *"By the mill.", "\n", "</think>", "\n\n", *"A willow.")
    text = chat.decode(sampled)
    assert text == "<think>\nBy the mill.\n</think>\n\nA willow."
    ended = CompletionText(text, [*sampled, chat.stop_token_ids[0]], "stop")
    tokens = completion_tokens(ended, chat, row="r")
    assert list(tokens.token_ids[: len(sampled)]) == sampled
    assert tokens != chat.completion(text)
    assert tokens.token_ids[len(sampled) :] == chat.completion(text).token_ids[-2:]  # the template's whole ending


def test_a_thought_that_was_cut_trains_as_far_as_it_goes(tokenizer: PreTrainedTokenizerFast, chat: ChatFormat) -> None:
    """Its text alone the template refuses: nothing closes the block."""
    sampled = encoded(tokenizer, "<think>", "\n", *"By the")
    text = chat.decode(sampled)
    assert chat.refusal(text) is not None
    tokens = completion_tokens(CompletionText(text, sampled, "length"), chat, row="r")
    assert (list(tokens.token_ids), any(tokens.formatting_mask)) == (sampled, False)
    assert not ids_read_as(encoded(tokenizer, "A hill."), text, chat)


def test_a_stray_control_token_is_left_out_where_the_text_can_be_trained(
    tokenizer: PreTrainedTokenizerFast, chat: ChatFormat
) -> None:
    stray = encoded(tokenizer, *"A wil", "<|im_start|>", *"low.")
    tokens = completion_tokens(CompletionText("A willow.", stray, "length"), chat, row="r")
    end = len(chat.completion("A willow.").token_ids) - 2
    assert tokens.token_ids == chat.completion("A willow.").token_ids[:end]
    cut = encoded(tokenizer, "<think>", "\n", "<|im_start|>", *"By the")
    text = chat.decode(cut)
    assert list(completion_tokens(CompletionText(text, cut, "length"), chat, row="r").token_ids) == cut


@pytest.mark.parametrize("template", ["qwen3", "chatml"])
def test_a_thought_that_nobody_asked_for_stays_one(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    """Thinking is off, or the template knows none: without the tags the thought would read as the answer."""
    asked = copy.deepcopy(tokenizer)
    give_template(asked, load_template(template))
    chat = ChatFormat(asked)
    assert not chat.trains_reasoning
    sampled = encoded(asked, "<think>", "\n", *"hm", "\n", "</think>", "\n\n", *"yes")
    text = chat.decode([*sampled, chat.stop_token_ids[0]])
    assert text == "<think>\nhm\n</think>\n\nyes"
    tokens = completion_tokens(CompletionText(text, [*sampled, chat.stop_token_ids[0]], "stop"), chat, row="r")
    assert list(tokens.token_ids[: len(sampled)]) == sampled
    assert chat.decode(encoded(asked, "<think>", "\n\n", "</think>", "\n\n", *"yes")) == "yes"
    assert chat.decode(encoded(asked, "<think>", "\n", *"hm")) == "<think>\nhm"
