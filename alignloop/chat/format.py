"""Messages -> token ids, together with what each token is for. The one place that tokenises dialogs.

    messages --layout (template around sentinels)--> literals and slots
    literals --special tokens parsed--\\
                                       >-- ids, assistant spans, formatting mask
    contents --special tokens as text--/

Llama 3 (section 4.1.4) leaves formatting tokens (headers, end of turn) out of the DPO loss: the masks are born here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from alignloop.chat.answer import AnswerForm, find_assistant_turn, switch
from alignloop.chat.calls import REMEDY, CallForm, CallWriter, missing_tool, with_call_slots
from alignloop.chat.encoder import CompletionReader, Encoder
from alignloop.chat.layout import MEND, Layout, Slot, Turn, render_layout
from alignloop.chat.reasoning import THINK_END, THINK_START, split_reasoning
from alignloop.chat.template_defaults import SWITCHES, Value, in_yaml
from alignloop.chat.tokens import CompletionTokens, DialogTokens, IdRun, Segment, encode_segments
from alignloop.chat.tool_turns import ToolStyle, split_calls, split_tools
from alignloop.errors import ModelError
from alignloop.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatFormat:
    """A tokenizer's chat template, taken apart once and put together with ids ever after.

    `extra_stop_ids` are further ids that end a completion: the generation config's eos ids.

    Attributes:
        template_kwargs: what the template is rendered with beside the messages, the pinned date aside. Ids depend on
            the tokenizer, these and the messages, and on nothing else.
        takes_reasoning: whether the template has a way of its own for it; otherwise `<think>` is text like any other.
        trains_reasoning: whether answers with reasoning can be trained: the template takes it where the generation
            prompt ends.
        opens_reasoning: whether the generation prompt opens a thinking block, so that answers without reasoning cannot
            be trained.
        asks_no_reasoning: whether answers are asked for without: the template cannot hold it, or a kwarg turns it off.
        plain_opening: what the model generates before an answer without reasoning; empty where there is none.
        control_ids: ids only the template may write: no text of a message ever becomes one of them.
        answer_control_ids: those that an answer holds: thinking tags and channels, which the model writes itself.
        read_control_ids: those that a decoded text shows: the same, and thinking tags that a model writes unasked.
        stop_token_ids: ids that end a completion, the template's own first.

    Raises:
        ModelError: no template, one that cannot be rendered, whose generation prompt differs from the header
            its dialogs have, or whose assistant turns end without a special token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, extra_stop_ids: Iterable[int] = ()) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                "the tokenizer has no chat template: set chat_template in the recipe to llama3, chatml, a template "
                "that TRL bundles or a Jinja file"
            )
        self._tokenizer = tokenizer
        self._turn = turn = find_assistant_turn(tokenizer)
        self._layout = lru_cache(maxsize=4096)(self._render)
        self._call_form = lru_cache(maxsize=4096)(self._find_call_form)
        self.template_kwargs: Mapping[str, Value] = turn.kwargs
        self.takes_reasoning = turn.channel is not None
        self.trains_reasoning = turn.thinking is not None
        self.opens_reasoning = turn.plain is None
        switched_off = any(turn.kwargs.get(key) is False for key in SWITCHES)
        self.asks_no_reasoning = not self.trains_reasoning or switched_off
        self.plain_opening = "" if turn.plain is None else turn.plain.opening
        around = [t for form in (turn.plain, turn.thinking) if form is not None for t in (form.opening, form.middle)]
        self._encoder = Encoder(tokenizer, template_texts=[*self._literals(), *around, turn.ending])
        self.control_ids = self._encoder.control_ids
        self._termination = self._ending()
        self._termination_ids = self._encoder.template(self._termination)
        self.stop_token_ids: tuple[int, ...] = self._stops(extra_stop_ids)
        written = {index for text in around for index in self._encoder.template(text)}
        self.answer_control_ids = self.control_ids & written
        tags = self._encoder.template(THINK_START) + self._encoder.template(THINK_END)
        self.read_control_ids = self.answer_control_ids | self.control_ids.intersection(tags)
        self._reader = CompletionReader.of(turn, self._encoder)

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The tokenizer's tokens, the added ones among them, and their ids."""
        return self._tokenizer.get_vocab()

    def refusal(self, text: str) -> str | None:
        """Why an answer cannot be trained, with what to do; None where it can.

        Training has before an answer what sampling asks with, so reasoning cannot stand behind an empty thinking block,
        nor an answer without reasoning in an open one.
        """
        text, calls = split_calls(text)
        if calls and (reason := self._call_refusal(text, calls)) is not None:
            return reason
        if not self.takes_reasoning or calls:
            return None
        reasoning, answer = self._split(text)
        if reasoning is not None and self._turn.thinking is None:
            return (
                "it holds reasoning, for which the template has no place behind its generation prompt - "
                f"{self._remedy(thinking=True)}"
            )
        if reasoning is not None and not answer.strip():
            return "it holds reasoning and no answer behind it - take the row out"
        if THINK_START in answer or THINK_END in answer:
            return (
                f"its answer holds {THINK_START} or {THINK_END} beyond the reasoning at its start - close the block "
                "once, and take other tags out"
            )
        if reasoning is None and self._turn.plain is None:
            return (
                "it holds no reasoning, and the generation prompt opens a thinking block - "
                f"{self._remedy(thinking=False)}"
            )
        return None

    def _call_refusal(self, text: str, calls: str) -> str | None:
        if self._split(text)[0] is not None:
            return "it holds reasoning before a tool's call - take the reasoning out"
        try:
            self._call_form(calls, bool(text))
        except ModelError as error:
            return str(error)
        return None

    def earlier_refusal(self, text: str) -> str | None:
        """Why an answer that other turns follow cannot be trained where it stands; None where it can.

        Some templates write earlier answers otherwise than the last: without the thinking block that sampling asks
        behind, or without their reasoning.
        """
        text, calls = split_calls(text)
        if calls and (reason := self._call_refusal(text, calls)) is not None:
            return reason
        reasoning, _ = self._split(text)
        if self._turn.alike[reasoning is not None]:
            return None
        return "the template writes earlier answers otherwise than the last: sampling never asks as training would"

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the dialog up to and including the header of the assistant's next turn.

        Raises:
            ModelError: the template refuses the dialog's roles.
        """
        pieces = self._pieces(messages, generation_prompt=True)
        return tuple(index for piece in pieces for index in piece.ids)

    def completion(self, text: str) -> CompletionTokens:
        """A completion as it follows `prompt_ids`: content and termination tokens; the latter are the formatting.

        Raises:
            ModelError: the text cannot follow the generation prompt (`refusal`).
        """
        if (reason := self.refusal(text)) is not None:
            raise ModelError(f"an answer cannot be trained: {reason}")
        says, calls = split_calls(text)
        if not calls:
            return self._terminated(self.content_ids(text))
        form = self._call_form(calls, bool(says))
        content = self.content_ids(text)
        end = self._encoder.template(form.ending)
        return CompletionTokens(content + end, (False,) * len(content) + (True,) * len(end))

    def content_ids(self, text: str) -> tuple[int, ...]:
        """Ids of an answer behind `prompt_ids`, without its end and whether or not it can be trained.

        What `refusal` refuses is put as well as it can be: an open thinking block is closed before an answer without
        reasoning, and reasoning that the template cannot hold is text.
        """
        says, calls = split_calls(text)
        if calls:
            return self._encoded(_calling(self._call_form(calls, bool(says)), says))
        reasoning, answer = self._split(text)
        plain, thinking = self._turn.plain, self._turn.thinking
        if reasoning is not None and thinking is None:
            reasoning, answer = None, text
        form = plain if reasoning is None else thinking
        if form is None:
            assert thinking is not None, "a template has one of the two"
            form = AnswerForm(thinking.middle, thinking.answer)
        return self._encoded(_answer(form, reasoning, answer))

    def _encoded(self, segments: Iterable[Segment]) -> tuple[int, ...]:
        pieces = encode_segments(self._encoder, list(segments), first=False)
        return tuple(index for piece in pieces for index in piece.ids)

    def sampled_completion(self, token_ids: Sequence[int]) -> CompletionTokens:
        """A completion the policy sampled, its content ids as they are.

        A trailing stop token is replaced by the template's whole termination; without one the completion was cut
        at its token limit and stays unterminated, so that nobody learns to stop there.
        """
        if token_ids and token_ids[-1] in self.stop_token_ids:
            return self._terminated(tuple(token_ids[:-1]))
        return CompletionTokens(tuple(token_ids), (False,) * len(token_ids))

    def dialog(self, messages: Sequence[Message]) -> DialogTokens:
        """A whole dialog. `prompt_ids(messages[:-1]) + completion(...)` where the template treats all turns alike.

        Raises:
            ModelError: the template refuses the dialog's roles.
        """
        ids: list[int] = []
        formatting: list[bool] = []
        spans: list[tuple[int, int]] = []
        open_span = False
        for piece in self._pieces(messages, generation_prompt=False):
            start = len(ids)
            ids.extend(piece.ids)
            formatting.extend([piece.formatting] * len(piece.ids))
            if piece.assistant:
                spans[-1:] = [(spans[-1][0], len(ids))] if open_span else [*spans[-1:], (start, len(ids))]
            open_span = piece.assistant and not piece.formatting
        return DialogTokens(tuple(ids), tuple(spans), tuple(formatting))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion's ids, without special tokens, termination and the template's leading space.

        Reasoning stands before the answer, between `<think>` and `</think>`, whatever the template writes around it.
        """
        ids, end = tuple(token_ids), self._termination_ids
        if ids[-len(end) :] == end:
            ids = ids[: -len(end)]
        if self._reader.reads:
            return self._reader.read(self._encoder.marked(ids))
        return self._encoder.decode(ids).removeprefix(self.plain_opening)

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token's share of the text, special tokens included; for people to look at. See `Encoder.token_texts`."""
        return self._encoder.token_texts(token_ids)

    def _split(self, text: str) -> tuple[str | None, str]:
        """Reasoning and answer; an empty block is no reasoning: templates write it for an answer without any."""
        if not self.takes_reasoning:
            return None, text
        reasoning, answer = split_reasoning(text)
        return (reasoning if reasoning and reasoning.strip() else None), answer

    def _remedy(self, *, thinking: bool) -> str:
        kwargs = switch(self._tokenizer, thinking=thinking)
        rows = "take the reasoning out of the rows" if thinking else "give every answer its reasoning"
        if kwargs is not None:
            return f"set chat_template_kwargs: {in_yaml(kwargs)}, or {rows}"
        other = "a template that takes reasoning" if thinking else f"a copy of it that asks without {THINK_START}"
        return f"{rows}, or set chat_template to {other}"

    def _literals(self) -> list[str]:
        roles = (Turn("user"), Turn("assistant", reasons=self.takes_reasoning), Turn("user"))
        layouts = [self._layout(roles[:1], True), self._layout(roles, False)]
        return [literal for layout in layouts for literal in layout.literals]

    def _ending(self) -> str:
        """What ends the turn; up to the first special token where that is the next turn's, which no answer writes."""
        head, middle, _ = self._encoder.split(self._turn.ending)
        first = next((i for i in self._encoder.template(middle) if i in self.control_ids), None)
        if self._turn.ends or first is None:
            return self._turn.ending
        return head + str(self._tokenizer.convert_ids_to_tokens(first))

    def _terminated(self, content: tuple[int, ...]) -> CompletionTokens:
        end = self._termination_ids
        return CompletionTokens(content + end, (False,) * len(content) + (True,) * len(end))

    def _stops(self, extra: Iterable[int]) -> tuple[int, ...]:
        first = next((index for index in self._termination_ids if index in self.control_ids), None)
        if first is None:
            raise ModelError(
                f"the chat template ends an assistant turn with {self._termination!r}, in which the tokenizer has no "
                f"special token: a model trained on it could not stop. Let it write {{{{ eos_token }}}} there. {MEND}"
            )
        eos = self._tokenizer.eos_token_id
        return tuple(dict.fromkeys([first, *([] if eos is None else [eos]), *extra]))

    def _render(self, turns: tuple[Turn, ...], generation_prompt: bool, tools: str = "") -> Layout:
        forms = {n: self._call_form(turn.calls, turn.says) for n, turn in enumerate(turns) if turn.calls}
        style = self._tool_style if forms or any(turn.role == "tool" for turn in turns) else ToolStyle()
        layout = render_layout(
            self._tokenizer,
            turns,
            generation_prompt=generation_prompt,
            options=self._turn.options,
            channel=self._turn.channel or "content",
            style=replace(style, tools=tools),
        )
        if tools:
            self._calls.check_plain(tools, what="the description of a tool")
            if (name := missing_tool(tools, layout)) is not None:
                raise ModelError(f"the chat template leaves out the tool {name}, which the row describes: {REMEDY}")
        return with_call_slots(layout, turns, forms) if forms else layout

    @cached_property
    def _calls(self) -> CallWriter:
        ending = self._termination if self._turn.ends else None
        return CallWriter(self._tokenizer, self._turn.options, self._encoder, ending)

    @cached_property
    def _tool_style(self) -> ToolStyle:
        return self._calls.style()

    def _find_call_form(self, calls: str, says: bool) -> CallForm:
        return self._calls.form(calls, self._tool_style, says=says)

    def _pieces(self, messages: Sequence[Message], *, generation_prompt: bool) -> Iterator[IdRun]:
        tools, messages = split_tools(messages)
        called = [split_calls(m.content) if m.role == "assistant" else (m.content, "") for m in messages]
        parts = [
            self._split(text) if message.role == "assistant" else (None, text)
            for message, (text, _) in zip(messages, called, strict=True)
        ]
        turns = tuple(
            Turn(m.role, reasoning is not None, calls, says=bool(text) or not calls)
            for m, (reasoning, _), (text, calls) in zip(messages, parts, called, strict=True)
        )
        layout = self._layout(turns, generation_prompt, tools)
        texts = [
            slot.trimmed(str(parts[slot.message][0]) if slot.reasoning else parts[slot.message][1])
            for slot in layout.slots
        ]
        return encode_segments(self._encoder, list(self._segments(layout, turns, texts)), first=True)

    def _segments(self, layout: Layout, turns: Sequence[Turn], texts: Sequence[str]) -> Iterator[Segment]:
        literal, thinking = layout.literals[0], False
        for slot, text, following in zip(layout.slots, texts, layout.literals[1:], strict=True):
            if turns[slot.message].role != "assistant":
                yield Segment(literal, template=True, formatting=True)
                yield Segment(text, template=False)
                literal = following
                continue
            if calls := turns[slot.message].calls:
                form = self._call_form(calls, turns[slot.message].says)
                opening = form.opening if literal.endswith(form.opening) else ""
                yield Segment(literal.removesuffix(opening), template=True, formatting=True)
                yield from _calling(replace(form, opening=opening), text)
                yield Segment(form.ending, template=True, formatting=True, assistant=True, apart=True)
                literal = following.removeprefix(form.behind)
                continue
            if not thinking:
                opening = self._opening(slot, literal)
                yield Segment(literal.removesuffix(opening), template=True, formatting=True)
                yield from _opened(opening, text)
            else:
                yield Segment(literal, template=True, assistant=True)
                yield Segment(text, template=False, assistant=True)
            thinking = slot.reasoning
            end = "" if thinking else self._end_of_turn(following)
            if end:
                yield Segment(end, template=True, formatting=True, assistant=True, apart=True)
            literal = following[len(end) :]
        yield Segment(literal, template=True, formatting=True)

    def _opening(self, slot: Slot, literal: str) -> str:
        """The part of what precedes an assistant's text that the model generates."""
        form = self._turn.thinking if slot.reasoning else self._turn.plain
        return form.opening if form is not None and literal.endswith(form.opening) else ""

    def _end_of_turn(self, literal: str) -> str:
        """The part behind an assistant's content that ends the turn; empty where the template does not end it."""
        if literal.startswith(self._termination):
            return self._termination
        stop = self._tokenizer.convert_ids_to_tokens(self.stop_token_ids[0])
        head = self._termination.partition(stop)[0] + stop
        return head if literal.startswith(head) else ""


def _answer(form: AnswerForm, reasoning: str | None, answer: str) -> Iterator[Segment]:
    """What follows the generation prompt, without its end."""
    if reasoning is None or form.reasoning is None:
        yield from _opened(form.opening, form.answer.trimmed(answer))
        return
    yield from _opened(form.opening, form.reasoning.trimmed(reasoning))
    yield Segment(form.middle, template=True, assistant=True)
    yield Segment(form.answer.trimmed(answer), template=False, assistant=True)


def _calling(form: CallForm, text: str) -> Iterator[Segment]:
    """What an answer with calls has behind the generation prompt, without its end."""
    if form.text is not None:
        yield from _opened(form.opening, form.text.trimmed(text))
    yield Segment(form.calls, template=True, assistant=True, apart=form.text is None)


def _opened(opening: str, text: str) -> Iterator[Segment]:
    """A text behind what opens it; bare whitespace is the text's own in ids (" hello" is one token)."""
    if opening.strip():
        yield Segment(opening, template=True, assistant=True, apart=True)
        yield Segment(text, template=False, assistant=True)
    else:
        yield Segment(opening + text, template=False, assistant=True, apart=True)
