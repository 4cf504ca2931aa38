"""IFEval: local files in the published form, lm-eval's own checkers, and what its figures leave out.

The published form is JSON lines of `key`, `prompt`, `instruction_id_list` and `kwargs` (one object an instruction).
Verdicts are lm-eval's (`lm_eval.tasks.ifeval`); nothing of it is copied here.
"""

from __future__ import annotations

import atexit
import difflib
import os
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from alignloop.data.parsing import parse_line
from alignloop.errors import DataError
from alignloop.evaluation.standard_error import Estimate, mean, mean_of, ratio

ACCURACIES = ("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc")
"""The four accuracies whose mean the paper reports."""
FORM = "IFEval data are JSON lines of key, prompt, instruction_id_list, kwargs"
SENTENCE_TYPES = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
"""The instruction types whose checkers split text with nltk's `punkt_tab`."""
SENTENCE_DATA = "tokenizers/punkt_tab/english/"
SENTENCE_PACKAGE = ("llama_index", "core/_static/nltk_cache")
"""A package of the ordinary index (llama-index-core) whose wheel carries nltk's sentence data, and where: for machines
that have an index of packages and no other network. Its code is not imported."""


class IfevalRow(BaseModel):
    """One prompt with its instructions, as published."""

    model_config = ConfigDict(frozen=True)

    key: int
    prompt: str = Field(min_length=1)
    instruction_id_list: list[str] = Field(min_length=1)
    arguments: list[dict[str, Any]] = Field(validation_alias=AliasChoices("kwargs"), serialization_alias="kwargs")
    """One object an instruction; `kwargs` on disk."""

    @model_validator(mode="after")
    def _one_kwargs_each(self) -> IfevalRow:
        if len(self.arguments) != len(self.instruction_id_list):
            raise ValueError(
                f"kwargs: {len(self.arguments)} objects for {len(self.instruction_id_list)} instructions; "
                "give one object an instruction ({} where it needs none)"
            )
        return self

    def as_doc(self) -> dict[str, Any]:
        """The row as lm-eval's checkers read it."""
        return self.model_dump(by_alias=True)


def load_checkers() -> ModuleType:
    """lm-eval's IFEval module (`process_results`, `test_instruction_following_strict`, ...).

    Its import looks for nltk's sentence data and would fetch them from the network, which hangs or prints errors
    offline; only ranks other than 0 do not, so the import is made as one. Language detection draws random numbers:
    it is seeded, or the same answer gets different verdicts.
    """
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        from lm_eval.tasks.ifeval import instructions, utils
    finally:
        del os.environ["LOCAL_RANK"]
        if before is not None:
            os.environ["LOCAL_RANK"] = before
    instructions.langdetect.DetectorFactory.seed = 0
    assert isinstance(utils, ModuleType)
    return utils


def read_ifeval(path: Path) -> list[IfevalRow]:
    """As `read_form`; a DataError also where instruction ids or kwargs are wrong."""
    rows = read_form(path)
    with preserved_random(0):
        for number, row in rows:
            for instruction_id, kwargs in zip(row.instruction_id_list, row.arguments, strict=True):
                _check_instruction(instruction_id, kwargs, where=f"{path}, line {number}")
    return [row for _, row in rows]


def read_form(path: Path) -> list[tuple[int, IfevalRow]]:
    """Rows of a file in IFEval's published form with their line numbers, checked as far as is possible without lm-eval,
    whose import takes seconds. DataError: no such file, no rows, or a row in another form (file, line and field)."""
    rows = []
    for number, value in numbered_values(path, what=FORM, form=FORM):
        try:
            rows.append((number, IfevalRow.model_validate(value)))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"{path}, line {number}: {field + ': ' if field else ''}{first['msg']} - the row is not an IFEval row: "
                f"{FORM}."
            ) from error
    if not rows:
        raise DataError(f"{path}: the file has no rows. {FORM}.")
    return rows


def numbered_values(path: Path, *, what: str, form: str) -> Iterator[tuple[int, Any]]:
    """The JSON values of a file's lines with their numbers; empty lines are skipped. A DataError names `what` where
    there is no such file, `form` where a line is no JSON."""
    if not path.is_file():
        raise DataError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}. {what}.")
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, parse_line(line, offset=offset, where=f"{path}, line {number}", form=form)
            offset += len(line)


def score_response(row: IfevalRow, response: str) -> dict[str, Any]:
    """lm-eval's verdicts: two booleans (`prompt_level_*`) and two lists of one boolean an instruction."""
    require_sentence_data(row.instruction_id_list, where=f"prompt {row.key}")
    verdicts: dict[str, Any] = load_checkers().process_results(row.as_doc(), [response])
    return verdicts


