"""Text to ids and back in two voices: the template's (special tokens are parsed) and a person's (they are text).

A sampled completion's text is read without what the template has a model generate around it. Reasoning comes out in the
form that rows carry (`reasoning`), whatever tags or channels the template has for it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from alignloop.chat.answer import AssistantTurn
from alignloop.chat.reasoning import THINK_END, THINK_START, join_reasoning, split_reasoning
from alignloop.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHORS = ("\n", "|", "0", "\n|")
_CUT = "\ufffd"
"""What a decoder makes of the first bytes of a character."""
_MARKED = re.compile("\ue000.*?\ue001", re.DOTALL)
_MAX_CHARACTER_TOKENS = 4
"""UTF-8 has no longer characters, in bytes."""


def mark(token: str) -> str:
    """A control token in a decoded text, apart from the same letters written by a person or a model."""
    return f"\ue000{token}\ue001"


def unmarked(text: str) -> str:
    """A decoded text without its control tokens."""
    return _MARKED.sub("", text)


class Encoder:
    """Encodes pieces of one text so that their ids, joined, decode to the joined text.

    SentencePiece-like tokenizers put a space before whatever they are given. Pieces after the first are therefore
    encoded behind an anchor whose ids are cut off again.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, template_texts: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        anchor, text = self._raw("\n", literal=True), self._raw("x", literal=True)
        self._anchored = self._raw("\nx", literal=True) != anchor + text
        self.joins = not self._anchored
        """Whether a text can be encoded together with what the template writes beside it, wherever it stands."""
        # Some tokenizers add runs of spaces as tokens: those are text wherever they stand.
        added = {index: token for index, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        special = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        written = {index for text in template_texts for index in self._raw(text, literal=False)}
        # Markers a tokenizer added without calling them special count where the template writes them.
        self.control_ids: frozenset[int] = frozenset(special | (written & added.keys()))
        # A template writes the same few texts in every dialog.
        self._cached = lru_cache(maxsize=4096)(self._encode)
        self._parts = lru_cache(maxsize=4096)(self._split)

    def template(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        """Ids of text the template wrote; special tokens are parsed, no BOS is added."""
        return self._cached(text, literal=False, first=first)

    def content(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        """Ids of text a person or model wrote; no id in `control_ids` comes out.

        Raises:
            ModelError: the tokenizer cannot be kept from reading a control token.
        """
        ids = self._encode(text, literal=True, first=first)
        if self.control_ids.isdisjoint(ids):
            return ids
        pieces = self._broken_markers(text)
        ids = tuple(
            index
            for n, piece in enumerate(pieces)
            for index in self._encode(piece, literal=True, first=first and n == 0)
        )
        if not self.control_ids.isdisjoint(ids):
            found = self._tokenizer.convert_ids_to_tokens(sorted(self.control_ids.intersection(ids)))
            raise ModelError(
                f"the tokenizer reads the control token {found} in the plain text {text[:60]!r}: take it out of the "
                "text, or use the fast form of this tokenizer"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        plain = [index for index in ids if index not in self.control_ids]
        if not self._anchored:
            return self._text(plain)
        anchor = self._raw("|", literal=False)
        return self._text([*anchor, *plain])[len(self._text(anchor)) :]

    def split(self, text: str) -> tuple[str, str, str]:
        """The template's text before its first control token, from the first to the last, and behind.

        A text without control tokens is all before. Parts whose ids joined are not those of the text (a token that
        takes the whitespace beside it) stay in the middle.
        """
        return self._parts(text)

    def _split(self, text: str) -> tuple[str, str, str]:
        tokens = self._tokenizer.convert_ids_to_tokens(sorted(self.control_ids))
        found = [(text.find(token), text.rfind(token) + len(token)) for token in tokens if token and token in text]
        if not found:
            return text, "", ""
        start, end = min(first for first, _ in found), max(last for _, last in found)
        head, middle, tail = text[:start], text[start:end], text[end:]
        if self.template(head) + self.template(middle) + self.template(tail) != self.template(text):
            return "", text, ""
        return head, middle, tail

    def marked(self, ids: Sequence[int]) -> str:
        """Text of content ids with every control token in it as `mark` writes it."""
        texts: list[str] = []
        for control, run in itertools.groupby(ids, key=self.control_ids.__contains__):
            if control:
                texts += [mark(str(token)) for token in self._tokenizer.convert_ids_to_tokens(list(run))]
            else:
                texts.append(self.decode(list(run)))
        return "".join(texts)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Each token's share of the text, control tokens included.

        A character that several tokens make up is the last one's; the tokens before it have an empty text.
        """
        texts: list[str] = []
        pending: list[int] = []
        for index in ids:
            if pending and index in self.control_ids:  # a completion cut within a character
                texts[-1], pending = _CUT, []
            pending.append(index)
            text = str(self._tokenizer.decode(pending, clean_up_tokenization_spaces=False))
            whole = not text.endswith(_CUT) or len(pending) == _MAX_CHARACTER_TOKENS
            texts.append(self._with_space(pending[0], text) if whole else "")
            pending = [] if whole else pending
        return texts

    def _with_space(self, index: int, text: str) -> str:
        """SentencePiece-like decoders drop the space of whatever token comes first."""
        piece = str(self._tokenizer.convert_ids_to_tokens(index))
        return f" {text}" if piece.startswith("\u2581") and not text.startswith(" ") else text

    def _text(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _raw(self, text: str, *, literal: bool) -> tuple[int, ...]:
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=literal)
        return tuple(encoded["input_ids"])

    def _encode(self, text: str, *, literal: bool, first: bool) -> tuple[int, ...]:
        if not text:
            return ()
        if first or not self._anchored:
            return self._raw(text, literal=literal)
        for anchor in _ANCHORS:
            head, whole = self._raw(anchor, literal=True), self._raw(anchor + text, literal=literal)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return self._raw(text, literal=literal)

    def _broken_markers(self, text: str) -> list[str]:
        """`text` cut inside every control token it spells, so that no piece spells one."""
        tokens = self._tokenizer.convert_ids_to_tokens(sorted(self.control_ids))
        cuts: set[int] = set()
        for token in tokens:
            start = text.find(token) if len(token) > 1 else -1
            while start >= 0:
                cuts.add(start + len(token) // 2)
                start = text.find(token, start + 1)
        edges = [0, *sorted(cuts), len(text)]
        return [text[a:b] for a, b in itertools.pairwise(edges)]


@dataclass(frozen=True)
class CompletionReader:
    """The literals of a template's answers as they come out of decoding, whitespace at their edges aside.

    Attributes:
        opening: before an answer without reasoning.
        thinking: before reasoning, and between it and the answer; None where the template has no reasoning, or asks
            without.
        lead: the opening as it is where it is whitespace alone.
        tags: whether the thinking tags are control tokens: a model may write them unasked.
    """

    opening: str
    thinking: tuple[str, str] | None
    lead: str
    tags: bool

    @classmethod
    def of(cls, turn: AssistantTurn, encoder: Encoder) -> CompletionReader:
        def core(literal: str) -> str:
            return encoder.marked(encoder.template(literal)).strip()

        form = turn.thinking
        opening = "" if turn.plain is None else core(turn.plain.opening)
        tags = mark(THINK_START) in encoder.marked(encoder.template(THINK_START))
        lead = "" if turn.plain is None or opening else turn.plain.opening
        return cls(opening, None if form is None else (core(form.opening), core(form.middle)), lead, tags)

    @property
    def reads(self) -> bool:
        return bool(self.opening) or self.thinking is not None or self.tags

    def read(self, marked: str) -> str:
        """The text of a completion without its termination, `marked` by `Encoder.marked`."""
        start = marked.lstrip()
        if self.thinking is not None and start.startswith(self.thinking[0]):
            opening, middle = self.thinking
            reasoning, closed, answer = start.removeprefix(opening).partition(middle)
            if closed:
                return _joined(unmarked(reasoning), unmarked(answer))
            if opening or not self.opening:  # cut off in the middle of a thought
                return f"{THINK_START}\n{unmarked(reasoning).lstrip()}"
        if self.opening and start.startswith(self.opening):
            return unmarked(start.removeprefix(self.opening)).lstrip("\n")
        return _unasked(marked.removeprefix(self.lead)) if self.thinking is None else unmarked(marked)


def _unasked(marked: str) -> str:
    """A completion where reasoning has no place: the thinking tags that a model writes unasked stay in its text."""
    for tag in (THINK_START, THINK_END):
        marked = marked.replace(mark(tag), tag)
    text = unmarked(marked)
    reasoning, answer = split_reasoning(text)
    return text if reasoning is None else _joined(reasoning, answer)


def _joined(reasoning: str, answer: str) -> str:
    thought = reasoning.strip("\n")
    return join_reasoning(thought, answer.lstrip("\n")) if thought.strip() else answer.lstrip("\n")
