"""Chat templates to give to a base: `llama3`, `chatml`, one of those that TRL bundles, or a Jinja file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alignloop.chat.reasoning import THINK_END, THINK_START
from alignloop.chat.trial import check_ends
from alignloop.errors import ModelError

_HERE = Path(__file__).parent
# How models spell their markers: ChatML and Llama, Gemma 4, DeepSeek, EXAONE, Gemma and Idefics, GLM; thinking tags.
_MARKER = re.compile(
    r"<\|[^<>|\s]+\|>|<\|[a-z_]+>|<[a-z_]+\|>|<\uff5c[^<>\uff5c]+\uff5c>|\[\|[^\[\]|\s]+\|\]|<(?:start|end)_of_\w+>"
    rf"|\[gMASK\]|<sop>|{THINK_START}|{THINK_END}"
)
_THINK_TAGS = (THINK_START, THINK_END)
_SENTINEL = "zqxanswerxqz"
_EOS = "zqxeosxqz"
"""Stands for the tokenizer's own eos while a file is looked at."""


@dataclass(frozen=True)
class Template:
    """A chat template and the tokens a tokenizer must have for it.

    Attributes:
        jinja: the template, as `tokenizer.chat_template` takes it.
        special_tokens: to be added to the tokenizer as special tokens where it lacks them, in this order.
        plain_tokens: to be added as tokens that stay in a decoded text: thinking tags, which servers look for there.
        end_of_turn: the special token that ends a turn: the tokenizer's and generation config's eos. None: the template
            ends turns with the `eos_token` that the tokenizer has.
        bos: the token the template's `bos_token` stands for; None where the template begins without one.
    """

    jinja: str
    special_tokens: tuple[str, ...]
    end_of_turn: str | None
    bos: str | None
    plain_tokens: tuple[str, ...] = ()


_SHIPPED = {
    "llama3": Template(
        jinja=(_HERE / "llama3.jinja").read_text(encoding="utf-8").rstrip("\n"),
        special_tokens=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        end_of_turn="<|eot_id|>",
        bos="<|begin_of_text|>",
    ),
    "chatml": Template(
        jinja=(_HERE / "chatml.jinja").read_text(encoding="utf-8").rstrip("\n"),
        special_tokens=("<|im_start|>", "<|im_end|>"),
        end_of_turn="<|im_end|>",
        bos=None,
    ),
}


def load_template(name_or_path: str) -> Template:
    """The template of this name, shipped or bundled with TRL, or a Jinja file.

    In a file, the special tokens are the markers that it writes around a dialog (`<|...|>`, `<start_of_turn>` and the
    like); the end of turn is the first of them after an assistant message, or the tokenizer's own eos where the file
    writes `eos_token` there. A `bos_token` in a file stays the tokenizer's own, too.

    Raises:
        ModelError: no such name or file, or a file that cannot be rendered, does not come to an end, or ends no turn
            with a marker.
    """
    if name_or_path in _SHIPPED:
        return _SHIPPED[name_or_path]
    path = template_file(name_or_path)
    if path is not None:
        return _from_file(path)
    names = dict.fromkeys([*_SHIPPED, *bundled_by_trl()])
    near = [name for name in names if name.startswith(name_or_path.lower())][:2]
    near = near or difflib.get_close_matches(name_or_path.lower(), names, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(_SHIPPED)}, and those that TRL bundles"
    raise ModelError(f"chat_template: no template named {name_or_path!r} and no such file; {hint} (or a Jinja file)")


def template_file(name_or_path: str) -> Path | None:
    """The Jinja file that a recipe's `chat_template` names; None where it is a shipped name, or nothing."""
    if name_or_path in _SHIPPED:
        return None
    path = Path(name_or_path).expanduser()
    return path if path.is_file() else bundled_by_trl().get(name_or_path)


def is_shipped(jinja: str) -> bool:
    """Whether this text is one of our own templates."""
    return any(jinja == template.jinja for template in _SHIPPED.values())


@cache
def bundled_by_trl() -> dict[str, Path]:
    """The templates that the installed TRL brings, by name."""
    spec = find_spec("trl")
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = sorted(file for folder in folders for file in Path(folder, "chat_templates").glob("*.jinja"))
    return {file.stem: file for file in files}


