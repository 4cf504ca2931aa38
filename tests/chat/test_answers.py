"""What templates put around answers: only in the generation prompt, only in dialogs, or by the model's own hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import alignloop
from alignloop.chat.format import ChatFormat
from alignloop.chat.sampled import completion_tokens
from alignloop.chat.template_defaults import with_defaults
from alignloop.chat.templates import give_template, load_template
from alignloop.errors import DataError, ModelError
from alignloop.records import CompletionText, Message

BASE = Path(alignloop.__file__).parent / "quickstart" / "base"
HELLO = [Message(role="user", content="Who keeps the mill?")]
# As the larger Gemma 4 models: an empty channel where the model is asked not to think, and in no dialog. As Command-A:
# the model opens its response itself, and two tokens end it.
GEMMA_4, COMMAND_A, EXAONE = (
    (Path(__file__).parent / "jinja" / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    for name in ("gemma_4", "command_a", "exaone")
)
ANSWER = "Peter keeps it."
THOUGHT = f"<think>\nThe mill is Peter's.\n</think>\n\n{ANSWER}"


def base_with(template: str, folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE)
    if "{" in template:
        (folder / "mine.jinja").write_text(template)
        template = str(folder / "mine.jinja")
    give_template(tokenizer, load_template(template))
    return tokenizer


@pytest.mark.parametrize(
    ("template", "prompt_end", "completion"),
    [
        (GEMMA_4, "<|turn>assistant\n<|channel>thought\n<channel|>", f"{ANSWER}<turn|>\n"),
        (
            COMMAND_A,
            "<|START_OF_TURN_TOKEN|>assistant",
            f"<|START_RESPONSE|>{ANSWER}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        ),
        (EXAONE, "[|assistant|]", f"{ANSWER}[|endofturn|]\n"),
        ("phi3", "<|assistant|>\n", f"{ANSWER}<|end|>\n<|eot_id|>"),
        ("glm4moe", "<|assistant|>\n<think></think>", f"\n{ANSWER}<|user|>"),
    ],
    ids=["gemma-4", "command-a", "exaone", "phi-3", "glm-4.5"],
)
def test_an_answer_follows_what_sampling_asks_with(
    template: str, prompt_end: str, completion: str, tmp_path: Path
) -> None:
    tokenizer = base_with(template, tmp_path)
    tokenizer.eos_token = "<|eot_id|>" if template == "phi3" else tokenizer.eos_token
    form = ChatFormat(tokenizer)
    assert tokenizer.decode(form.prompt_ids(HELLO)).endswith(prompt_end)
    tokens = form.completion(ANSWER)
    assert tokenizer.decode(tokens.token_ids) == completion
    assert form.decode(tokens.token_ids) == ANSWER
    first_end = next(n for n, masked in enumerate(tokens.formatting_mask) if masked)
    assert tokens.token_ids[first_end] == form.stop_token_ids[0]
    # As the policy would have sampled it: its first end token, and nothing behind it.
    assert form.sampled_completion(tokens.token_ids[: first_end + 1]) == tokens


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("qwen3", "<think>\nThe mill is Peter's.\n</think>\n\nPeter keeps it.<|im_end|>\n"),
        ("qwen3_5_think", "The mill is Peter's.\n</think>\n\nPeter keeps it.<|im_end|>\n"),
        (
            "gptoss",
            "<|channel|>analysis<|message|>The mill is Peter's.<|end|><|start|>assistant<|channel|>final<|message|>"
            "Peter keeps it.<|return|>",
        ),
        (
            "deepseek_r1_distill",
            "The mill is Peter's.\n</think>\n\nPeter keeps it.<\uff5cend\u2581of\u2581sentence\uff5c>",
        ),
    ],
)
def test_reasoning_is_trained_as_sampled_and_read_as_rows_carry_it(name: str, written: str, tmp_path: Path) -> None:
    tokenizer = base_with(name, tmp_path)
    if name.startswith("qwen"):
        tokenizer.chat_template = with_defaults(tokenizer.chat_template, {"enable_thinking": True})
    form = ChatFormat(tokenizer)
    tokens = form.completion(THOUGHT)
    assert tokenizer.decode(tokens.token_ids) == written
    content = [i for i, masked in zip(tokens.token_ids, tokens.formatting_mask, strict=True) if not masked]
    assert form.decode(content) == THOUGHT
    assert not form.answer_control_ids.isdisjoint(content)
    # Sampled ids train as they are, tags and channels included, and a thought that was cut off learns no end.
    sampled = CompletionText(text=THOUGHT, token_ids=content, finish_reason="stop")
    assert completion_tokens(sampled, form, row="r").token_ids == tokens.token_ids
    cut = content[:-4] if name == "gptoss" else content[:3]
    cut_text = form.decode(cut)
    assert cut_text.startswith("<think>\n")
    trained = completion_tokens(CompletionText(text=cut_text, token_ids=cut, finish_reason="length"), form, row="r")
    assert trained.token_ids == tuple(cut)


def test_a_text_that_cannot_be_trained_names_its_row(tmp_path: Path) -> None:
    form = ChatFormat(base_with("qwen3", tmp_path))
    with pytest.raises(DataError, match=r"row r7: an answer cannot be trained: it holds reasoning"):
        completion_tokens(CompletionText(text=THOUGHT), form, row="r7")
    # Scored, it is what it is: text behind the empty block.
    assert form.decode(form.content_ids(ANSWER)) == ANSWER


def test_an_open_block_is_closed_before_an_answer_that_is_scored(tmp_path: Path) -> None:
    tokenizer = base_with("deepseek_r1_distill", tmp_path)
    form = ChatFormat(tokenizer)
    assert tokenizer.decode(form.content_ids(ANSWER)) == f"\n</think>\n\n{ANSWER}"
    with pytest.raises(ModelError, match="holds no reasoning"):
        form.completion(ANSWER)


def test_line_breaks_that_a_template_strips_are_stripped(tmp_path: Path) -> None:
    tokenizer = base_with("qwen3", tmp_path)
    form = ChatFormat(tokenizer)
    text = "\n  A willow grows by the mill.\n\n"
    dialog = [{"role": "user", "content": "  Which tree?\n"}, {"role": "assistant", "content": text}]
    rendered = tokenizer.apply_chat_template(dialog, tokenize=False)
    ids = form.prompt_ids([Message(role="user", content="  Which tree?\n")]) + form.completion(text).token_ids
    assert ids == tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])
