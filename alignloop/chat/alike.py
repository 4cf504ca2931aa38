"""Whether two checkpoints write a dialog in the same tokens, so that what one has sampled can train the other."""

from __future__ import annotations

from collections.abc import Sequence

from alignloop.chat.format import ChatFormat
from alignloop.errors import ModelError
from alignloop.records import Message

_USER, _ANSWER = Message(role="user", content="Name a river."), Message(role="assistant", content="The Rhine.")
_DIALOGS: Sequence[Sequence[Message]] = (
    (_USER,),
    (_USER, _ANSWER, _USER),
    (Message(role="system", content="Be brief."), _USER),
)
_REFUSED = "(refused)"


def difference(chat: ChatFormat, other: ChatFormat) -> str:
    """What of `other` is not as `chat` has it, in words; empty where both write a dialog in the same tokens.

    Templates are compared by what they ask with: two texts of one meaning are one template.
    """
    own, theirs = chat.vocabulary, other.vocabulary
    if own != theirs:
        differing = sorted(token for token in {*own, *theirs} if own.get(token) != theirs.get(token))
        return (
            f"its tokenizer is another: {len(differing):,} of {len({*own, *theirs}):,} tokens have other ids, or stand "
            f"in one of the two alone (such as {differing[0]!r})"
        )
    for dialog in _DIALOGS:
        asks, asks_too = _asked(chat, dialog), _asked(other, dialog)
        if asks != asks_too:
            return f"its chat template is another: it asks with {asks_too!r}, and not with {asks!r}"
    if chat.stop_token_ids[0] != other.stop_token_ids[0]:
        ends = [each.token_texts(each.stop_token_ids[:1])[0] for each in (other, chat)]
        return f"its chat template is another: its answers end with {ends[0]!r}, and not with {ends[1]!r}"
    return ""


def _asked(chat: ChatFormat, dialog: Sequence[Message]) -> str:
    try:
        return "".join(chat.token_texts(chat.prompt_ids(dialog)))
    except ModelError:
        return _REFUSED
