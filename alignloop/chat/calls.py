"""How a template writes a tool's call behind its generation prompt, found by rendering one: or why it cannot.

    generation prompt | opening  text  calls  ending

Everything right of the bar is what the model generates. Calls are the template's own text around their data, so what
they hold must spell no control token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from alignloop.chat.answer import EMPTY_BLOCK
from alignloop.chat.encoder import Encoder
from alignloop.chat.layout import Layout, Slot, Turn, render_layout
from alignloop.chat.tool_turns import TOOL_ROLES, ToolStyle, as_text, tool_name
from alignloop.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMEDY = "take rows with tools out, or set chat_template to one that takes tools (docs/templates.md)"
NO_END = f"the chat template ends a turn that calls a tool with no special token of the tokenizer: {REMEDY}"
_NAME, _KEY, _VALUE = "zqxnamexqz", "zqxkeyxqz", "zqxvaluexqz"
_CALL = as_text([{"name": _NAME, "arguments": {_KEY: _VALUE}}])
_USER = Turn("user")
_SPOILT = (f"'{_KEY}'", f'\\"{_KEY}')
"""Arguments as Python writes a dictionary, and JSON in JSON: the template wants them the other way."""


@dataclass(frozen=True)
class CallForm:
    """What a template writes for an answer with these calls. `text` is the slot of what is said before them; None where
    nothing is."""

    opening: str
    text: Slot | None
    calls: str
    ending: str

    @property
    def behind(self) -> str:
        return self.calls + self.ending


@dataclass(frozen=True)
class CallWriter:
    """A template with its options, and the tokenizer's encoder. `ending` is what ends an answer; None where the
    template ends no last turn."""

    tokenizer: PreTrainedTokenizerBase
    options: Mapping[str, Any]
    encoder: Encoder
    ending: str | None

    def style(self) -> ToolStyle:
        """How the template takes calls and what tools say.

        Raises:
            ModelError: it leaves a call's name or arguments out, or a tool's turn.
        """
        style, why = ToolStyle(), ""
        for text_arguments in (False, True):
            style = ToolStyle(text_arguments=text_arguments)
            try:
                text = "".join(self._layout([_USER, _caller(_CALL)], style).literals)
            except ModelError as error:
                why = why or str(error)
                continue
            if all(part in text for part in (_NAME, _KEY, _VALUE)) and not any(part in text for part in _SPOILT):
                return self._with_role(style)
        raise ModelError(
            f"the chat template cannot render a tool's call{f': {why}' if why else ', and leaves it out'}: {REMEDY}"
        )

    def _with_role(self, style: ToolStyle) -> ToolStyle:
        for role in TOOL_ROLES:
            found = replace(style, role=role)
            try:
                self._layout([_USER, _caller(_CALL), Turn("tool")], found)
            except ModelError:
                continue
            return found
        raise ModelError(f"the chat template cannot render a tool's turn: {REMEDY}")

    def form(self, calls: str, style: ToolStyle, *, says: bool) -> CallForm:
        """What stands behind the generation prompt of an answer.

        Raises:
            ModelError: the template cannot render it, or what it writes cannot be what the model generates.
        """
        self.check_plain(calls, what="a tool's call")
        caller = _caller(calls, says=says)
        asked = self._layout([_USER], style, generation_prompt=True)
        answered = self._layout([_USER, caller], style)
        opening = _behind(asked.literals[1], answered.literals[1])
        text = answered.slots[1] if says else None
        rest = answered.literals[2] if says else opening
        calls_text, ending = self._split_ending(rest, [_USER, caller], style)
        return CallForm(opening if says else "", text, calls_text, ending)

    def _split_ending(self, rest: str, turns: Sequence[Turn], style: ToolStyle) -> tuple[str, str]:
        """Calls and end of turn; where the template ends none, the header of the tool's turn does."""
        if self.ending and rest.endswith(self.ending):
            return rest.removesuffix(self.ending), self.ending
        tokens = [token for token in self._control_tokens() if token in rest]
        last = max(tokens, key=rest.rfind, default="")
        at = rest.rfind(last) if last else -1
        if self.ending is not None:
            if at >= 0 and not rest[at + len(last) :].strip():
                return rest[:at], rest[at:]
            raise ModelError(NO_END)
        following = self._layout([*turns, Turn("tool")], style).literals[2 if turns[-1].says else 1]
        begun = following.find(rest) + len(rest) if rest in following else -1
        head, middle, _ = self.encoder.split(following[begun:]) if begun >= 0 else ("", "", "")
        first = next((token for token in self._control_tokens() if middle.startswith(token)), "")
        if not first:
            raise ModelError(NO_END)
        return rest, head + first

    def check_plain(self, text: str, *, what: str) -> None:
        """Raise a ModelError where the data of a call or of tools spells a control token."""
        found = next((token for token in self._control_tokens() if token in text), None)
        if found is not None:
            raise ModelError(f"{what} spells the control token {found}, which the template would take for its own")

    def _control_tokens(self) -> list[str]:
        tokens = self.tokenizer.convert_ids_to_tokens(sorted(self.encoder.control_ids))
        return [str(token) for token in tokens if len(str(token)) > 1]

    def _layout(self, turns: Sequence[Turn], style: ToolStyle, *, generation_prompt: bool = False) -> Layout:
        return render_layout(
            self.tokenizer, turns, generation_prompt=generation_prompt, options=self.options, style=style
        )


def _caller(calls: str, *, says: bool = False) -> Turn:
    return Turn("assistant", calls=calls, says=says)


def _behind(prompt: str, header: str) -> str:
    """What a turn has behind its generation prompt, an empty thinking block aside that only one of the two has."""
    block = EMPTY_BLOCK.search(prompt)
    without = prompt[: block.start()] if block is not None and block.end() == len(prompt) else prompt
    start = next((start for start in (prompt, without) if header.startswith(start)), None)
    if start is None:
        raise ModelError(
            f"the chat template's generation prompt {prompt!r} differs from what its dialogs have before a tool's call "
            f"{header!r}: {REMEDY}"
        )
    return header[len(start) :]


def with_call_slots(layout: Layout, turns: Sequence[Turn], forms: Mapping[int, CallForm]) -> Layout:
    """The layout with a slot, of no text, where an assistant's turn without a text begins its calls.

    Raises:
        ModelError: the template writes a call otherwise there than at a dialog's end.
    """
    literals, slots = list(layout.literals), list(layout.slots)
    for index, form in forms.items():
        at = next((n for n, slot in enumerate(slots) if slot.message == index), None)
        if at is None:
            at = sum(slot.message < index for slot in slots)
            start = literals[at].find(form.behind)
            if start >= 0:
                literals[at : at + 1] = [literals[at][:start], literals[at][start:]]
                slots.insert(at, Slot(index))
        if not literals[at + 1 if at + 1 < len(literals) else at].startswith(form.behind):
            raise ModelError(
                f"the chat template writes the call of turn {index + 1} of {len(turns)} otherwise than at a dialog's "
                f"end: {REMEDY}"
            )
    return Layout(tuple(literals), tuple(slots))


def missing_tool(tools: str, layout: Layout) -> str | None:
    """The first of the tools whose name the template has written nowhere."""
    text = "".join(layout.literals)
    names = [tool_name(tool) for tool in json.loads(tools)]
    return next((name for name in names if name not in text), None)
