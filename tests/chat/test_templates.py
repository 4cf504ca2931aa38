from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from alignloop.chat.format import ChatFormat
from alignloop.chat.load import prepare_tokenizer
from alignloop.chat.templates import give_template, load_template
from alignloop.errors import ModelError
from alignloop.records import Message

LIKE_ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def letters(*, eos: str | None) -> PreTrainedTokenizerFast:
    vocabulary = {character: index for index, character in enumerate("</s>|\nabcdefghijklmnopqrtuvwxyz ")}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    if eos:
        core.add_special_tokens([eos])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos)


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
    assert set(template.special_tokens) == {"<|stop|>", "<|sep|>", "<|user|>", "<|assistant|>", "<|system|>"}
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


def test_a_file_may_end_turns_with_the_tokenizers_own_eos(tmp_path: Path) -> None:
    path = tmp_path / "zephyr.jinja"
    path.write_text(LIKE_ZEPHYR)
    template = load_template(str(path))
    assert template.end_of_turn is None
    tokenizer = letters(eos="</s>")
    give_template(tokenizer, template)
    assert tokenizer.eos_token == "</s>"
    chat = ChatFormat(tokenizer)
    completion = chat.completion("bye")
    assert tokenizer.convert_ids_to_tokens(list(completion.token_ids)) == ["b", "y", "e", "</s>", "\n"]
    assert completion.formatting_mask == (False, False, False, True, True)
    assert chat.stop_token_ids == (tokenizer.eos_token_id,)
    prompt = chat.prompt_ids([Message(role="user", content="hi")])
    assert prompt.count(tokenizer.eos_token_id) == 1


def test_an_eos_of_the_tokenizers_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "zephyr.jinja"
    path.write_text(LIKE_ZEPHYR)
    with pytest.raises(ModelError, match=r"ends turns with \{\{ eos_token \}\}, and the base's tokenizer has none"):
        give_template(letters(eos=None), load_template(str(path)))


@pytest.mark.parametrize("key", ["eos_token", "messages", "tools", "mode", "m", "mark"])
def test_kwargs_that_rendering_sets_itself_or_that_nothing_reads_are_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "zephyr.jinja"
    path.write_text(
        LIKE_ZEPHYR + "{% if tools and loud %}{% set mark = '!' %}{% else %}{% set mark = '' %}{% endif %}{{ mark }}"
    )
    tokenizer = letters(eos="</s>")
    with pytest.raises(ModelError, match=f"does not take {key} from a recipe; it reads loud$"):
        prepare_tokenizer(tokenizer, template=load_template(str(path)), kwargs={key: "x"}, name="base")


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ("m.content", ()),  # tags in a message's own text are the message's
        ("'<think>' ~ m.reasoning_content ~ '</think>' ~ m.content", ("<think>", "</think>")),
        ("'<think>' ~ m.content.split('</think>')[-1]", ("<think>", "</think>")),
    ],
)
def test_thinking_tags_are_new_tokens_where_the_template_writes_them(
    tmp_path: Path, answer: str, tokens: tuple[str, ...]
) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(f"{{% for m in messages %}}<|{{{{ m.role }}}}|>{{{{ {answer} }}}}<|stop|>{{% endfor %}}")
    assert load_template(str(path)).plain_tokens == tokens


def test_the_first_token_after_an_answer_is_the_end_of_turn(tmp_path: Path) -> None:
    path = tmp_path / "both.jinja"
    path.write_text(LIKE_ZEPHYR.replace("eos_token }}", "'<|stop|>' + eos_token }}"))
    template = load_template(str(path))
    assert template.end_of_turn == "<|stop|>"
    tokenizer = letters(eos="</s>")
    give_template(tokenizer, template)
    assert tokenizer.eos_token == "<|stop|>"
