"""Completions as they train: ids as sampled where there are some, the end of turn only where the completion ended.

Nothing that the policy sampled is tokenised again: about one text in a hundred comes out in other ids than those that
were sampled and rewarded.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignloop.chat.format import ChatFormat
from alignloop.chat.tokens import CompletionTokens
from alignloop.errors import DataError, ModelError
from alignloop.records import CompletionText, FinishReason


def completion_tokens(completion: CompletionText, chat: ChatFormat, *, row: str) -> CompletionTokens:
    """The tokens that train: content, and the template's termination unless the completion was cut.

    Ids that hold a control token beside those of its reasoning stand for another text than the row's (special tokens
    are in no text): then the text is tokenised, as if a person had written it, unless the template refuses it.

    Raises:
        DataError: the ids are not those of the text, or the text cannot follow the generation prompt; names `row`.
    """
    ids, reason = completion.token_ids, completion.finish_reason
    if ids is not None:
        if not ids_read_as(ids, completion.text, chat):
            raise DataError(
                f"row {row}: its token ids do not read as its text {completion.text[:60]!r}: the text was changed, or "
                "another tokenizer made the ids. Take the column of ids out of the row (the text is then tokenised), "
                "or train from the base it was sampled with"
            )
        strays = (chat.control_ids - chat.read_control_ids).intersection(without_stop(ids, chat))
        if not strays or chat.refusal(completion.text) is not None:
            return chat.sampled_completion(ids) if reason is None else sampled_tokens(ids, reason, chat)
    if (refusal := chat.refusal(completion.text)) is not None:
        raise DataError(f"row {row}: an answer cannot be trained: {refusal}")
    tokens = chat.completion(completion.text)
    return without_termination(tokens) if reason == "length" else tokens


def sampled_tokens(token_ids: Sequence[int], finish_reason: FinishReason, chat: ChatFormat) -> CompletionTokens:
    """Ids as sampled; terminated as the template does it where the completion ended, whether its stop token is among
    the ids or not, and not at all where it was cut."""
    content = without_stop(token_ids, chat)
    return chat.sampled_completion(content if finish_reason == "length" else (*content, chat.stop_token_ids[0]))


def without_stop(token_ids: Sequence[int], chat: ChatFormat) -> tuple[int, ...]:
    ids = tuple(token_ids)
    return ids[:-1] if ids and ids[-1] in chat.stop_token_ids else ids


def without_termination(tokens: CompletionTokens) -> CompletionTokens:
    """A tokenised text as if it had been cut: its end of turn is gone."""
    end = len(tokens.token_ids)
    while end and tokens.formatting_mask[end - 1]:
        end -= 1
    return CompletionTokens(tokens.token_ids[:end], tokens.formatting_mask[:end])


def ids_read_as(token_ids: Sequence[int], text: str, chat: ChatFormat) -> bool:
    """Whether sampled ids are those of a text, in this tokenizer.

    A text that was tokenised need not come back letter for letter (templates trim, tokenizers normalise): what its ids
    read as will do.
    """
    try:
        read = chat.decode(token_ids)
        return read == text or read == chat.decode(chat.content_ids(text))
    except (IndexError, OverflowError, TypeError, ValueError):  # ids that the tokenizer does not have
        return False
    except ModelError:  # a text that the template does not take, and that its ids do not read as
        return False
