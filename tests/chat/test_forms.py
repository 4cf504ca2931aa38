"""Formatting masks by hand: every named form on a dialog of two turns, token by token.

Tokenizers of the real kinds are made here, with whole words as tokens, so that the expected tokens can be read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignloop.chat.format import ChatFormat
from alignloop.errors import ModelError
from alignloop.records import Message

# The templates as the models ship them (Gemma 2, Mistral 7B Instruct v0.2, Zephyr 7B beta).
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' "
    "+ message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 "
    "== 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if "
    "add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% "
    "endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ "
    "raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if "
    "(message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% "
    "endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% "
    "if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% "
    "if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == "
    "'assistant' %}{{ ' ' + message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and "
    "assistant roles are supported!') }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
    "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token "
    "}}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
CUSTOM = (
    "{% for message in messages %}### {{ message.role }}: {{ message.content }} <|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:{% endif %}"
)
WORDS = "Be brief . hello hi there more bye user system assistant model INST ### : [ ] / < | > \n".split(" ")
SPLIT_LIKE_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

SYSTEM = Message(role="system", content="Be brief.")
TALK = [
    Message(role="user", content="hello"),
    Message(role="assistant", content="hi there"),
    Message(role="user", content="more"),
    Message(role="assistant", content="bye"),
]


def byte_level(template: str, special: list[str], *, bos: str | None, eos: str) -> PreTrainedTokenizerFast:
    """As Llama 3 and Qwen: bytes, `Ġ` for a space and `Ċ` for a newline; a word of the vocabulary is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [word.replace("\n", "Ċ") for word in [*WORDS, "\n\n"]]
    vocabulary = dict.fromkeys([*alphabet, *words, *(f"Ġ{word}" for word in words)])
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(vocabulary)}, merges=[], ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_LIKE_LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    return _wrapped(core, template, special, bos=bos, eos=eos)


def sentencepiece(template: str, special: list[str], *, bos: str, eos: str, prefix: bool) -> PreTrainedTokenizerFast:
    """As Mistral (`prefix`: a space before every text) and Gemma (none): `▁` for a space, bytes for what is unknown."""
    letters = sorted({letter for word in WORDS for letter in word} | {"▁"})
    pieces = [("<unk>", 0.0), *((letter, -20.0) for letter in letters)]
    words = [word for word in WORDS if len(word) > 1]
    pieces += [(spelt, -2.0) for word in words for spelt in (word, f"▁{word}")]
    pieces += [(f"<0x{byte:02X}>", -50.0) for byte in range(256)]
    pieces += [("▁[", -2.0), ("▁<", -2.0)]
    core = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if prefix else undo)
    return _wrapped(core, template, special, bos=bos, eos=eos)


def _wrapped(
    core: Tokenizer, template: str, special: list[str], *, bos: str | None, eos: str
) -> PreTrainedTokenizerFast:
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


@dataclass(frozen=True)
class Form:
    """A form and what is expected of it.

    Attributes:
        expected: (what, tokens) of the whole dialog in order: `-` header and the like (formatting), `t` text of
            others, `c` content of an answer, `e` what ends an answer (formatting).
        stop: the token at which generation stops.
    """

    make: Callable[[], PreTrainedTokenizerFast]
    talk: list[Message]
    expected: list[tuple[str, str]]
    stop: str


LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
FORMS = {
    "llama3": Form(
        lambda: byte_level(LLAMA3, LLAMA3_SPECIAL, bos="<|begin_of_text|>", eos="<|eot_id|>"),
        [SYSTEM, *TALK],
        [
            ("-", "<|begin_of_text|> <|start_header_id|> system <|end_header_id|> ĊĊ"),
            ("t", "Be Ġbrief ."),
            ("-", "<|eot_id|> <|start_header_id|> user <|end_header_id|> ĊĊ"),
            ("t", "hello"),
            ("-", "<|eot_id|> <|start_header_id|> assistant <|end_header_id|> ĊĊ"),
            ("c", "hi Ġthere"),
            ("e", "<|eot_id|>"),
            ("-", "<|start_header_id|> user <|end_header_id|> ĊĊ"),
            ("t", "more"),
            ("-", "<|eot_id|> <|start_header_id|> assistant <|end_header_id|> ĊĊ"),
            ("c", "bye"),
            ("e", "<|eot_id|>"),
        ],
        "<|eot_id|>",
    ),
    "chatml": Form(
        lambda: byte_level(CHATML, ["<|im_start|>", "<|im_end|>"], bos=None, eos="<|im_end|>"),
        [SYSTEM, *TALK],
        [
            ("-", "<|im_start|> system Ċ"),
            ("t", "Be Ġbrief ."),
            ("-", "<|im_end|> Ċ <|im_start|> user Ċ"),
            ("t", "hello"),
            ("-", "<|im_end|> Ċ <|im_start|> assistant Ċ"),
            ("c", "hi Ġthere"),
            ("e", "<|im_end|> Ċ"),
            ("-", "<|im_start|> user Ċ"),
            ("t", "more"),
            ("-", "<|im_end|> Ċ <|im_start|> assistant Ċ"),
            ("c", "bye"),
            ("e", "<|im_end|> Ċ"),
        ],
        "<|im_end|>",
    ),
    "gemma": Form(
        lambda: sentencepiece(
            GEMMA, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], bos="<bos>", eos="<eos>", prefix=False
        ),
        TALK,
        [
            ("-", "<bos> <start_of_turn> user \n"),
            ("t", "hello"),
            ("-", "<end_of_turn> \n <start_of_turn> model \n"),
            ("c", "hi ▁there"),
            ("e", "<end_of_turn> \n"),
            ("-", "<start_of_turn> user \n"),
            ("t", "more"),
            ("-", "<end_of_turn> \n <start_of_turn> model \n"),
            ("c", "bye"),
            ("e", "<end_of_turn> \n"),
        ],
        "<end_of_turn>",
    ),
    "mistral": Form(
        lambda: sentencepiece(MISTRAL, ["<s>", "</s>"], bos="<s>", eos="</s>", prefix=True),
        TALK,
        [
            ("-", "<s> ▁[ INST ]"),
            ("t", "▁hello"),
            ("-", "▁[ / INST ]"),
            ("c", "▁hi ▁there"),
            ("e", "</s>"),
            ("-", "▁[ INST ]"),
            ("t", "▁more"),
            ("-", "▁[ / INST ]"),
            ("c", "▁bye"),
            ("e", "</s>"),
        ],
        "</s>",
    ),
    "zephyr": Form(
        lambda: sentencepiece(ZEPHYR, ["<s>", "</s>"], bos="<s>", eos="</s>", prefix=True),
        [SYSTEM, *TALK],
        [
            ("-", "▁< | system | > \n"),
            ("t", "Be ▁brief ."),
            ("-", "</s> ▁ \n < | user | > \n"),
            ("t", "hello"),
            ("-", "</s> ▁ \n < | assistant | > \n"),
            ("c", "hi ▁there"),
            ("e", "</s> ▁ \n"),
            ("-", "< | user | > \n"),
            ("t", "more"),
            ("-", "</s> ▁ \n < | assistant | > \n"),
            ("c", "bye"),
            ("e", "</s> ▁ \n"),
        ],
        "</s>",
    ),
    "custom": Form(
        lambda: byte_level(CUSTOM, ["<|stop|>"], bos=None, eos="<|stop|>"),
        [SYSTEM, *TALK],
        [
            ("-", "### Ġsystem :"),
            ("t", "ĠBe Ġbrief ."),
            ("-", "Ġ <|stop|> Ċ ### Ġuser :"),
            ("t", "Ġhello"),
            ("-", "Ġ <|stop|> Ċ ### Ġassistant :"),
            ("c", "Ġhi Ġthere"),
            ("e", "Ġ <|stop|> Ċ"),
            ("-", "### Ġuser :"),
            ("t", "Ġmore"),
            ("-", "Ġ <|stop|> Ċ ### Ġassistant :"),
            ("c", "Ġbye"),
            ("e", "Ġ <|stop|> Ċ"),
        ],
        "<|stop|>",
    ),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


