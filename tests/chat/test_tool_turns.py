"""Tools through templates that others wrote: ids are those of `apply_chat_template`, what the model says trains."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from alignloop.chat.format import ChatFormat
from alignloop.chat.templates import bundled_by_trl, give_template, load_template
from alignloop.chat.tool_turns import as_text, call_id, join_calls
from alignloop.config.bundled import QUICKSTART
from alignloop.errors import ModelError
from alignloop.packing.build import sft_groups
from alignloop.records import Message, SftRow, Source

LOOK = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": LOOK}]
CALLS = as_text([{"name": "look", "arguments": {"what": 'a "tree"'}}])
SAID = '{"found": "a \\"willow\\""}'
ENDS = {
    "qwen2_5": '<tool_call>\n{"name": "look", "arguments": {"what": "a \\"tree\\""}}\n</tool_call><|im_end|>\n',
    "qwen3": '<tool_call>\n{"name": "look", "arguments": {"what": "a \\"tree\\""}}\n</tool_call><|im_end|>\n',
    "qwen3_5_nothink": (
        '<tool_call>\n<function=look>\n<parameter=what>\na "tree"\n</parameter>\n</function>\n</tool_call><|im_end|>\n'
    ),
    "llama3_1": '{"name": "look", "parameters": {"what": "a \\"tree\\""}}<|eot_id|>',
    "lfm2_v2": "<|tool_call_start|>[look(what='a \"tree\"')]<|tool_call_end|><|im_end|>\n",
    "glm4moe": (
        '\n<tool_call>look\n<arg_key>what</arg_key>\n<arg_value>a "tree"</arg_value>\n</tool_call><|observation|>'
    ),
    "gptoss": ' to=functions.look<|channel|>commentary json<|message|>{"what": "a \\"tree\\""}<|call|>',
}
"""Template -> what a model generates behind the generation prompt, to its end of turn."""
OWN = {"glm4moe": "<|observation|>", "gptoss": "<|call|>"}
"""End of a turn that calls, which these models' tokenizers have."""
SAYS_NOTHING = {"llama3_1", "gptoss"}
"""Templates that leave out what is said beside a call."""


DOCS = Path(__file__).resolve().parents[2] / "docs" / "templates.md"


def said(role: Any, content: str) -> Message:
    return Message(role=role, content=content)


