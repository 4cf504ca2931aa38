"""Rows on disk -> groups: ids as sampled, the end of turn only where the completion ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from alignloop.chat.format import ChatFormat
from alignloop.chat.load import load_format
from alignloop.chat.tokens import CompletionTokens
from alignloop.config.bundled import QUICKSTART
from alignloop.errors import DataError
from alignloop.packing.build import ranked_groups, sft_groups
from alignloop.records import CandidateRow, Message, PairRow, PreferenceRow, SelectedRow, SftRow, Source
from alignloop.stages.build_pairs import preference_pair
from alignloop.stages.train_sft import preferred

ASK = [Message(role="user", content="Name a river.")]
TEXT = "The Elbe is long."


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return load_format(QUICKSTART / "base")


def letters(chat: ChatFormat, text: str) -> list[int]:
    """The text's ids, letter by letter: as a policy may sample them and no tokenizer makes them again."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(QUICKSTART / "base")
    ids = [index for letter in text for index in tokenizer.encode(letter, add_special_tokens=False)]
    assert chat.decode(ids) == text
    assert ids != list(chat.completion(text).token_ids[:-1])
    return ids


def terminated(*ids: int, chat: ChatFormat) -> CompletionTokens:
    end = chat.stop_token_ids[0]
    return CompletionTokens((*ids, end), (False,) * len(ids) + (True,))


def unterminated(*ids: int) -> CompletionTokens:
    return CompletionTokens(ids, (False,) * len(ids))


def preference(**values: Any) -> PreferenceRow:
    made = {"id": "r", "messages": ASK, "chosen": TEXT, "rejected": "A hill.", "source": Source(file="round-01")}
    return PreferenceRow(**{**made, **values})


def sft(text: str = TEXT, **values: Any) -> SftRow:
    messages = [*ASK, Message(role="assistant", content=text)]
    return SftRow(id="r", messages=messages, origin="best_of_k", source=Source(file="round-01"), **values)


def test_targets_train_on_the_ids_that_were_sampled(chat: ChatFormat) -> None:
    ids = letters(chat, TEXT)
    stop = chat.stop_token_ids[0]
    (ended,) = sft_groups([sft(completion_ids=[*ids, stop], finish_reason="stop")], chat, train_on="last_assistant")
    (cut,) = sft_groups([sft(completion_ids=ids, finish_reason="length")], chat, train_on="last_assistant")
    assert ended.completions == (terminated(*ids, chat=chat),)
    assert cut.completions == (unterminated(*ids),)


def test_a_text_that_was_cut_teaches_no_end_of_turn_without_ids_either(chat: ChatFormat) -> None:
    (group,) = sft_groups([sft(finish_reason="length")], chat, train_on="last_assistant")
    assert group.completions == (unterminated(*chat.completion(TEXT).token_ids[:-1]),)
    (group,) = sft_groups([sft()], chat, train_on="last_assistant")
    assert group.completions == (chat.completion(TEXT),)


def test_compared_completions_keep_their_ids_and_endings(chat: ChatFormat) -> None:
    better, worse = letters(chat, TEXT), letters(chat, "A hill.")
    row = preference(
        chosen_ids=[*better, chat.stop_token_ids[0]], chosen_finish_reason="stop",
        rejected_ids=worse, rejected_finish_reason="length",
    )  # fmt: skip
    as_sampled = (terminated(*better, chat=chat), unterminated(*worse))
    assert ranked_groups([row], chat)[0].completions == as_sampled
    pair = preference_pair(row)
    assert ranked_groups([pair], chat)[0].completions == as_sampled
    assert sft_groups([preferred(row)], chat, train_on="last_assistant")[0].completions == as_sampled[:1]


