"""Token ids with what each token is for. Torch-free: the types that cross between chat, packing and training.

    segments (texts of a template and of people, one behind the other) --> id runs, each with what it is

A tokenizer may merge what a text ends with and what the template writes behind it (a full stop and a line break).
Where nothing forbids it, the two are therefore encoded together, as the rendered text is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from alignloop.chat.encoder import Encoder


@dataclass(frozen=True)
class CompletionTokens:
    """One completion as it follows its prompt: content, then the termination tokens.

    `formatting_mask`: T flags, True on termination tokens (`<|eot_id|>` and what the template puts after it within the
    turn). The assistant header belongs to the prompt.
    """

    token_ids: tuple[int, ...]
    formatting_mask: tuple[bool, ...]

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.formatting_mask), "one flag per token"


@dataclass(frozen=True)
class DialogTokens:
    """A whole dialog of T ids with the spans that carry loss.

    Attributes:
        assistant_spans: half-open (start, end) per assistant turn: content and termination tokens.
        formatting_mask: T flags, True on headers and termination tokens.
    """

    token_ids: tuple[int, ...]
    assistant_spans: tuple[tuple[int, int], ...]
    formatting_mask: tuple[bool, ...]


@dataclass(frozen=True)
class Segment:
    """A run of text.

    Attributes:
        template: whether the template wrote it: then special tokens in it are parsed.
        formatting, assistant: what its tokens are: see `DialogTokens`.
        apart: never encoded together with what precedes it, as between a generation prompt and what follows it.
    """

    text: str
    template: bool
    formatting: bool = False
    assistant: bool = False
    apart: bool = False


@dataclass(frozen=True)
class IdRun:
    ids: tuple[int, ...]
    formatting: bool
    assistant: bool


def encode_segments(encoder: Encoder, segments: Sequence[Segment], *, first: bool) -> Iterator[IdRun]:
    """Ids of the segments in order; empty ones give an empty piece or none. `first`: they begin the whole text."""
    runs = _joined(encoder, segments) if encoder.joins else _spaced(segments)
    before = ""
    for run in runs:
        pieces = list(_encoded(encoder, run, before=before, first=first))
        yield from pieces
        first = first and not any(piece.ids for piece in pieces)
        before = run[0].text if len(run) == 1 and run[0].template and run[0].assistant else ""


def _joined(encoder: Encoder, segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Runs that are encoded together: everything between two control tokens, or one stretch of the template's."""
    run: list[Segment] = []
    for n, segment in enumerate(segments):
        if segment.apart and run:
            yield run
            run = []
        if not segment.template:
            run.append(segment)
            continue
        head, middle, tail = encoder.split(segment.text)
        if not middle:
            run.append(segment)
            continue
        if head and any(not part.template for part in run):
            run.append(replace(segment, text=head))
        else:
            middle = head + middle
        if run:
            yield run
            run = []
        following = segments[n + 1] if n + 1 < len(segments) else None
        if tail and following is not None and not following.template and not following.apart:
            yield [replace(segment, text=middle)]
            run = [replace(segment, text=tail)]
        else:
            yield [replace(segment, text=middle + tail)]
    if run:
        yield run


def _spaced(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Every segment alone; a template's plain space before a content is the content's own (" hello" is one token)."""
    space = ""
    for n, segment in enumerate(segments):
        text, space = space + segment.text, ""
        following = segments[n + 1] if n + 1 < len(segments) else None
        if segment.template and text.endswith(" ") and following and not following.template and not following.apart:
            text, space = text[:-1], " "
        yield [replace(segment, text=text)]


def _encoded(encoder: Encoder, run: Sequence[Segment], *, before: str, first: bool) -> Iterator[IdRun]:
    """The pieces of a run; of contents encoded with the template's text beside them, the ends that it left as they are.

    `before` is the end of the turn before a header, or empty: SentencePiece-like tokenizers put a space behind `</s>`,
    so that `[INST]` begins with another token there.
    """
    text, last = "".join(part.text for part in run), run[-1]
    contents = [part for part in run if not part.template]
    if not contents:
        yield IdRun(_template_ids(encoder, text, before=before, first=first), last.formatting, last.assistant)
        return
    ids = encoder.content(text, first=first)
    start, end = 0, len(ids)
    if run[0].template:
        start = _common(encoder.template(run[0].text, first=first), ids)
        yield IdRun(ids[:start], run[0].formatting, run[0].assistant)
    if last.template:
        end -= _common(encoder.template(last.text)[::-1], ids[start:][::-1])
    yield IdRun(ids[start:end], contents[0].formatting, contents[0].assistant)
    if last.template:
        yield IdRun(ids[end:], last.formatting, last.assistant)


def _template_ids(encoder: Encoder, text: str, *, before: str, first: bool) -> tuple[int, ...]:
    if before:
        joined, head = encoder.template(before + text), encoder.template(before)
        if joined[: len(head)] == head:
            return joined[len(head) :]
    return encoder.template(text, first=first)


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
