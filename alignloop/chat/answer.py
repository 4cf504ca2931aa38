"""How an answer follows the generation prompt: what a template writes around it, without reasoning and with.

    generation prompt | opening  reasoning  middle  answer  ending

Everything right of the bar is what the model generates: training and sampling see the same ids left of it. A template
whose dialogs have something else there than its generation prompt is used where the difference is a thinking block, and
refused otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from alignloop.chat.layout import MEND, Channel, Layout, Slot, Turn, render_layout
from alignloop.chat.reasoning import THINK_END, THINK_START, join_reasoning
from alignloop.chat.template_defaults import SWITCHES, defaults_of
from alignloop.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PINNED_DAY = datetime(2024, 7, 26, tzinfo=UTC)
# Some templates write today's date (Llama 3.1 and 3.2, gpt-oss); a fixed one keeps ids the same from day to day.
PINNED: dict[str, Any] = {"date_string": _PINNED_DAY.strftime("%d %b %Y"), "strftime_now": _PINNED_DAY.strftime}
# Tried in order: templates that open a thinking block before answers agree with their generation prompt without it.
_THINKING = SWITCHES[0]
_KEYS: tuple[Channel, ...] = ("reasoning_content", "thinking", "reasoning")
EMPTY_BLOCK = re.compile(rf"(?:{THINK_START}\s*)?{THINK_END}\s*|<\|channel>thought\s*<channel\|>\s*")
_USER, _ASSISTANT = Turn("user"), Turn("assistant")


@dataclass(frozen=True)
class AnswerForm:
    """What stands around an answer behind the generation prompt.

    Attributes:
        opening: what the template writes before the first text: whitespace (Mistral's space), a channel (gpt-oss), a
            thinking block. Part of what the model generates.
        reasoning: None in the form without.
        middle: what stands between reasoning and answer.
    """

    opening: str
    answer: Slot
    reasoning: Slot | None = None
    middle: str = ""


@dataclass(frozen=True)
class AssistantTurn:
    """How a template frames the answer that is trained.

    Attributes:
        plain: the form of answers without reasoning; None where the generation prompt opens a thinking block.
        thinking: the form of answers with reasoning; None where the template has none, or closes the block.
        channel: where the template takes reasoning; None where it takes none, so that tags are text.
        ending: what ends the turn, or, where nothing does, what the next turn begins with (GLM 4).
        ends: whether the template ends the last turn of a dialog.
        options: what the template gets in every rendering: the pinned date and, in `kwargs`, what was chosen.
        alike: whether earlier answers of a dialog without reasoning, and with, stand as the last one does.
        kwargs: of the options, those that serving has to give (or the published template holds) to ask as training did.
    """

    plain: AnswerForm | None
    thinking: AnswerForm | None
    channel: Channel | None
    ending: str
    ends: bool
    alike: tuple[bool, bool]
    options: Mapping[str, Any]
    kwargs: Mapping[str, Any]


def find_assistant_turn(
    tokenizer: PreTrainedTokenizerBase, *, kwargs: Mapping[str, Any] | None = None
) -> AssistantTurn:
    """The frame of an assistant turn, found by rendering one with sentinel texts.

    Without a choice of `enable_thinking` in the template's defaults, the options are those under which an answer
    without reasoning stands right behind the generation prompt; `kwargs` replace them.

    Raises:
        ModelError: what precedes the content in dialogs is not the generation prompt, thinking blocks aside.
    """
    defaults = defaults_of(template_text(tokenizer))
    pinned = {key: value for key, value in PINNED.items() if key not in defaults}
    variants: list[dict[str, Any]] = [{}] if _THINKING in defaults else [{}, {_THINKING: False}]
    if kwargs is not None:
        variants = [dict(kwargs)]
    asked = [_Asked.of(tokenizer, {**pinned, **variant}) for variant in variants]
    fitting = [
        (found, variant)
        for exact in (True, False)
        for found, variant in zip(asked, variants, strict=True)
        if found.agrees(exact=exact)
    ]
    if not fitting:
        prompt, header = asked[0].difference
        raise ModelError(
            f"the chat template's generation prompt {prompt!r} differs from what its dialogs have before an answer "
            f"{header!r}: a model trained on one would be asked with the other. Make the two the same. {MEND}"
        )
    found, variant = fitting[0]
    channel = found.channel(tokenizer)
    plain, thinking = found.plain(), found.thinking(tokenizer, channel)
    if plain is None and thinking is None:
        raise ModelError(
            f"the chat template's generation prompt {found.prompt!r} opens a thinking block, which no answer of its "
            f"dialogs continues. {MEND}"
        )
    ending = found.answered.literals[2]
    return AssistantTurn(
        plain,
        thinking,
        channel,
        ending=ending if ending.strip() else _next_turn(tokenizer, found.options),
        ends=bool(ending.strip()),
        alike=(found.alike(tokenizer, plain, None), found.alike(tokenizer, thinking, channel)),
        options=found.options,
        kwargs={**defaults, **variant},
    )


def switch(tokenizer: PreTrainedTokenizerBase, *, thinking: bool) -> dict[str, bool] | None:
    """The kwargs under which the template trains answers with reasoning, or without; None where there are none."""
    for key in SWITCHES:
        try:
            turn = find_assistant_turn(tokenizer, kwargs={key: thinking})
        except ModelError:
            continue
        if (turn.thinking if thinking else turn.plain) is not None:
            return {key: thinking}
    return None


def template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The Jinja text that renders chats, of the several that some tokenizers have."""
    template = tokenizer.chat_template
    return str(template.get("default", "")) if isinstance(template, dict) else str(template or "")


@dataclass(frozen=True)
class _Asked:
    """A question with the generation prompt, and with an answer, under some options."""

    options: Mapping[str, Any]
    asked: Layout
    answered: Layout

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> _Asked:
        asked = render_layout(tokenizer, [_USER], generation_prompt=True, options=options)
        answered = render_layout(tokenizer, [_USER, _ASSISTANT], generation_prompt=False, options=options)
        return cls(options, asked, answered)

    @property
    def prompt(self) -> str:
        return self.asked.literals[1]

    @property
    def header(self) -> str:
        return self.answered.literals[1]

    @property
    def same_start(self) -> bool:
        return self.asked.literals[0] == self.answered.literals[0]

    @property
    def difference(self) -> tuple[str, str]:
        """Generation prompt and header, or what precedes the question where that differs already."""
        if self.same_start:
            return self.prompt, self.header
        return self.asked.literals[0], self.answered.literals[0]

    @property
    def opens(self) -> bool:
        return self.prompt.rpartition(THINK_START)[2].strip() == "" and THINK_START in self.prompt

    def agrees(self, *, exact: bool) -> bool:
        """Whether an answer can follow the generation prompt; `exact`: with nothing but whitespace between them."""
        if not self.same_start:
            return False
        if self.header.startswith(self.prompt):
            return not exact or not self.header[len(self.prompt) :].strip()
        if exact:
            return False
        if self.opens:  # whether reasoning can follow is `thinking`'s to find out
            return self.header.startswith(self.prompt.rpartition(THINK_START)[0])
        return self.prompt.startswith(self.header) and bool(EMPTY_BLOCK.fullmatch(self.prompt[len(self.header) :]))

    def plain(self) -> AnswerForm | None:
        if self.opens:
            return None
        return AnswerForm(self.header[len(self.prompt) :], self.answered.slots[1])

    def channel(self, tokenizer: PreTrainedTokenizerBase) -> Channel | None:
        for key in _KEYS:
            try:
                layout = self._with_reasoning(tokenizer, key)
            except ModelError:
                continue
            if layout.holds_reasoning(1):
                return key
        # Tags that stand in the content as they were given are text like any other.
        layout = self._with_reasoning(tokenizer, "content")
        slots = [f"({slot.message}{'r' if slot.reasoning else ''})" for slot in layout.slots]
        text = "".join(f"{literal}{slot}" for literal, slot in zip_longest(layout.literals, slots, fillvalue=""))
        start, header, end = self.answered.literals
        verbatim = text == f"{start}(0){header}{join_reasoning('(1r)', '(1)')}{end}"
        return None if verbatim and not self.opens else "content"

    def thinking(self, tokenizer: PreTrainedTokenizerBase, channel: Channel | None) -> AnswerForm | None:
        if channel is None:
            return None
        layout = self._with_reasoning(tokenizer, channel)
        if not layout.holds_reasoning(1):
            # The template takes reasoning off every turn of a dialog, and yet asks for it.
            written = AnswerForm("", self.answered.slots[1], Slot(1, reasoning=True), f"\n{THINK_END}\n\n")
            return written if self.opens else None
        start, header, middle, _ = layout.literals
        if start != self.asked.literals[0]:
            return None
        if header.startswith(self.prompt):
            opening = header[len(self.prompt) :]
        elif self.prompt.startswith(header) and not self.prompt[len(header) :].strip():
            opening = ""
        else:
            return None
        return AnswerForm(opening, layout.slots[2], layout.slots[1], middle)

    def alike(self, tokenizer: PreTrainedTokenizerBase, form: AnswerForm | None, channel: Channel | None) -> bool:
        """Whether an earlier answer of this form follows what the generation prompt is."""
        if form is None:
            return False
        turns = [_USER, Turn("assistant", channel is not None)] * 2
        layout = render_layout(
            tokenizer, turns, generation_prompt=False, options=self.options, channel=channel or "content"
        )
        kept = layout.holds_reasoning(1) == (form.reasoning is not None)
        return kept and layout.literals[1] == self.prompt + form.opening

    def _with_reasoning(self, tokenizer: PreTrainedTokenizerBase, channel: Channel) -> Layout:
        turns = [_USER, Turn("assistant", reasons=True)]
        return render_layout(tokenizer, turns, generation_prompt=False, options=self.options, channel=channel)


def _next_turn(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> str:
    turns = [_USER, _ASSISTANT, _USER]
    return render_layout(tokenizer, turns, generation_prompt=False, options=options).literals[2]
