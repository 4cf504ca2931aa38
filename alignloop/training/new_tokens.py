"""Tokens a base was never trained on: added with a chat template, or in its vocabulary and left alone. Torch-free.

Their rows of the embedding (and of the output head, where that is a matrix of its own) must train, or the model can
neither tell the template's marks apart nor write its end of turn. Under an adapter, which leaves both matrices alone,
they are named in a file beside the checkpoint and train beside the adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from alignloop.engines.checkpoint import StoredTensor
from alignloop.errors import ModelError
from alignloop.records import Message
from alignloop.training.base_weights import INPUT_EMBEDDING, OUTPUT_HEAD, has_floats, read_rows

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat

NEW_TOKENS = "new_tokens.json"
KNOWN_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|padding|>")
NEW_PAD_TOKEN = "<|pad|>"

NUM_PLAIN = 256
"""Plain tokens whose rows represent what training leaves, evenly spaced over the vocabulary."""
MAX_SPECIAL = 1024
"""Special tokens that are compared; Llama 3 has 256."""
NEARLY_NOTHING = 1e-3
"""Of the median norm of plain tokens' rows."""
ALIKE = 1e-2
"""Of a row's norm: another special token's row is as near as that. transformers adds rows nearer to each other."""
FAR_SHORTER = 0.5
"""Of the norm that 99 of 100 plain tokens' rows have."""

_DIALOGS = (("system", "user", "assistant", "user", "assistant"), ("user", "assistant", "user", "assistant"))

State = Literal["added", "empty", "weak"]


class NewToken(BaseModel):
    """A token whose rows train beside an adapter.

    `state` says what its rows were: `added` had none; `empty` were nearly nothing, or hardly to be told from those of
    another special token; `weak` were far shorter than what has been trained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int
    token: str
    state: State

    @property
    def starts_anew(self) -> bool:
        """Whether its rows are drawn when the base is prepared; `weak` ones hold what they hold."""
        return self.state != "weak"


class NewTokens(BaseModel):
    """`new_tokens.json`, beside the weights of every checkpoint of such a base."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    tokens: tuple[NewToken, ...]


def load_new_tokens(checkpoint: Path) -> tuple[NewToken, ...]:
    """Those of a checkpoint; none where it names none."""
    path = checkpoint / NEW_TOKENS
    if not path.is_file():
        return ()
    try:
        return NewTokens.model_validate_json(path.read_bytes()).tokens
    except (ValidationError, OSError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); delete it, or prepare the base again") from error


def save_new_tokens(checkpoint: Path, tokens: Sequence[NewToken]) -> None:
    """Write the file, or remove one that another run left where there are none."""
    path = checkpoint / NEW_TOKENS
    if not tokens:
        path.unlink(missing_ok=True)
        return
    path.write_text(NewTokens(tokens=tuple(tokens)).model_dump_json(indent=1) + "\n", encoding="utf-8")


def ensure_pad(tokenizer: Any, *, end_ids: Iterable[int | None]) -> bool:
    """Set a pad token that ends nothing; whether one had to be set.

    The base's own eos stays a stop token, so it will not do either: models trained with pad == eos learn never to stop.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in end_ids:
        return False
    vocabulary = tokenizer.get_vocab()
    known = next((token for token in KNOWN_PAD_TOKENS if token in vocabulary), None)
    tokenizer.add_special_tokens({"pad_token": known or NEW_PAD_TOKEN})
    return True


@dataclass(frozen=True)
class OwnTokens:
    """What a base's tokenizer had before a run added anything.

    `bos` and `eos` the base's training has most likely seen, however short their rows are; None where it has none.
    """

    num: int
    bos: int | None
    eos: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> OwnTokens:
        return cls(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)


def find_new_tokens(
    tokenizer: Any, chat: ChatFormat, *, own: OwnTokens, tensors: Mapping[str, StoredTensor]
) -> tuple[NewToken, ...]:
    """Tokens that were added, and those the chat template writes whose rows were never trained; by id.

    A control token that the template writes counts as never trained where, in the embedding or in the output head, its
    row differs by under 1 % from that of another special token, has a norm under a thousandth of the median of plain
    tokens, or one under half of what 99 of 100 plain tokens have. `tokenizer` is as the run will use it, `own` is the
    base's.
    """
    added = range(own.num, len(tokenizer))
    states: dict[int, State] = dict.fromkeys(added, "added")
    control = sorted(index for index in _control_ids(chat) if index < own.num)
    named = [tensor for name, tensor in tensors.items() if INPUT_EMBEDDING.search(name) or OUTPUT_HEAD.search(name)]
    for matrix in (tensor for tensor in named if len(tensor.shape) == 2 and has_floats(tensor)):
        for index, state in _untrained(matrix, control, tokenizer=tokenizer, trained_ids=frozenset({own.bos, own.eos})):
            if states.get(index) != "empty":
                states[index] = state
    return tuple(
        NewToken(id=index, token=tokenizer.convert_ids_to_tokens(index), state=state)
        for index, state in sorted(states.items())
    )


def _control_ids(chat: ChatFormat) -> frozenset[int]:
    """Control tokens that the template writes around the texts of a dialog."""
    found: set[int] = set()
    for roles in _DIALOGS:
        messages = [Message.model_validate({"role": role, "content": "a"}) for role in roles]
        try:
            dialog = chat.dialog(messages)
            found.update(chat.prompt_ids(messages[:-1]))
        except ModelError:
            continue  # a template without system turns
        found.update(dialog.token_ids)
    found.update(chat.answer_control_ids, chat.stop_token_ids[:1])
    return chat.control_ids & found


def _untrained(
    matrix: StoredTensor, written: Sequence[int], *, tokenizer: Any, trained_ids: frozenset[int | None]
) -> list[tuple[int, State]]:
    import numpy as np

    num_rows = matrix.shape[0]
    special = sorted(index for index in tokenizer.added_tokens_decoder if index < num_rows)
    written = [index for index in written if index < num_rows]
    compared = sorted({*special[:MAX_SPECIAL], *written})
    plain = sorted(set(range(num_rows)).difference(compared))
    if not written or not plain:
        return []
    spaced = plain[:: max(1, len(plain) // NUM_PLAIN)][:NUM_PLAIN]
    norms = np.linalg.norm(read_rows(matrix, spaced), axis=1)
    nothing, short = NEARLY_NOTHING * float(np.median(norms)), FAR_SHORTER * float(np.quantile(norms, 0.01))
    rows = read_rows(matrix, compared)
    found: list[tuple[int, State]] = []
    for index in written:
        row, seen = rows[compared.index(index)], index in trained_ids
        norm = float(np.linalg.norm(row))
        num_alike = int((np.linalg.norm(rows - row, axis=1) <= ALIKE * norm).sum())  # itself is one
        if norm <= (0.0 if seen else nothing) or num_alike > 1:
            found.append((index, "empty"))
        elif norm < short and not seen:
            found.append((index, "weak"))
    return found
