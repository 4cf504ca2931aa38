"""Chat templates for bases that bring none: `llama3`, `chatml`, or a Jinja file of the user's."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.errors import ModelError

_HERE = Path(__file__).parent
_MARKER = re.compile(r"<\|[A-Za-z0-9_]+\|>|<(?:start|end)_of_turn>")
_SENTINEL = "zqxanswerxqz"
_EOS = "zqxeosxqz"
"""Stands for the tokenizer's own eos while a file is looked at."""


@dataclass(frozen=True)
class Template:
    """A chat template and the tokens a tokenizer must have for it.

    Attributes:
        jinja: the template, as `tokenizer.chat_template` takes it.
        special_tokens: to be added to the tokenizer as special tokens where it lacks them, in this order.
        end_of_turn: the special token that ends a turn: the tokenizer's and generation config's eos. None: the template
            ends turns with the `eos_token` that the tokenizer has.
        bos: the token the template's `bos_token` stands for; None where the template begins without one.
    """

    jinja: str
    special_tokens: tuple[str, ...]
    end_of_turn: str | None
    bos: str | None


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
    """The shipped template of this name, or a Jinja file.

    In a file, the special tokens are the `<|...|>` and `<start_of_turn>` markers it writes; the end of turn is the
    first of them after an assistant message, or the tokenizer's own eos where the file writes `eos_token` there. A
    `bos_token` in a file stays the tokenizer's own, too.

    Raises:
        ModelError: no such name or file, or a file that cannot be rendered or ends no turn with a marker.
    """
    if name_or_path in _SHIPPED:
        return _SHIPPED[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return _from_file(path)
    near = difflib.get_close_matches(name_or_path.lower(), _SHIPPED, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(_SHIPPED)}"
    raise ModelError(f"chat_template: no template named {name_or_path!r} and no such file; {hint} (or a Jinja file)")


def _from_file(path: Path) -> Template:
    try:
        jinja = path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: the chat template cannot be read: {error}") from None
    after = _after_answer(jinja, path)
    ends = re.findall(f"{_MARKER.pattern}|{_EOS}", after)
    if not ends:
        raise ModelError(
            f"{path}: after an assistant message the template writes {after!r}, which holds no special token such as "
            "<|im_end|>: generation could not stop. End each turn with one, or with {{ eos_token }}"
        )
    special = tuple(dict.fromkeys(_MARKER.findall(jinja)))
    return Template(jinja, special, end_of_turn=None if ends[0] == _EOS else ends[0], bos=None)


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
    tokenizer.chat_template = template.jinja
    if template.end_of_turn is not None:
        tokenizer.eos_token = template.end_of_turn
    if template.bos is not None:
        tokenizer.bos_token = template.bos


def _after_answer(jinja: str, path: Path) -> str:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    dialog = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": _SENTINEL}]
    try:
        # As the tokenizer will render it: the functions and tags that templates may use are those given there.
        rendered, _ = render_jinja_template([dialog], chat_template=jinja, bos_token="", eos_token=_EOS)
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        line = getattr(error, "lineno", None)
        where = str(path) if line is None else f"{path}, line {line}"
        raise ModelError(
            f"{where}: the chat template cannot be rendered: {str(error).rstrip('.')}; mend the file, or set "
            "chat_template to llama3 or chatml"
        ) from None
    text = str(rendered[0])
    if _SENTINEL not in text:
        raise ModelError(
            f"{path}: the chat template leaves the assistant's message out: let it write every message's content"
        )
    return text.rpartition(_SENTINEL)[2]
