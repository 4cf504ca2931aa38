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

ACCURACIES = (
    "prompt_level_strict_acc",
    "inst_level_strict_acc",
    "prompt_level_loose_acc",
    "inst_level_loose_acc",
)
"""The four accuracies whose mean the paper reports."""
FIELDS = ("key", "prompt", "instruction_id_list", "kwargs")
"""Of a row as published."""
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
    with _environment("LOCAL_RANK", "1"):
        from lm_eval.tasks.ifeval import instructions, utils

    instructions.langdetect.DetectorFactory.seed = 0
    assert isinstance(utils, ModuleType)
    return utils


def read_ifeval(path: Path) -> list[IfevalRow]:
    """The rows of a file in IFEval's published form.

    Raises:
        DataError: no such file, no rows, or a row whose fields, instruction ids or kwargs are wrong (file and line).
    """
    rows = read_form(path)
    with preserved_random(0):
        for number, row in rows:
            for instruction_id, kwargs in zip(row.instruction_id_list, row.arguments, strict=True):
                _check_instruction(instruction_id, kwargs, where=f"{path}, line {number}")
    return [row for _, row in rows]


def read_form(path: Path) -> list[tuple[int, IfevalRow]]:
    """The rows with their line numbers, as far as they can be checked without lm-eval, whose import takes seconds.

    Raises:
        DataError: no such file, no rows, or a row in another form (file, line and field).
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {what}. IFEval data are JSON lines of {', '.join(FIELDS)}.")
    rows, offset = [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append((number, _read_row(line, offset=offset, where=f"{path}, line {number}")))
            offset += len(line)
    if not rows:
        raise DataError(f"{path}: the file has no rows. IFEval data are JSON lines of {', '.join(FIELDS)}.")
    return rows


def score_response(row: IfevalRow, response: str) -> dict[str, Any]:
    """lm-eval's verdicts: two booleans (`prompt_level_*`) and two lists of one boolean an instruction."""
    require_sentence_data(row.instruction_id_list, where=f"prompt {row.key}")
    verdicts: dict[str, Any] = load_checkers().process_results(row.as_doc(), [response])
    return verdicts


def require_sentence_data(instruction_ids: Iterable[str], *, where: str) -> None:
    """Raise a DataError where one of `instruction_ids` needs nltk's sentence data and they are not installed."""
    needing = sorted(set(instruction_ids) & set(SENTENCE_TYPES))
    if not needing:
        return
    if not _has_sentence_data():
        import nltk

        raise DataError(
            f"{where}: {', '.join(needing)} needs nltk's sentence data (punkt_tab), which are not in any of "
            f"{', '.join(nltk.data.path)}. With a network: python -m nltk.downloader punkt_tab. With an index of "
            "packages alone: pip install --no-deps llama-index-core, which carries them. Without: copy the folder "
            "tokenizers/punkt_tab from another machine and set NLTK_DATA to the folder that holds tokenizers/."
        )


def _has_sentence_data() -> bool:
    """Whether nltk finds its sentence data: in its own folders, or in the package that carries them."""
    import nltk

    package, place = SENTENCE_PACKAGE
    spec = find_spec(package)
    carried = [str(Path(folder) / place) for folder in (spec and spec.submodule_search_locations) or []]
    nltk.data.path += [folder for folder in carried if folder not in nltk.data.path]  # a user's own come first
    try:
        folder = Path(str(nltk.data.find(SENTENCE_DATA)))
    except LookupError:
        return False
    if any(file.stat().st_nlink > 1 for file in folder.iterdir()):
        root = next(place for place, known in enumerate(nltk.data.path) if folder.is_relative_to(known))
        nltk.data.path.insert(root, _copied(folder))
    return True


def _copied(folder: Path) -> str:
    """A data folder of nltk's with a copy of `folder`, while this process lives.

    nltk refuses files with several hard links, and installers that link from a cache (uv, conda) leave no others.
    """
    root = tempfile.mkdtemp(prefix="alignloop-nltk-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    shutil.copytree(folder, Path(root) / SENTENCE_DATA)
    return root


def estimates(
    verdicts: Sequence[Mapping[str, Any]], *, instruction_ids: Sequence[Sequence[str]]
) -> dict[str, Estimate]:
    """The four accuracies, their mean and the strict accuracy of each type, from N prompts' verdicts.

    Args:
        verdicts: N mappings with the keys of `ACCURACIES`, as lm-eval's `process_results` gives them.
        instruction_ids: N lists, aligned with the verdict lists.

    Returns:
        Metric name -> estimate: the four, `mean`, and `type/<instruction id>`.
    """
    figures = {}
    for name in ACCURACIES:
        values = [verdict[name] for verdict in verdicts]
        if name.startswith("prompt_level"):
            figures[name] = mean([float(value) for value in values])
        else:
            figures[name] = ratio([float(sum(value)) for value in values], [float(len(value)) for value in values])
    figures["mean"] = mean_of([figures[name] for name in ACCURACIES])
    for instruction_id, prompts in by_type(verdicts, instruction_ids=instruction_ids).items():
        figures[f"type/{instruction_id}"] = ratio(
            [float(sum(prompt)) for prompt in prompts], [float(len(prompt)) for prompt in prompts]
        )
    return figures


def by_type(
    verdicts: Sequence[Mapping[str, Any]], *, instruction_ids: Sequence[Sequence[str]]
) -> dict[str, list[list[bool]]]:
    """Instruction id -> for each prompt that has it, its strict verdicts there. Sorted by id."""
    found: dict[str, list[list[bool]]] = defaultdict(list)
    for verdict, ids in zip(verdicts, instruction_ids, strict=True):
        here: dict[str, list[bool]] = defaultdict(list)
        for instruction_id, followed in zip(ids, verdict["inst_level_strict_acc"], strict=True):
            here[instruction_id].append(bool(followed))
        for instruction_id, followed_here in here.items():
            found[instruction_id].append(followed_here)
    return dict(sorted(found.items()))


@contextmanager
def preserved_random(seed: int) -> Iterator[None]:
    """Python's global generator seeded inside, as it was outside: the checkers draw what a prompt leaves open."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _read_row(line: bytes, *, offset: int, where: str) -> IfevalRow:
    form = f"IFEval data are JSON lines of {', '.join(FIELDS)}"
    row = parse_line(line, offset=offset, where=where, form=form)
    try:
        return IfevalRow.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{where}: {field + ': ' if field else ''}{first['msg']} - the row is not an IFEval row: {form}."
        ) from error


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


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