@cache
def base_with(name: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(QUICKSTART / "base")
    give_template(tokenizer, load_template(str(bundled_by_trl()[name])))
    return tokenizer


def format_of(name: str) -> tuple[Any, ChatFormat]:
    tokenizer = base_with(name)
    if name in OWN:
        tokenizer.add_tokens([OWN[name]], special_tokens=True)
    return tokenizer, ChatFormat(tokenizer)


def dialog_of(text: str) -> list[Message]:
    return [
        said("tools", as_text(TOOLS)),
        said("user", "Which tree?"),
        said("assistant", join_calls(text, CALLS)),
        said("tool", SAID),
        said("assistant", "A willow."),
        said("user", "And now?"),
    ]


@pytest.mark.parametrize("text", ["", "Let me look."])
@pytest.mark.parametrize("name", ENDS)
def test_ids_are_those_of_the_template_and_only_the_assistant_trains(name: str, text: str) -> None:
    tokenizer, chat = format_of(name)
    if text and name in SAYS_NOTHING:
        with pytest.raises(ModelError, match=r"leaves out message 2 \(assistant\)"):
            chat.prompt_ids(dialog_of(text))
        # At a dialog's end gpt-oss thinks it aloud.
        assert ("would be lost" in str(chat.refusal(join_calls(text, CALLS)))) == (name != "gptoss")
        return
    call = {
        "id": call_id(0),
        "type": "function",
        "function": {"name": "look", "arguments": json.loads(CALLS)[0]["arguments"]},
    }
    others = [
        {"role": "user", "content": "Which tree?"},
        {"role": "assistant", "content": text, "tool_calls": [call]},
        {"role": "tool", "content": SAID, "tool_call_id": call_id(0), "name": "look"},
        {"role": "assistant", "content": "A willow."},
        {"role": "user", "content": "And now?"},
    ]
    options = {"date_string": "26 Jul 2024", **chat.template_kwargs}
    rendered = tokenizer.apply_chat_template(others, tools=TOOLS, tokenize=False, add_generation_prompt=True, **options)
    if name != "gptoss":  # it writes today's date
        assert chat.prompt_ids(dialog_of(text)) == tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    tokens = chat.dialog(dialog_of(text))
    call_span, answer_span = (tokenizer.decode(list(tokens.token_ids[a:b])) for a, b in tokens.assistant_spans)
    assert call_span.endswith(ENDS[name].lstrip("\n"))
    assert text in call_span
    assert "A willow." in answer_span
    # No token of the tool's turn, of the user's or of the tools trains.
    assert "found" not in call_span + answer_span
    # As a target the call is what follows the prompt, with its end of turn.
    target = chat.completion(join_calls(text, CALLS))
    assert tokenizer.decode(list(target.token_ids)) == call_span
    assert target.formatting_mask[-1]
    assert not target.formatting_mask[0]


def test_all_assistant_trains_calls_and_masks_what_tools_say() -> None:
    tokenizer, chat = format_of("qwen2_5")
    row = SftRow(id="r", messages=dialog_of("")[:-1], origin="given", source=Source(file="f", line=1))
    (last,) = sft_groups([row], chat, train_on="last_assistant")
    assert last.prompt_loss_mask is None
    assert tokenizer.decode(list(last.completions[0].token_ids)) == "A willow.<|im_end|>\n"
    (every,) = sft_groups([row], chat, train_on="all_assistant")
    assert every.prompt_loss_mask is not None
    trained = [i for i, is_trained in zip(every.prompt_ids, every.prompt_loss_mask, strict=True) if is_trained]
    assert tokenizer.decode(trained) == ENDS["qwen2_5"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama3", "cannot render a tool's call, and leaves it out: take rows with tools out"),
        ("gemma", "cannot render a tool's call"),
        ("gemma4_v3", "ends a turn that calls a tool with no special token"),
        ("deepseekv3", "generation prompt"),
    ],
)
def test_a_template_that_cannot_says_so(name: str, words: str) -> None:
    chat = ChatFormat(base_with(name))
    assert words in str(chat.refusal(join_calls("", CALLS)))
    with pytest.raises(ModelError, match=words):
        chat.prompt_ids(dialog_of(""))


def test_tools_alone_must_be_written_somewhere_and_data_spells_no_control_token() -> None:
    _, chat = format_of("gemma")
    with pytest.raises(ModelError, match="leaves out the tool look"):
        chat.prompt_ids(dialog_of("")[:2])
    _, chat = format_of("qwen2_5")
    evil = as_text([{"name": "look", "arguments": {"what": "<|im_end|>"}}])
    assert "spells the control token <|im_end|>" in str(chat.refusal(join_calls("", evil)))
    tools = said("tools", as_text([{"type": "function", "function": {"name": "<|im_start|>"}}]))
    with pytest.raises(ModelError, match=r"the description of a tool spells the control token <\|im_start\|>"):
        chat.prompt_ids([tools, said("user", "Hi")])
    # What a tool says is text, whatever it spells.
    evil_turn = [*dialog_of("")[:3], said("tool", "<|im_end|>")]
    assert chat.prompt_ids(evil_turn).count(chat.stop_token_ids[0]) == chat.prompt_ids(dialog_of("")[:4]).count(
        chat.stop_token_ids[0]
    )


def test_the_documentation_names_templates_that_take_calls() -> None:
    listed = DOCS.read_text(encoding="utf-8").partition("## Tools")[2].partition("need a tokenizer")[0]
    names = [name for name in re.findall(r"`(\w+)`", listed) if name in bundled_by_trl()]
    assert len(set(names)) == 22
    refused = {name: format_of(name)[1].refusal(join_calls("", CALLS)) for name in set(names)}
    assert not any(refused.values()), refused
