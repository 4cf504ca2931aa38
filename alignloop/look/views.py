"""A row under each objective: its prompt group, laid out, and what becomes of every token.

Groups come from `packing.build`, pieces from `packing.layout`, reasons from `training.job`: what is shown is what
trains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from alignloop.config import Recipe
from alignloop.config.training import ObjectiveName
from alignloop.errors import DataError
from alignloop.look.rows import InspectedRow
from alignloop.look.setting import Setting
from alignloop.packing.build import TrainOn, candidate_groups, ranked_groups, sft_groups
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import layout_group
from alignloop.records import CandidateRow, Message, PairRow, PreferenceRow, SelectedRow, SftRow, Source, Strength
from alignloop.stages.build_pairs import preference_pair
from alignloop.stages.train_reward import as_ranked, of_strengths
from alignloop.stages.train_sft import preferred
from alignloop.training.objectives import drop_reason

OBJECTIVES: dict[type, tuple[ObjectiveName, ...]] = {
    PreferenceRow: ("reward", "sft", "dpo"),
    PairRow: ("dpo",),
    SftRow: ("sft",),
    SelectedRow: ("sft",),
    CandidateRow: ("reward",),
}
Use = Literal["masked", "trained", "formatting", "reward"]
"""What becomes of a token: seen only; trained as content; a formatting token; the one a reward is read at."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a laid-out row.

    Attributes:
        index, position, segment: its index in the packed row, its position id, 0 for the prompt or the completion.
        is_copy: a completion's own copy of the prompt's last token, at which its first token is predicted.
    """

    index: int
    token_id: int
    text: str
    position: int
    segment: int
    use: Use
    is_copy: bool


class ViewPart(NamedTuple):
    """The prompt, or a completion. `facts` says in words what of it counts."""

    name: str
    tokens: tuple[Token, ...]
    facts: str


class View(NamedTuple):
    """A row under one objective.

    Attributes:
        dropped: why it would be left out; None where it trains.
        about: what the objective does with such a row.
        layout: (name of the part, token) in the order of the packed row, each completion with its copy of the prompt's
            last token.
    """

    objective: ObjectiveName
    about: str
    parts: tuple[ViewPart, ...]
    dropped: str | None
    layout: tuple[tuple[str, Token], ...]


def views_of(
    row: InspectedRow, setting: Setting, *, objective: ObjectiveName | None, train_on: TrainOn | None
) -> list[View]:
    """The row under `objective`, or under every objective that it can serve. DataError: it cannot serve the objective;
    ModelError: the chat template refuses the dialog."""
    serves = OBJECTIVES[type(row)]
    if objective is not None and objective not in serves:
        raise DataError(f"row {row.id}: rows of this kind serve {' and '.join(serves)}, not {objective}")
    recipe = setting.recipe
    if train_on is not None:
        recipe = recipe.model_copy(update={"sft": recipe.sft.model_copy(update={"train_on": train_on})})
    return [_view(row, name, setting, recipe) for name in ([objective] if objective else serves)]


def _view(row: InspectedRow, objective: ObjectiveName, setting: Setting, recipe: Recipe) -> View:
    group, names = _group(row, objective, setting, recipe)
    tokens = _tokens(group, objective, setting)
    sections = [[token for token in tokens if token.segment == segment] for segment in range(len(names) + 1)]
    # The prompt is shown whole, with its last token, which the layout puts at the head of each completion.
    prompt = (*sections[0], sections[1][0])
    uses = Counter(token.use for token in prompt)
    num_trained = uses["trained"] + uses["formatting"]
    facts = f"{_num_tokens(prompt)}, {f'{num_trained} trained' if num_trained else 'masked'}"
    parts = [ViewPart("prompt", prompt, facts)]
    for name, section in zip(names, sections[1:], strict=True):
        shown = tuple(section[1:])
        parts.append(ViewPart(name, shown, _completion_facts(shown, name, objective, recipe)))
    return View(
        objective,
        _about(row, objective, recipe),
        tuple(parts),
        _dropped(row, group, objective, recipe),
        tuple((["prompt", *names][token.segment], token) for token in tokens),
    )


def _group(
    row: InspectedRow, objective: ObjectiveName, setting: Setting, recipe: Recipe
) -> tuple[PromptGroup, Sequence[str]]:
    """The prompt group training makes of the row, and names of its completions."""
    chat = setting.chat
    if isinstance(row, CandidateRow):
        return candidate_groups([row], chat)[0], ["candidate"]
    if isinstance(row, PairRow):
        return ranked_groups([row], chat)[0], ["chosen", "rejected"]
    if isinstance(row, SftRow | SelectedRow) or objective == "sft":
        return sft_groups([_sft_row(row)], chat, train_on=recipe.sft.train_on)[0], ["target"]
    if objective == "dpo":
        return ranked_groups([preference_pair(row)], chat)[0], ["chosen", "rejected"]
    ranked = as_ranked(row, recipe.reward)
    edited = [] if ranked.edited is None else ["edited"]
    return ranked_groups([ranked], chat)[0], [*edited, "chosen", "rejected"]


def _sft_row(row: SftRow | SelectedRow | PreferenceRow) -> SftRow:
    if isinstance(row, SelectedRow):
        return SftRow(
            id=row.id,
            messages=[*row.messages, Message(role="assistant", content=row.completion)],
            origin="best_of_k",
            source=Source.of_round(row.round),
            completion_ids=row.completion_ids,
            finish_reason=row.finish_reason,
        )
    return row if isinstance(row, SftRow) else preferred(row)


def _tokens(group: PromptGroup, objective: ObjectiveName, setting: Setting) -> list[Token]:
    (piece,) = layout_group(group)
    # A position's flags are those of the token it predicts: the next one.
    uses: list[Use] = ["masked"] * piece.num_tokens
    if objective == "reward":
        for index in piece.last_index.tolist():
            uses[index] = "reward"
    else:
        for index in np.flatnonzero(piece.loss_mask).tolist():
            uses[index + 1] = "formatting" if piece.formatting_mask[index] else "trained"
    ids, positions, segments = (column.tolist() for column in (piece.token_ids, piece.position_ids, piece.segments))
    texts = setting.chat.token_texts(ids)
    starts = {segments.index(segment) for segment in set(segments) - {0}}
    columns = zip(ids, texts, positions, segments, uses, strict=True)
    return [Token(index, *values, index in starts) for index, values in enumerate(columns)]


def _completion_facts(tokens: Sequence[Token], name: str, objective: ObjectiveName, recipe: Recipe) -> str:
    total = _num_tokens(tokens)
    if objective == "reward":
        return f"{total}, reward read at the last" if tokens else total
    uses = Counter(token.use for token in tokens)
    num_formatting, num_content = uses["formatting"], uses["trained"]
    if objective == "sft":
        return f"{total}, {num_content + num_formatting} trained, {num_formatting} of them formatting"
    in_sums = num_content if recipe.dpo.mask_formatting_tokens else num_content + num_formatting
    facts = f"{total}: {in_sums} in its DPO {'mean' if recipe.dpo.is_per_token else 'sum'}"
    if name == "chosen" and recipe.dpo.nll_coefficient:
        facts += f", {num_content + num_formatting} in the NLL"
    return f"{facts}; {num_formatting} formatting"


def _num_tokens(tokens: Sequence[Token]) -> str:
    return f"{len(tokens):,} token{'' if len(tokens) == 1 else 's'}"


def _dropped(row: InspectedRow, group: PromptGroup, objective: ObjectiveName, recipe: Recipe) -> str | None:
    if isinstance(row, CandidateRow):
        return None
    config = {"reward": recipe.reward, "sft": recipe.sft, "dpo": recipe.dpo}[objective]
    isolate = objective != "reward" or recipe.reward.isolate
    reason = drop_reason(group, objective=objective, max_length=config.max_length, isolate=isolate)
    if reason is not None:
        return reason
    named: dict[str, tuple[Strength, ...]] = {"reward": recipe.reward.strengths, "dpo": recipe.pairs.strengths}
    strengths = named.get(objective)
    if strengths is not None and isinstance(row, PreferenceRow) and not of_strengths([row], strengths):
        section = "reward" if objective == "reward" else "pairs"
        return f"its strength is {row.strength}; {section}.strengths names {', '.join(strengths)}"
    return None


def _about(row: InspectedRow, objective: ObjectiveName, recipe: Recipe) -> str:
    if isinstance(row, CandidateRow):
        return "the reward model reads the candidate, as sampled, at its last token"
    if objective == "reward":
        return "ranked, best first; each one's reward is read at its last token"
    if objective == "sft":
        turns = "the last answer" if recipe.sft.train_on == "last_assistant" else "all answers"
        return f"cross-entropy on {turns}, formatting tokens included"
    nll = f"NLL of chosen x {recipe.dpo.nll_coefficient:g}" if recipe.dpo.nll_coefficient else "no NLL term"
    masked = "without formatting tokens" if recipe.dpo.mask_formatting_tokens else "formatting tokens included"
    loss = "" if recipe.dpo.loss == "sigmoid" else f"{recipe.dpo.loss}: "
    return f"{loss}{'means a token' if recipe.dpo.is_per_token else 'sums'} of both {masked}; {nll}"
