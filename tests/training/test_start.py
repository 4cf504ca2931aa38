"""Bases made usable: template, special tokens, embeddings, eos and pad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from alignloop.chat.format import ChatFormat
from alignloop.chat.load import load_format, template_kwargs_of
from alignloop.chat.templates import load_template
from alignloop.errors import ModelError
from alignloop.records import Message
from alignloop.training.new_tokens import load_new_tokens
from alignloop.training.start import prepare_base


def make_base(
    path: Path, *, tied: bool, spare_rows: int = 0, template: str | None = None, pad: str | None = None
) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: number for number, letter in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=words, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special: dict[str, Any] = {"eos_token": "<|endoftext|>"} | ({"pad_token": pad} if pad else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    if template is not None:
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
        tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + spare_rows,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", ["llama3", "chatml"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("spare_rows", [0, 40], ids=["no spare rows", "spare rows"])
def test_a_base_without_template_gets_one_and_can_stop(name: str, tied: bool, spare_rows: int, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=tied, spare_rows=spare_rows)
    old = AutoModelForCausalLM.from_pretrained(base)
    num_old = len(AutoTokenizer.from_pretrained(base))
    prepared = prepare_base(str(base), chat_template=name, out_dir=tmp_path / "out")
    assert not prepared.had_template

    tokenizer = AutoTokenizer.from_pretrained(prepared.path)
    chat = ChatFormat(tokenizer)
    end = tokenizer.convert_tokens_to_ids({"llama3": "<|eot_id|>", "chatml": "<|im_end|>"}[name])
    assert chat.completion("hi").token_ids[-1] == end or end in chat.completion("hi").token_ids
    eos = json.loads((prepared.path / "generation_config.json").read_text())["eos_token_id"]
    assert end in eos
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") in eos
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id not in eos

    model = AutoModelForCausalLM.from_pretrained(prepared.path)
    rows = model.get_input_embeddings().weight
    assert len(rows) == max(len(tokenizer), num_old + spare_rows)
    assert torch.equal(rows[:num_old], old.get_input_embeddings().weight[:num_old])
    head = model.get_output_embeddings().weight
    for matrix, former in ((rows, old.get_input_embeddings().weight), (head, old.get_output_embeddings().weight)):
        new = matrix[num_old : len(tokenizer)].detach()
        spread, mean = torch.std_mean(former[:num_old].detach(), dim=0)
        # A tenth of the spread about the mean, and no two alike.
        assert 0.07 < float(((new - mean) / spread).std()) < 0.13
        assert len(new.unique(dim=0)) == len(new)
    assert torch.equal(head, rows) == tied
    named = load_new_tokens(prepared.path)
    assert [token.id for token in named] == list(range(num_old, len(tokenizer)))
    assert {token.state for token in named} == {"added"}
    again = prepare_base(str(base), chat_template=name, out_dir=tmp_path / "again")
    weights = "model.safetensors"
    assert (again.path / weights).read_bytes() == (prepared.path / weights).read_bytes()
    assert max(chat.prompt_ids([Message(role="user", content="hello")])) < len(rows)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_base_with_a_template_is_copied(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True, template=CHATML, pad="<|pad|>")
    prepared = prepare_base(str(base), chat_template=None, out_dir=tmp_path / "out")
    assert prepared.had_template
    assert prepared.template_kwargs == {}
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (prepared.path / name).read_bytes() == (base / name).read_bytes(), name
    tokenizer = AutoTokenizer.from_pretrained(prepared.path)
    eos = json.loads((prepared.path / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in eos


def test_a_recipes_template_replaces_the_bases_own(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True, template=CHATML, pad="<|pad|>")
    replaced = prepare_base(str(base), chat_template="llama3", out_dir=tmp_path / "llama3")
    tokenizer = AutoTokenizer.from_pretrained(replaced.path)
    assert tokenizer.chat_template == load_template("llama3").jinja
    assert tokenizer.eos_token == "<|eot_id|>"
    assert len(AutoModelForCausalLM.from_pretrained(replaced.path).get_input_embeddings().weight) == len(tokenizer)
    # It does not know these tokens, so it has no chat behaviour under them; it has under those that it brings.
    assert not replaced.had_template
    assert prepare_base(str(base), chat_template="chatml", out_dir=tmp_path / "chatml").had_template


@pytest.mark.parametrize(
    ("chosen", "asked", "kept"),
    [
        ({"enable_thinking": True}, "<|im_start|>assistant\n", {"enable_thinking": True}),
        # Nothing chosen: as an answer without reasoning stands in a dialog.
        ({}, "<|im_start|>assistant\n<think>\n\n</think>\n\n", {"enable_thinking": False}),
    ],
)
def test_the_checkpoint_asks_as_it_was_prepared_wherever_it_is_loaded(
    tmp_path: Path, chosen: dict[str, bool], asked: str, kept: dict[str, bool]
) -> None:
    base = make_base(tmp_path / "base", tied=True)
    prepared = prepare_base(str(base), chat_template="qwen3", template_kwargs=chosen, out_dir=tmp_path / "out")
    assert prepared.template_kwargs == kept == template_kwargs_of(prepared.path)
    tokenizer = AutoTokenizer.from_pretrained(prepared.path)
    question = [{"role": "user", "content": "hello"}]
    served = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert served == f"<|im_start|>user\nhello<|im_end|>\n{asked}"
    chat = load_format(prepared.path)
    assert chat.template_kwargs == kept
    assert chat.prompt_ids([Message(role="user", content="hello")]) == tuple(
        tokenizer(served, add_special_tokens=False)["input_ids"]
    )
    # A request can ask otherwise.
    other = tokenizer.apply_chat_template(
        question, tokenize=False, add_generation_prompt=True, enable_thinking=not kept["enable_thinking"]
    )
    assert other != served


def test_kwargs_that_the_template_does_not_read_are_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True)
    with pytest.raises(ModelError, match=r"does not take enable_thinking from a recipe; it reads nothing"):
        prepare_base(
            str(base), chat_template="llama3", template_kwargs={"enable_thinking": True}, out_dir=tmp_path / "out"
        )


def test_a_pad_token_that_is_eos_is_replaced(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True, template=CHATML, pad="<|endoftext|>")
    prepared = prepare_base(str(base), chat_template=None, out_dir=tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(prepared.path)
    assert tokenizer.pad_token == "<|pad|>"
    config = json.loads((prepared.path / "config.json").read_text())
    assert config["pad_token_id"] == tokenizer.pad_token_id not in config["eos_token_id"]
    assert len(AutoModelForCausalLM.from_pretrained(prepared.path).get_input_embeddings().weight) == len(tokenizer)


def test_what_holds_no_base_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ModelError, match="no such directory"):
        prepare_base(str(tmp_path / "nowhere"), chat_template=None, out_dir=out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no model"):
        prepare_base(str(tmp_path / "empty"), chat_template=None, out_dir=out)
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds no weights"):
        prepare_base(str(tmp_path / "empty"), chat_template=None, out_dir=out)
    base = make_base(tmp_path / "base", tied=True)
    with pytest.raises(ModelError, match="no chat template"):
        prepare_base(str(base), chat_template=None, out_dir=out)
    with pytest.raises(ModelError, match="no template named"):
        prepare_base(str(base), chat_template="lama3", out_dir=out)
    assert not list(tmp_path.glob("out*"))