def require_sentence_data(instruction_ids: Iterable[str], *, where: str) -> None:
    """Raise a DataError where one of `instruction_ids` needs nltk's sentence data and they are not installed."""
    needing = sorted(set(instruction_ids) & set(SENTENCE_TYPES))
    if needing and not _has_sentence_data():
        import nltk

        raise DataError(
            f"{where}: {', '.join(needing)} needs nltk's sentence data (punkt_tab), which are not in any of "
            f"{', '.join(nltk.data.path)}. With a network: python -m nltk.downloader punkt_tab. With an index of "
            "packages alone: pip install --no-deps llama-index-core, which carries them. Without: copy the folder "
            "tokenizers/punkt_tab from another machine and set NLTK_DATA to the folder that holds tokenizers/."
        )


def _has_sentence_data() -> bool:
    """Whether nltk finds them: in its own folders, or in the package that carries them."""
    import nltk

    package, inside = SENTENCE_PACKAGE
    spec = find_spec(package)
    carried = [str(Path(folder) / inside) for folder in (spec and spec.submodule_search_locations) or []]
    nltk.data.path += [folder for folder in carried if folder not in nltk.data.path]  # a user's own come first
    try:
        folder = Path(str(nltk.data.find(SENTENCE_DATA)))
    except LookupError:
        return False
    if any(file.stat().st_nlink > 1 for file in folder.iterdir()):
        # nltk refuses files with several hard links, and installers that link from a cache (uv, conda) leave no others:
        # a copy stands before them while this process lives.
        root = tempfile.mkdtemp(prefix="alignloop-nltk-")
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        shutil.copytree(folder, Path(root) / SENTENCE_DATA)
        index = next(index for index, known in enumerate(nltk.data.path) if folder.is_relative_to(known))
        nltk.data.path.insert(index, root)
    return True


def estimates(
    verdicts: Sequence[Mapping[str, Any]], *, instruction_ids: Sequence[Sequence[str]]
) -> dict[str, tuple[Estimate, int]]:
    """The four accuracies, `mean` of them, and `type/<instruction id>`: the strict accuracy of each type, sorted.

    Each comes with what it counts: prompts, or instructions for `inst_level_*` and `type/*`. `verdicts` are N mappings
    with the keys of `ACCURACIES`, as lm-eval's `process_results` makes them; `instruction_ids` N lists aligned with
    theirs.
    """
    by_type: dict[str, list[list[bool]]] = {}
    for verdict, ids in zip(verdicts, instruction_ids, strict=True):
        own: dict[str, list[bool]] = defaultdict(list)
        for instruction_id, followed in zip(ids, verdict["inst_level_strict_acc"], strict=True):
            own[instruction_id].append(bool(followed))
        for instruction_id, all_followed in own.items():
            by_type.setdefault(instruction_id, []).append(all_followed)
    figures = {}
    for name in ACCURACIES:
        values = [verdict[name] for verdict in verdicts]
        is_prompts = name.startswith("prompt_level")
        figures[name] = (mean(list(map(float, values))), len(verdicts)) if is_prompts else _share(values)
    figures["mean"] = mean_of([figures[name][0] for name in ACCURACIES]), len(verdicts)
    return figures | {f"type/{name}": _share(prompts) for name, prompts in sorted(by_type.items())}


def _share(prompts: Sequence[Sequence[bool]]) -> tuple[Estimate, int]:
    """Of the verdicts of all prompts that are true, and how many they are."""
    sizes = [float(len(prompt)) for prompt in prompts]
    return ratio([float(sum(prompt)) for prompt in prompts], sizes), int(sum(sizes))


@contextmanager
def preserved_random(seed: int) -> Iterator[None]:
    """Seed Python's global generator inside and restore it after: the checkers draw what a prompt leaves open."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _check_instruction(instruction_id: str, kwargs: Mapping[str, Any], *, where: str) -> None:
    """Build the checker now: a wrong argument would otherwise come out after all answers are generated."""
    load_checkers()
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    if instruction_id not in INSTRUCTION_DICT:
        near = difflib.get_close_matches(instruction_id, INSTRUCTION_DICT, n=3, cutoff=0.4)
        hint = f" - near: {', '.join(near)}" if near else ""
        raise DataError(f"{where}: instruction_id_list: no instruction type {instruction_id!r}{hint}.")
    checker = INSTRUCTION_DICT[instruction_id](instruction_id)
    try:
        checker.build_description(**{name: value for name, value in kwargs.items() if value})
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where}: kwargs of {instruction_id}: {dict(kwargs)}: {error}") from error
