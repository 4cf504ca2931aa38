"""`alignloop data check`: files as the readers read them, and what each objective would train on. Nothing is written.

FILES --check_file--> FileCheck --with a tokenizer: lengths in tokens, views of the first row--> text, JSON
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.data.check_files import FileCheck, check_file
from alignloop.data.reading import Kind
from alignloop.data.rows import Options
from alignloop.data.tally import QUANTILE_NAMES, AnyRow, num_repeated, quantiles, scripts_of, shares
from alignloop.errors import DataError, ModelError
from alignloop.records import PreferenceRow, PromptRow, SftRow

if TYPE_CHECKING:
    from alignloop.look.setting import Setting
    from alignloop.look.views import View

NO_BASE = "none"
"""`--base none`: no tokenizer is looked for."""
NUM_TOKENISED = 500
"""Rows of the sample that are tokenised for the quantiles."""


@dataclass(frozen=True)
class CheckedFile:
    """A file with what is known of it.

    Attributes:
        problem: why the file cannot be read at all; then there is no check.
        lengths: `prompt_characters`, `completion_characters`, and where there is a tokenizer the same in `_tokens`:
            least, 5 %, median, 95 %, most. Of a preference the longer completion counts.
        num_tokenised: rows whose tokens were counted; None without a tokenizer.
        views: what each objective would train on of the first row.
        note: why nothing is said of tokens; None where it is.
    """

    name: str
    check: FileCheck | None = None
    problem: DataError | None = None
    scripts: dict[str, float] | None = None
    lengths: dict[str, tuple[int, ...]] = field(default_factory=dict)
    num_tokenised: int | None = None
    views: tuple[View, ...] = ()
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
        tally = check.tally
        rows = [row for _, row in sorted(tally.sample, key=lambda item: item[0])]
        scripts = shares(scripts_of("\n".join(_texts(row))) for row in rows)
        characters = {"prompt": tally.prompt_characters, "completion": tally.completion_characters}
        lengths = {f"{name}_characters": quantiles(counts) for name, counts in characters.items()}
        one = CheckedFile(file, check, scripts=scripts, lengths=lengths)
        first = next(iter(tally.first), None)
        checked.append(_with_tokens(one, rows, first, base=base, chat_template=chat_template))
    return checked


def _with_tokens(
    checked: CheckedFile,
    rows: Sequence[AnyRow],
    first: AnyRow | None,
    *,
    base: str | None,
    chat_template: str | None,
) -> CheckedFile:
    if first is None:
        return replace(checked, note="no row to tokenise")
    if base == NO_BASE:
        return replace(checked, note="without a base, nothing is tokenised")
    from alignloop.look.setting import find_setting
    from alignloop.look.views import views_of

    try:
        setting = find_setting(Path(checked.name), base=base or "quickstart", chat_template=chat_template, config=None)
        tokens = _token_lengths(rows[:NUM_TOKENISED], setting)
        views = () if isinstance(first, PromptRow) else views_of(first, setting, objective=None, train_on=None)
    except ModelError as error:
        return replace(checked, note=str(error))
    num_tokenised = min(len(rows), NUM_TOKENISED)
    return replace(
        checked, lengths=checked.lengths | tokens, num_tokenised=num_tokenised, views=tuple(views), base=setting.base
    )


def _texts(row: AnyRow) -> list[str]:
    texts = [message.content for message in row.messages]
    return [*texts, row.chosen, row.rejected] if isinstance(row, PreferenceRow) else texts


def _token_lengths(rows: Sequence[AnyRow], setting: Setting) -> dict[str, tuple[int, ...]]:
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
    return {"prompt_tokens": quantiles(prompts), "completion_tokens": quantiles(completions)}


def as_json(checked: CheckedFile) -> dict[str, Any]:
    """All that is known of a file; the rows that cannot be read are the first 1,000."""
    if checked.check is None:
        assert checked.problem is not None
        rejected = [row.model_dump() for row in checked.problem.rejected]
        return {"file": checked.name, "good": False, "problem": str(checked.problem), "rejected": rejected}
    check, tally = checked.check, checked.check.tally
    lengths: dict[str, Any] = {
        name: dict(zip(QUANTILE_NAMES, values, strict=True)) for name, values in checked.lengths.items()
    }
    if checked.num_tokenised is not None:
        lengths["rows_tokenised"] = checked.num_tokenised
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
        "objectives": [
            {
                "name": view.objective,
                "about": view.about,
                "parts": [(part.name, part.facts) for part in view.parts],
                "dropped": view.dropped,
            }
            for view in checked.views
        ],
        "note": checked.note,
        "first": [row.model_dump() for row in tally.first[:2]],
        "rejected_rows": [row.model_dump() for row in tally.bad],
    }
