"""Chat templates for bases that bring none: `llama3`, `chatml`, or a Jinja file of the user's."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from alignloop.errors import ModelError

_HERE = Path(__file__).parent
_MARKER = re.compile(r"<\|[A-Za-z0-9_]+\|>|<(?:start|end)_of_turn>")
_SENTINEL = "zqxanswerxqz"


@dataclass(frozen=True)
class Template:
    """A chat template and the tokens a tokenizer must have for it.

    Attributes:
        jinja: the template, as `tokenizer.chat_template` takes it.
        special_tokens: to be added to the tokenizer as special tokens where it lacks them, in this order.
        end_of_turn: the special token that ends a turn: the tokenizer's and generation config's eos.
        bos: the token the template's `bos_token` stands for; None where the template begins without one.
    """

    jinja: str
    special_tokens: tuple[str, ...]
    end_of_turn: str
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
    first of them after an assistant message. A `bos_token` in a file stays the tokenizer's own.

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
    markers = _MARKER.findall(after)
    if not markers:
        raise ModelError(
            f"{path}: after an assistant message the template writes {after!r}, which holds no special token such as "
            "<|im_end|>: generation could not stop. End each turn with one"
        )
    return Template(jinja, tuple(dict.fromkeys(_MARKER.findall(jinja))), markers[0], bos=None)


def _after_answer(jinja: str, path: Path) -> str:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    dialog = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": _SENTINEL}]
    try:
        # As the tokenizer will render it: the functions and tags that templates may use are those given there.
        rendered, _ = render_jinja_template([dialog], chat_template=jinja, bos_token="", eos_token="")
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