def spelt(form: Form, kinds: str) -> list[str]:
    """The expected tokens of these kinds."""
    return [token for kind, tokens in form.expected if kind in kinds for token in split(tokens)]


def split(tokens: str) -> list[str]:
    """At single spaces; a newline is a token of its own."""
    return tokens.split(" ")


def tokens_of(chat: ChatFormat, tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> list[str]:
    return [str(token) for token in tokenizer.convert_ids_to_tokens(list(ids))]


def test_dialog_token_by_token(form: Form) -> None:
    tokenizer = form.make()
    chat = ChatFormat.from_tokenizer(tokenizer)
    dialog = chat.dialog(form.talk)
    assert tokens_of(chat, tokenizer, dialog.token_ids) == spelt(form, "-tce")
    formatting = [kind in "-e" for kind, tokens in form.expected for _ in split(tokens)]
    assert list(dialog.formatting_mask) == formatting
    in_answers = [kind in "ce" for kind, tokens in form.expected for _ in split(tokens)]
    spans = [any(start <= i < end for start, end in dialog.assistant_spans) for i in range(len(in_answers))]
    assert spans == in_answers
    assert len(dialog.assistant_spans) == 2


def test_prompt_and_completion_token_by_token(form: Form) -> None:
    tokenizer = form.make()
    chat = ChatFormat.from_tokenizer(tokenizer)
    *before, (_, content), (_, end) = form.expected
    prompt = [token for _, tokens in before for token in split(tokens)]
    assert tokens_of(chat, tokenizer, chat.prompt_ids(form.talk[:-1])) == prompt
    completion = chat.completion("bye")
    assert tokens_of(chat, tokenizer, completion.token_ids) == [*split(content), *split(end)]
    assert completion.formatting_mask == (False,) * len(split(content)) + (True,) * len(split(end))
    assert tokenizer.convert_ids_to_tokens(chat.stop_token_ids[0]) == form.stop
    assert chat.decode(completion.token_ids) == "bye"


def test_ids_are_those_of_the_rendered_text(form: Form) -> None:
    """No content here spells a special token, so the tokenizer's own reading of the whole text is the measure."""
    tokenizer = form.make()
    rendered = tokenizer.apply_chat_template([m.model_dump() for m in form.talk], tokenize=False)
    whole = tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    assert ChatFormat.from_tokenizer(tokenizer).dialog(form.talk).token_ids == whole


def test_token_texts_join_to_the_text(form: Form) -> None:
    tokenizer = form.make()
    chat = ChatFormat.from_tokenizer(tokenizer)
    texts = chat.token_texts(chat.dialog(form.talk).token_ids)
    rendered = tokenizer.apply_chat_template([m.model_dump() for m in form.talk], tokenize=False)
    joined = "".join(texts)
    # A space that the tokenizer puts before a text of its own accord is shown, too: that token has it.
    assert joined.replace(" ", "") == str(rendered).replace(" ", "")
    assert "there" in joined
    assert " there" in joined


def test_a_character_of_several_tokens_is_shown_once() -> None:
    chat = ChatFormat.from_tokenizer(FORMS["chatml"].make())
    ids = chat.completion("日!").token_ids
    assert chat.token_texts(ids) == ["", "", "日", "!", "<|im_end|>", "\n"]
    # Cut within the character, as at a token limit.
    assert chat.token_texts((*ids[:2], ids[4])) == ["", "\ufffd", "<|im_end|>"]


@pytest.mark.parametrize(
    ("name", "words"), [("gemma", "System role not supported"), ("mistral", "roles must alternate")]
)
def test_forms_without_a_system_turn_say_so(name: str, words: str) -> None:
    chat = ChatFormat.from_tokenizer(FORMS[name].make())
    with pytest.raises(ModelError) as caught:
        chat.prompt_ids([SYSTEM, *TALK[:3]])
    message = str(caught.value)
    assert words in message
    assert "turns system, user, assistant, user" in message
    assert "Give dialogs the turns it takes" in message
