"""Where a chat template puts each message: the template rendered around sentinels and cut at them.

    turns --sentinel contents--> template.render --cut at the sentinels--> literal, slot, literal, slot, ..., literal

The contents of real messages never pass through the template, so nothing in them can change its course.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignloop.chat.reasoning import join_reasoning
from alignloop.chat.tool_turns import ToolStyle, as_text
from alignloop.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# An em space: `trim`, `strip` and their kin remove it, and no template writes one, so a pad that is gone was trimmed.
_PAD = "\u2003"
# Some templates strip line breaks only: a second look, with these around the contents, tells.
_LINE = "\n"
_QUOTED_LINE = "\\n"
PLAIN = ToolStyle()
_SENTINEL = re.compile(f"({_PAD}?)zqx([0-9]+)(r?)xqz({_PAD}?)")
_MEND = "edit the template (the base's chat_template.jinja, or in its tokenizer_config.json)"
REPLACE = "or set chat_template in the recipe to a template that fits the base: it replaces the base's own"
MEND = f"{_MEND[0].upper()}{_MEND[1:]}, {REPLACE}"

Channel = Literal["reasoning_content", "thinking", "reasoning", "content"]
"""The key of a message under which a template takes reasoning; `content`: in front of the answer, between tags."""
Strips = Literal["nothing", "lines", "all"]
"""What a template takes off an end of a text: line breaks, or whitespace of every kind."""
_STRIPPED: dict[Strips, str | None] = {"nothing": "", "lines": _LINE, "all": None}
"""As `str.strip` takes them."""


class Turn(NamedTuple):
    """A message as far as a template's course depends on it. `reasons`: it holds reasoning beside its text; `calls`:
    the JSON list of its calls; `says`: it has a text, too."""

    role: str
    reasons: bool = False
    calls: str = ""
    says: bool = True


@dataclass(frozen=True)
class Slot:
    """Where one message's text stands.

    Attributes:
        message: index into the messages.
        reasoning: whether it is the message's reasoning that stands here, not its content.
        left, right: what the template strips there.
        quoted: whether the template writes it as a JSON text.
    """

    message: int
    reasoning: bool = False
    left: Strips = "nothing"
    right: Strips = "nothing"
    quoted: bool = False

    def trimmed(self, text: str) -> str:
        """The text as the template would leave it."""
        if self.quoted:
            return as_text(text)[1:-1]
        return text.lstrip(_STRIPPED[self.left]).rstrip(_STRIPPED[self.right])


@dataclass(frozen=True)
class Layout:
    """Literals and slots in the order of the rendered text: `len(literals) == len(slots) + 1`."""

    literals: tuple[str, ...]
    slots: tuple[Slot, ...]

    def holds_reasoning(self, message: int) -> bool:
        return any(slot.message == message and slot.reasoning for slot in self.slots)


def render_layout(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    *,
    generation_prompt: bool,
    options: Mapping[str, Any],
    channel: Channel = "content",
    style: ToolStyle = PLAIN,
) -> Layout:
    """Lay out a dialog of these turns; `options` go to the template, reasoning under the key `channel`, tools and calls
    as `style` says. What calls hold stands in the literals, as the template writes it.

    Raises:
        ModelError: the template refuses the turns (its own message is named), or leaves a content out.
    """
    asks = {"add_generation_prompt": generation_prompt, **options}
    texts = [
        _rendered(
            tokenizer, _dialog(turns, pad=pad, channel=channel, style=style), turns, asks, tools=style.functions()
        )
        for pad in (_PAD, _LINE)
    ]
    return _with_lines(_cut(texts[0], turns), _cut(texts[1], turns))


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    dialog: list[dict[str, Any]],
    turns: Sequence[Turn],
    asks: Mapping[str, Any],
    *,
    tools: list[Any] | None,
) -> str:
    given = {"tools": tools} if tools is not None else {}
    try:
        text = tokenizer.apply_chat_template(dialog, tokenize=False, **given, **asks)
    except Exception as error:  # a template is a program: it may raise whatever Python does
        raise ModelError(
            f"the chat template cannot render a dialog with the turns {_named(turns)}: {str(error).rstrip('.')}. "
            f"Give dialogs the turns it takes. {MEND}"
        ) from None
    assert isinstance(text, str)
    return text


def _dialog(turns: Sequence[Turn], *, pad: str, channel: Channel, style: ToolStyle) -> list[dict[str, Any]]:
    """The messages as the template is given them, a tool's turn with id and name of the call that it answers."""
    dialog: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []
    for index, turn in enumerate(turns):
        message = _message(index, turn, pad=pad, channel=channel)
        if turn.calls:
            message["tool_calls"] = style.call_objects(turn.calls)
            open_calls = [(call["id"], call["function"]["name"]) for call in message["tool_calls"]]
        elif turn.role == "tool":
            call_id, name = open_calls.pop(0) if open_calls else ("", "")
            message |= {"role": style.role, "tool_call_id": call_id, "name": name}
        dialog.append(message)
    return dialog


