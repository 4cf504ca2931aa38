"""`alignloop data check`: files as the readers read them, and what each objective would train on. Nothing is written.

FILES --check_file--> FileCheck --with a tokenizer: lengths in tokens, views of the first row--> text, JSON
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.data.check_files import FileCheck, check_file
from alignloop.data.readers import Kind
from alignloop.data.rows import Options
from alignloop.data.statistics import QUANTILE_NAMES, quantiles, scripts_of, shares
from alignloop.data.tally import AnyRow, num_repeated
from alignloop.errors import DataError, ModelError
from alignloop.records import PreferenceRow, PromptRow, SftRow

if TYPE_CHECKING:
    from alignloop.look.setting import Setting

NO_BASE = "none"
"""`--base none`: no tokenizer is looked for."""
NUM_TOKENISED = 500
"""Rows of the sample that are tokenised for the quantiles."""


@dataclass(frozen=True)
class TokenLengths:
    """Of a sample of rows.

    Attributes:
        prompt, completion: least, 5 %, median, 95 %, most. Of a preference the longer completion counts.
        num_rows: rows tokenised.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    num_rows: int


@dataclass(frozen=True)
class Objective:
    """What an objective would train on of the first row.

    Attributes:
        parts: (prompt or completion, what of it counts).
        dropped: why the row would be left out; None where it trains.
    """

    name: str
    about: str
    parts: tuple[tuple[str, str], ...]
    dropped: str | None


@dataclass(frozen=True)
class CheckedFile:
    """A file with what is known of it.

    Attributes:
        problem: why the file cannot be read at all; then there is no check.
        note: why nothing is said of tokens; None where it is.
    """

    name: str
    check: FileCheck | None = None
    problem: DataError | None = None
    scripts: dict[str, float] | None = None
    tokens: TokenLengths | None = None
    objectives: tuple[Objective, ...] = ()
    base: str | None = None
    note: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether every row can be read."""
        return self.check is not None and self.check.is_good


def check_alone(
    files: Sequence[str],
    *,
    kind: Kind | None,
    form: str | None,
    options: Options,
    base: str | None,
    chat_template: str | None,
    workers: int | None = None,
) -> list[CheckedFile]:
    """Check files one by one; one that cannot be read does not hide the next.

    Args:
        base: whose tokenizer counts tokens; None: the quickstart's; `none`: nobody's.
    """
    checked = []
    for file in files:
        try:
            check = check_file(file, kind=kind, form=form, options=options, workers=workers)
        except DataError as error:
            checked.append(CheckedFile(file, problem=error))
            continue
        checked.append(_with_tokens(check, file, base=base, chat_template=chat_template))
    return checked


def _with_tokens(check: FileCheck, file: str, *, base: str | None, chat_template: str | None) -> CheckedFile:
    rows = [row for _, row in sorted(check.tally.sample, key=lambda item: item[0])]
    scripts = shares(scripts_of("\n".join(_texts(row))) for row in rows)
    if base == NO_BASE or not rows:
        note = "no row to tokenise" if not rows else "without a base, nothing is tokenised"
        return CheckedFile(file, check, scripts=scripts, note=note)
    from alignloop.look.setting import find_setting

    try:
        setting = find_setting(Path(file), base=base or "quickstart", chat_template=chat_template, config=None)
        tokens = _token_lengths(rows[:NUM_TOKENISED], setting)
        objectives = _objectives(check.tally.first[0], setting)
    except ModelError as error:
        return CheckedFile(file, check, scripts=scripts, note=str(error))
    return CheckedFile(file, check, None, scripts, tokens, objectives, setting.base)


def _texts(row: AnyRow) -> list[str]:
    texts = [message.content for message in row.messages]
    return [*texts, row.chosen, row.rejected] if isinstance(row, PreferenceRow) else texts


def _token_lengths(rows: Sequence[AnyRow], setting: Setting) -> TokenLengths:
    prompts, completions = [], []
    for row in rows:
        messages, texts = row.messages, []
        if isinstance(row, PreferenceRow):
            texts = [row.best, row.rejected]
        elif isinstance(row, SftRow):
            messages, texts = messages[:-1], [messages[-1].content]
        prompts.append(len(setting.chat.prompt_ids(messages)))
        if texts:
            completions.append(max(len(setting.chat.completion(text).token_ids) for text in texts))
    return TokenLengths(quantiles(prompts), quantiles(completions), len(rows))


def _objectives(row: AnyRow, setting: Setting) -> tuple[Objective, ...]:
    from alignloop.look.views import views_of

    if isinstance(row, PromptRow):
        return ()
    return tuple(
        Objective(
            view.objective, view.about, tuple((part.name, part.facts) for part in view.parts), dropped=view.dropped
        )
        for view in views_of(row, setting, objective=None, train_on=None)
    )


def as_json(checked: CheckedFile) -> dict[str, Any]:
    """All that is known of a file; the rows that cannot be read are the first 1,000."""
    if checked.check is None:
        assert checked.problem is not None
        rejected = [row.model_dump() for row in checked.problem.rejected]
        return {"file": checked.name, "good": False, "problem": str(checked.problem), "rejected": rejected}
    check, tally = checked.check, checked.check.tally
    lengths: dict[str, Any] = {
        "prompt_characters": _named(quantiles(tally.prompt_characters)),
        "completion_characters": _named(quantiles(tally.completion_characters)),
    }
    if checked.tokens is not None:
        lengths["prompt_tokens"] = _named(checked.tokens.prompt)
        lengths["completion_tokens"] = _named(checked.tokens.completion)
        lengths["rows_tokenised"] = checked.tokens.num_rows
    return {
        "file": check.name,
        "good": check.is_good,
        "kind": check.kind,
        "form": check.form,
        "mixture": {name: vars(seen) for name, seen in tally.seen.items()} if check.mixture else None,
        "read": tally.num_read,
        "kept": tally.num_kept,
        "rejected": tally.num_rejected,
        "rows": tally.num_rows,
        "repeated_prompts": num_repeated(tally.prompts),
        "repeated_rows": num_repeated(tally.rows),
        "user_turns": {str(turns): count for turns, count in sorted(tally.turns.items())},
        "with_system": tally.systems,
        "with_edited": tally.edited,
        "strengths": dict(tally.strengths),
        "annotators": dict(tally.annotators),
        "scores_against_choice": tally.scores["against"],
        "scores_tied": tally.scores["tie"],
        "with_ids_left_out": tally.num_with_ids,
        "carried": dict(tally.carried_columns),
        "scripts": checked.scripts,
        "lengths": lengths,
        "objectives": [vars(objective) for objective in checked.objectives],
        "note": checked.note,
        "first": [row.model_dump() for row in tally.first[:2]],
        "rejected_rows": [row.model_dump() for row in tally.bad],
    }


def _named(values: Sequence[int]) -> dict[str, int]:
    return dict(zip(QUANTILE_NAMES, values, strict=True))