def test_what_a_person_edited_has_no_sampled_ids(chat: ChatFormat) -> None:
    """The chosen one keeps its own, but it is not what SFT and DPO train on."""
    ids = letters(chat, TEXT)
    row = preference(edited="The Elbe.", chosen_ids=ids, chosen_finish_reason="length")
    edited = chat.completion("The Elbe.")
    ranked = ranked_groups([row], chat)[0].completions
    assert ranked == (edited, unterminated(*ids), chat.completion("A hill."))
    assert ranked_groups([preference_pair(row)], chat)[0].completions == (edited, chat.completion("A hill."))
    assert sft_groups([preferred(row)], chat, train_on="last_assistant")[0].completions == (edited,)


@pytest.mark.parametrize("ids", [[5, 6, 7], [10**6]])
def test_ids_of_another_text_or_tokenizer_are_an_error(chat: ChatFormat, ids: list[int]) -> None:
    with pytest.raises(DataError, match=r"row r: its token ids do not read as its text 'The Elbe is long\."):
        sft_groups([sft(completion_ids=ids, finish_reason="stop")], chat, train_on="last_assistant")
    with pytest.raises(DataError, match=r"row r: its token ids do not read as its text 'A hill\."):
        ranked_groups([preference(rejected_ids=ids, rejected_finish_reason="stop")], chat)


def test_sampled_control_tokens_are_not_taught(chat: ChatFormat) -> None:
    """A text holds none, so ids that do are not those of the row's text: it is tokenised."""
    ids = letters(chat, TEXT)
    stray = [*ids[:4], min(chat.control_ids), *ids[4:]]
    (group,) = sft_groups([sft(completion_ids=stray, finish_reason="stop")], chat, train_on="last_assistant")
    assert group.completions == (chat.completion(TEXT),)


def test_the_best_of_k_reaches_training_as_it_was_sampled(chat: ChatFormat) -> None:
    from alignloop.pruning.items import as_sft, item_of_preference, item_of_selected, item_of_sft
    from alignloop.stages.select import pick_of

    ids = letters(chat, TEXT)
    candidate = CandidateRow(
        id="p/1/0", prompt_id="p", messages=ASK, completion=TEXT, completion_ids=ids, finish_reason="length", round=1,
        policy="sha256:x", reward=1.0,
    )  # fmt: skip
    picked = pick_of([candidate], pass_rate=1.0, seed=1)
    assert isinstance(picked, SelectedRow)
    item = item_of_selected(picked)
    row = as_sft(item)
    assert (row.completion_ids, row.finish_reason) == (ids, "length")
    assert as_sft(item_of_sft(row)).completion_ids == ids
    assert item_of_sft(row).truncated
    changed = as_sft(replace(item, completion="The Elbe."))
    assert (changed.completion_ids, changed.finish_reason) == (None, None)
    annotated = preference(chosen_ids=ids, chosen_finish_reason="length")
    assert as_sft(item_of_preference(annotated)).completion_ids == ids
    assert item_of_preference(annotated).truncated
    assert as_sft(item_of_preference(preference(edited="The Elbe.", chosen_ids=ids))).completion_ids is None


def test_a_group_knows_the_strength_of_its_row(chat: ChatFormat) -> None:
    groups = ranked_groups([preference(strength="better", edited="The Elbe."), preference()], chat)
    assert [group.strength for group in groups] == ["better", None]


def test_on_policy_pairs_keep_their_ids() -> None:
    from alignloop.config.sampling import PairsConfig
    from alignloop.stages.build_pairs import _pair_row, pair_candidates

    rows = [
        CandidateRow(
            id=f"p/1/{k}", prompt_id="p", messages=ASK, completion=text, completion_ids=ids, finish_reason="stop",
            round=1, policy="sha256:x", reward=float(k),
        )
        for k, (text, ids) in enumerate([("A hill.", [4, 5]), (TEXT, [6, 7, 8])])
    ]  # fmt: skip
    (pair,) = pair_candidates({"p": rows}, PairsConfig(), seed=1).pairs
    row = _pair_row(pair, rows)
    assert isinstance(row, PairRow)
    assert (row.chosen_ids, row.rejected_ids) == ([6, 7, 8], [4, 5])
    assert (row.chosen_finish_reason, row.rejected_finish_reason) == ("stop", "stop")