def _message(index: int, turn: Turn, *, pad: str, channel: Channel) -> dict[str, Any]:
    content = f"{pad}zqx{index}xqz{pad}" if turn.says else ""
    if not turn.reasons:
        return {"role": turn.role, "content": content}
    reasoning = f"{pad}zqx{index}rxqz{pad}"
    if channel == "content":
        return {"role": turn.role, "content": join_reasoning(reasoning, content)}
    return {"role": turn.role, "content": content, channel: reasoning}


def _cut(text: str, turns: Sequence[Turn]) -> Layout:
    literals: list[str] = []
    slots: list[Slot] = []
    end = 0
    for match in _SENTINEL.finditer(text):
        literals.append(text[end : match.start()])
        ends: list[Strips] = ["nothing" if pad else "all" for pad in (match[1], match[4])]
        slots.append(Slot(int(match[2]), bool(match[3]), ends[0], ends[1]))
        end = match.end()
    missing = {index for index, turn in enumerate(turns) if turn.says} - {
        slot.message for slot in slots if not slot.reasoning
    }
    if missing:
        first = min(missing)
        raise ModelError(
            f"the chat template leaves out message {first + 1} ({turns[first].role}) of a dialog with the turns "
            f"{_named(turns)}: what it says would be lost. {MEND}"
        )
    return Layout((*literals, text[end:]), tuple(slots))


def _with_lines(layout: Layout, lines: Layout) -> Layout:
    """`layout` with slots that strip line breaks marked, by the same dialog with line breaks around its texts."""
    if [(s.message, s.reasoning) for s in lines.slots] != [(s.message, s.reasoning) for s in layout.slots]:
        return layout
    slots = list(layout.slots)
    for n, (literal, found) in enumerate(zip(layout.literals, lines.literals, strict=True)):
        # A literal that is all line breaks cannot tell which of the two is missing: then none is.
        before = n > 0 and slots[n - 1].right == "nothing"
        after = n < len(slots) and slots[n].left == "nothing"
        kept_before, kept_after = _LINE if before else "", _LINE if after else ""
        if n < len(slots) and found.endswith(_QUOTED_LINE) and not literal.endswith(_QUOTED_LINE):
            slots[n] = replace(slots[n], quoted=True)
        if found == kept_before + literal + kept_after:
            continue
        if before and found == literal + kept_after:
            slots[n - 1] = replace(slots[n - 1], right="lines")
        elif after and found == kept_before + literal:
            slots[n] = replace(slots[n], left="lines")
        elif found == literal:
            slots[n - 1] = replace(slots[n - 1], right="lines")
            slots[n] = replace(slots[n], left="lines")
    return replace(layout, slots=tuple(slots))


def _named(turns: Sequence[Turn]) -> str:
    return ", ".join(turn.role for turn in turns)
