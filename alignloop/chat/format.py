"""Messages -> token ids, together with what each token is for. The one place that tokenises dialogs.

    messages --layout (template around sentinels)--> literals and slots
    literals --special tokens parsed--\\
                                       >-- ids, assistant spans, formatting mask
    contents --special tokens as text--/

Llama 3 (section 4.1.4) leaves formatting tokens (headers, end of turn) out of the DPO loss: the masks are born here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from alignloop.chat.encoder import Encoder
from alignloop.chat.layout import MEND, Layout, Slot, render_layout
from alignloop.chat.tokens import CompletionTokens, DialogTokens
from alignloop.errors import ModelError
from alignloop.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Llama 3.1 and 3.2 write today's date into the system turn; a fixed one keeps ids the same from day to day.
_OPTIONS: dict[str, Any] = {"date_string": "26 Jul 2024"}
# Tried in order: templates that open a thinking block before answers agree with their generation prompt without it.
_VARIANTS: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False})


@dataclass(frozen=True)
class _Turn:
    """How the template frames an assistant turn.

    `lead`: whitespace it writes between the generation prompt and the content (Mistral's space); part of what the
    model generates, not of the text. `suffix`: what ends the turn.
    """

    lead: str
    slot: Slot
    suffix: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class _Piece:
    """A run of ids and what it is; `message` is set for contents and for the termination of an assistant turn."""

    ids: tuple[int, ...]
    formatting: bool
    assistant: bool


class ChatFormat:
    """A tokenizer's chat template, taken apart once and put together with ids ever after."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, extra_stop_ids: Iterable[int] = ()) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                "the tokenizer has no chat template: set chat_template in the recipe to llama3, chatml or a Jinja file"
            )
        self._tokenizer = tokenizer
        self._turn = _assistant_turn(tokenizer)
        self._layout = lru_cache(maxsize=4096)(self._render)
        header = self._layout(("user",), True).literals
        self._encoder = Encoder(tokenizer, template_texts=[*header, self._turn.suffix])
        self._piece_ids = lru_cache(maxsize=4096)(self._encoder.template)
        self._termination_ids = self._encoder.template(self._turn.suffix)
        self.stop_token_ids: tuple[int, ...] = self._stops(extra_stop_ids)

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, *, extra_stop_ids: Iterable[int] = ()) -> Self:
        """Take the tokenizer's chat template apart.

        Args:
            tokenizer: with a `chat_template`.
            extra_stop_ids: further ids that end a completion: the generation config's eos ids.

        Raises:
            ModelError: no template, one that cannot be rendered, whose generation prompt differs from the header
                its dialogs have, or whose assistant turns end without a special token.
        """
        return cls(tokenizer, extra_stop_ids=extra_stop_ids)

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids only the template may write: no text of a message ever becomes one of them."""
        return self._encoder.control_ids

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the dialog up to and including the header of the assistant's next turn.

        Raises:
            ModelError: the template refuses the dialog's roles.
        """
        pieces = self._pieces(messages, generation_prompt=True)
        return tuple(index for piece in pieces for index in piece.ids)

    def completion(self, text: str) -> CompletionTokens:
        """A completion as it follows `prompt_ids`: content and termination tokens; the latter are the formatting."""
        content = self._encoder.content(self._turn.lead + self._turn.slot.trimmed(text))
        return self._terminated(content)

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
                joins = open_span and piece.formatting
                spans[-1:] = [(spans[-1][0], len(ids))] if joins else [*spans[-1:], (start, len(ids))]
            open_span = piece.assistant and not piece.formatting
        return DialogTokens(tuple(ids), tuple(spans), tuple(formatting))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion's ids, without special tokens, termination and the template's leading space."""
        ids, end = tuple(token_ids), self._termination_ids
        if ids[-len(end) :] == end:
            ids = ids[: -len(end)]
        return self._encoder.decode(ids).removeprefix(self._turn.lead)

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token's share of the text, special tokens included; for people to look at.

        A character that several tokens make up is the last one's; the tokens before it have an empty text.
        """
        return self._encoder.token_texts(token_ids)

    def _terminated(self, content: tuple[int, ...]) -> CompletionTokens:
        end = self._termination_ids
        return CompletionTokens(content + end, (False,) * len(content) + (True,) * len(end))

    def _stops(self, extra: Iterable[int]) -> tuple[int, ...]:
        first = next((index for index in self._termination_ids if index in self.control_ids), None)
        if first is None:
            raise ModelError(
                f"the chat template ends an assistant turn with {self._turn.suffix!r}, in which the tokenizer has no "
                f"special token: a model trained on it could not stop. Let it write {{{{ eos_token }}}} there. {MEND}"
            )
        eos = self._tokenizer.eos_token_id
        return tuple(dict.fromkeys([first, *([] if eos is None else [eos]), *extra]))

    def _render(self, roles: tuple[str, ...], generation_prompt: bool) -> Layout:
        return render_layout(self._tokenizer, roles, generation_prompt=generation_prompt, options=self._turn.options)

    def _pieces(self, messages: Sequence[Message], *, generation_prompt: bool) -> Iterator[_Piece]:
        layout = self._layout(tuple(message.role for message in messages), generation_prompt)
        first = True
        literal, end = layout.literals[0], ""
        for slot, following in zip(layout.slots, layout.literals[1:], strict=True):
            message = messages[slot.message]
            is_assistant = message.role == "assistant"
            # A template's plain space before a content is the content's own in ids (" hello" is one token).
            lead = self._turn.lead if is_assistant else " "
            lead = lead if lead and literal.endswith(lead) else ""
            header = literal[: len(literal) - len(lead)]
            yield _Piece(self._header_ids(header, end=end, first=first), formatting=True, assistant=False)
            first = first and not header
            content = lead + slot.trimmed(message.content)
            yield _Piece(self._encoder.content(content, first=first), formatting=False, assistant=is_assistant)
            first = first and not content
            end = self._end_of_turn(following) if is_assistant else ""
            if end:
                yield _Piece(self._piece_ids(end, first=False), formatting=True, assistant=True)
            literal = following[len(end) :]
        yield _Piece(self._header_ids(literal, end=end, first=first), formatting=True, assistant=False)

    def _header_ids(self, header: str, *, end: str, first: bool) -> tuple[int, ...]:
        """Ids of what the template writes before a content, as they are behind the end of the turn before it.

        SentencePiece-like tokenizers put a space behind `</s>`, so that `[INST]` begins with another token there.
        """
        if not end:
            return self._piece_ids(header, first=first)
        joined, head = self._piece_ids(end + header, first=False), self._piece_ids(end, first=False)
        return joined[len(head) :] if joined[: len(head)] == head else self._piece_ids(header, first=first)

    def _end_of_turn(self, literal: str) -> str:
        """The part of what follows an assistant's content that ends the turn; empty where the template ends it not."""
        if literal.startswith(self._turn.suffix):
            return self._turn.suffix
        stop = self._tokenizer.convert_ids_to_tokens(self.stop_token_ids[0])
        head = self._turn.suffix.partition(stop)[0] + stop
        return head if literal.startswith(head) else ""


def _assistant_turn(tokenizer: PreTrainedTokenizerBase) -> _Turn:
    """The frame of an assistant turn, found by rendering one with a sentinel content.

    Raises:
        ModelError: what precedes the content is not the generation prompt (whitespace aside), in every variant.
    """
    differences = []
    for variant in _VARIANTS:
        options = {**_OPTIONS, **variant}
        asked = render_layout(tokenizer, ["user"], generation_prompt=True, options=options)
        answered = render_layout(tokenizer, ["user", "assistant"], generation_prompt=False, options=options)
        header, prompt = answered.literals[1], asked.literals[1]
        same_start = answered.literals[0] == asked.literals[0]
        if same_start and header.startswith(prompt) and not header[len(prompt) :].strip():
            return _Turn(header[len(prompt) :], answered.slots[1], answered.literals[2], options)
        differences.append((prompt, header) if same_start else (asked.literals[0], answered.literals[0]))
    prompt, header = differences[0]
    raise ModelError(
        f"the chat template's generation prompt {prompt!r} differs from what its dialogs have before an answer "
        f"{header!r}: a model trained on one would be asked with the other. Make the two the same. {MEND}"
    )
