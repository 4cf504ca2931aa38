"""Where a chat template puts each message: the template rendered around sentinels and cut at them.

    roles --sentinel contents--> template.render --cut at the sentinels--> literal, slot, literal, slot, ..., literal

The contents of real messages never pass through the template, so nothing in them can change its course.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignloop.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# An em space: `trim`, `strip` and their kin remove it, and no template writes one, so a pad that is gone was trimmed.
_PAD = "\u2003"
MEND = (
    "Mend the template (a base's own is its chat_template.jinja, or in tokenizer_config.json), or remove it there and "
    "set chat_template in the recipe to llama3 or chatml"
)
"""What to do about a template that cannot be used; the recipe's is given only to a base that has none."""
_SENTINEL = re.compile(f"({_PAD}?)zqx([0-9]+)xqz({_PAD}?)")


@dataclass(frozen=True)
class Slot:
    """The place of one message's content.

    Attributes:
        message: index into the messages.
        trims_left: whether the template strips whitespace before the content.
        trims_right: the same after it.
    """

    message: int
    trims_left: bool
    trims_right: bool

    def trimmed(self, content: str) -> str:
        """The content as the template would leave it."""
        content = content.lstrip() if self.trims_left else content
        return content.rstrip() if self.trims_right else content


@dataclass(frozen=True)
class Layout:
    """Literals and slots in the order of the rendered text: `len(literals) == len(slots) + 1`."""

    literals: tuple[str, ...]
    slots: tuple[Slot, ...]


def render_layout(
    tokenizer: PreTrainedTokenizerBase, roles: Sequence[str], *, generation_prompt: bool, options: Mapping[str, Any]
) -> Layout:
    """Lay out a dialog of these roles.

    Raises:
        ModelError: the template refuses the roles (its own message is named), or leaves a message out.
    """
    from jinja2 import TemplateError

    dialog = [{"role": role, "content": f"{_PAD}zqx{index}xqz{_PAD}"} for index, role in enumerate(roles)]
    try:
        text = tokenizer.apply_chat_template(
            dialog, tokenize=False, add_generation_prompt=generation_prompt, **dict(options)
        )
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"the chat template cannot render a dialog with the turns {', '.join(roles)}: {str(error).rstrip('.')}. "
            f"Give dialogs the turns it takes. {MEND}"
        ) from None
    assert isinstance(text, str)
    return _cut(text, roles)


def _cut(text: str, roles: Sequence[str]) -> Layout:
    literals: list[str] = []
    slots: list[Slot] = []
    end = 0
    for match in _SENTINEL.finditer(text):
        literals.append(text[end : match.start()])
        slots.append(Slot(int(match[2]), trims_left=not match[1], trims_right=not match[3]))
        end = match.end()
    missing = set(range(len(roles))) - {slot.message for slot in slots}
    if missing:
        first = min(missing)
        raise ModelError(
            f"the chat template leaves out message {first + 1} ({roles[first]}) of a dialog with the turns "
            f"{', '.join(roles)}: what it says would be lost. {MEND}"
        )
    return Layout((*literals, text[end:]), tuple(slots))