def _from_file(path: Path) -> Template:
    try:
        jinja = path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: the chat template cannot be read: {error}") from None
    if path not in bundled_by_trl().values():
        check_ends(jinja, name=str(path))
    texts = list(_written(jinja, path))
    after = texts[0].rpartition(_SENTINEL)[2]
    # Where nothing ends the last turn, the header of the next one ends the turn before it.
    ends = _ends(after) or _ends(texts[1].partition(_SENTINEL)[2])
    if not ends:
        raise ModelError(
            f"{path}: after an assistant message the template writes {after!r}, which holds no special token such as "
            "<|im_end|>: generation could not stop. End each turn with one, or with {{ eos_token }}"
        )
    markers = dict.fromkeys(marker for text in texts for marker in _MARKER.findall(text))
    return Template(
        jinja,
        tuple(marker for marker in markers if marker not in _THINK_TAGS),
        end_of_turn=None if ends[0] == _EOS else ends[0],
        bos=None,
        # What opens is closed, by the model where not by the template.
        plain_tokens=_THINK_TAGS if markers.keys() & _THINK_TAGS else (),
    )


def _ends(text: str) -> list[str]:
    return [found for found in re.findall(f"{_MARKER.pattern}|{_EOS}", text) if found not in _THINK_TAGS]


def give_template(tokenizer: Any, template: Template) -> None:
    """Give a tokenizer a template, its special tokens, and its end of turn as eos.

    Raises:
        ModelError: the template ends turns with the tokenizer's own eos, and it has none.
    """
    from tokenizers import AddedToken

    if template.end_of_turn is None and tokenizer.eos_token is None:
        raise ModelError(
            "the chat template ends turns with {{ eos_token }}, and the base's tokenizer has none: write a token such "
            "as <|im_end|> there, or set chat_template to llama3 or chatml"
        )
    added = [AddedToken(token, special=True, normalized=False) for token in template.special_tokens]
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in template.plain_tokens])
    tokenizer.chat_template = template.jinja
    if template.end_of_turn is not None:
        tokenizer.eos_token = template.end_of_turn
    if template.bos is not None:
        tokenizer.bos_token = template.bos


def _written(jinja: str, path: Path) -> Iterator[str]:
    """What the template writes around dialogs: the first ends with an answer, the others show what else it can write.

    Raises:
        ModelError: it cannot render an answered question, or leaves the answer out.
    """
    user, answer = {"role": "user", "content": "hello"}, {"role": "assistant", "content": _SENTINEL}
    text = _render(jinja, [user, answer], path)
    if _SENTINEL not in text:
        raise ModelError(
            f"{path}: the chat template leaves the assistant's message out: let it write every message's content as "
            "the text it is (templates of image models take lists of parts), or set chat_template to llama3 or chatml"
        )
    yield text
    yield _render(jinja, [user, answer, user], path)
    thought = answer | dict.fromkeys(("reasoning_content", "thinking", "reasoning"), "hello")
    tagged = {"role": "assistant", "content": f"{THINK_START}hello{THINK_END}{_SENTINEL}"}
    system = {"role": "system", "content": "hello"}
    for dialog in ([user], [user, thought], [user, tagged], [system, user]):
        for thinking in (True, False):
            try:
                text = _render(jinja, dialog, path, add_generation_prompt=True, enable_thinking=thinking)
                yield text.replace(tagged["content"], _SENTINEL)  # tags left as they stand are the message's
            except ModelError:  # it takes no system turn, or no reasoning: said where a row has some
                continue


def _render(jinja: str, dialog: list[dict[str, str]], path: Path, **options: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        # As the tokenizer will render it: the functions and tags that templates may use are those given there.
        rendered, _ = render_jinja_template([dialog], chat_template=jinja, bos_token="", eos_token=_EOS, **options)
    except Exception as error:  # a template is a program: it may raise whatever Python does
        line = getattr(error, "lineno", None)
        where = str(path) if line is None else f"{path}, line {line}"
        raise ModelError(
            f"{where}: the chat template cannot be rendered: {str(error).rstrip('.')}; mend the file, or set "
            "chat_template to llama3 or chatml"
        ) from None
    return str(rendered[0])
