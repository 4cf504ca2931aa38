"""Judging prompts as files: what the model is told, the answer it must give, and where its verdict stands in that.

And what a stage's fingerprint says of its judge, beside the recipe's words: hashes of the prompt and of the model.

A file is YAML. `{conversation}`, `{prompt}`, `{first}`, `{second}`, `{completion}`, `{better}`, `{criticism}`,
`{labels}` and `{mark}` are filled in; `{{word}}` is the text `{word}`. See `prompts/` beside this file for the bundled
ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from alignloop.artifacts import fingerprint
from alignloop.config.engine import JudgeConfig
from alignloop.config.yaml_values import YamlProblem, read_yaml
from alignloop.data.problems import plain_problems
from alignloop.errors import UserError
from alignloop.records import Strength

BUNDLED = Path(__file__).resolve().parent / "prompts"
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")
_ALWAYS = ("conversation", "prompt", "mark")
_DIALOG = {"conversation", "prompt"}
_PIECE = 1 << 16


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True)


class _JudgingPrompt(_Strict):
    system: str = ""
    """Empty: no system message is sent."""
    user: Annotated[str, Field(min_length=1)]
    reason: str | None = None
    """Field of the answer that holds the model's reason; a text."""
    answer_schema: dict[str, Any] = Field(alias="schema")
    """JSON schema of the answer. The engine is held to it; what any model writes is checked against it."""

    @property
    def digest(self) -> str:
        return fingerprint(self.model_dump(mode="json"))

    @property
    def wants_completion(self) -> bool:
        return "completion" in self._placeholders()

    def _placeholders(self) -> set[str]:
        return {name for text in (self.system, self.user) for _, name in PLACEHOLDER.findall(text) if name}

    def _check_templates(self, *more: str) -> set[str]:
        """The placeholders of both templates; they may hold `more` than those of every prompt."""
        used, known = self._placeholders(), (*_ALWAYS, *more)
        unknown = sorted(used - set(known))
        if unknown:
            raise ValueError(
                f"unknown placeholder {{{unknown[0]}}}: it may hold {', '.join(f'{{{name}}}' for name in known)}; for "
                f"the text itself write {{{{{unknown[0]}}}}}"
            )
        return used

    def _check_answer(self, field: str, values: tuple[object, ...]) -> None:
        """The schema is one, and an answer of it holds the verdict."""
        from jsonschema import Draft202012Validator, SchemaError

        schema = self.answer_schema
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"schema: not a JSON schema: {error.message}") from None
        properties = schema.get("properties") or {}
        for name in (field, *((self.reason,) if self.reason else ())):
            if schema.get("type") != "object" or name not in properties or name not in schema.get("required", ()):
                raise ValueError(f"schema: must be of `type: object` with the property {name!r}, listed in `required`")
        refused = [value for value in values if not Draft202012Validator(properties[field]).is_valid(value)]
        if refused:
            raise ValueError(f"schema: its property {field!r} does not allow {refused[0]!r}, which `verdict` names")


ByStrength = Annotated[dict[Strength, str], Field(min_length=1)]


class PairVerdict(_Strict):
    """Which value of the answer's field means what."""

    field: str
    first: str | ByStrength
    """One value, or one for each strength that the model may say (`significantly_better: A, significantly`, ...)."""
    second: str | ByStrength
    tie: str | None = None
    """None: the model must choose."""

    @model_validator(mode="after")
    def _same_strengths(self) -> PairVerdict:
        first, second = (set(side) if isinstance(side, dict) else set() for side in (self.first, self.second))
        if first != second:
            only = ", ".join(sorted(first ^ second))
            raise ValueError(f"first and second must be said with the same strengths; only one of them has {only}")
        return self

    @property
    def meanings(self) -> list[tuple[str, Literal["first", "second", "tie"], Strength | None]]:
        found: list[tuple[str, Literal["first", "second", "tie"], Strength | None]] = []
        sides: dict[Literal["first", "second"], str | ByStrength] = {"first": self.first, "second": self.second}
        for place, side in sides.items():
            if isinstance(side, str):
                found.append((side, place, None))
            else:
                found += [(value, place, strength) for strength, value in side.items()]
        if self.tie is not None:
            found.append((self.tie, "tie", None))
        return found


class PairwisePrompt(_JudgingPrompt):
    """Compares two completions of one prompt."""

    kind: Literal["pairwise"]
    verdict: PairVerdict

    @model_validator(mode="after")
    def _usable(self) -> PairwisePrompt:
        used = self._check_templates("first", "second")
        if not ({"first", "second"} <= used and used & _DIALOG):
            raise ValueError("user: a pairwise prompt must hold {first}, {second} and {conversation} or {prompt}")
        values = [value for value, _, _ in self.verdict.meanings]
        if len(set(values)) < len(values):
            raise ValueError(f"verdict: two of its values are the same: {', '.join(values)}")
        self._check_answer(self.verdict.field, tuple(values))
        return self


class PointsVerdict(_Strict):
    """The answer's field holds 1 to `maximum`."""

    field: str
    maximum: Annotated[int, Field(ge=2)]


class PointsPrompt(_JudgingPrompt):
    """Gives a dialog, or its completion, points from 1 up."""

    kind: Literal["points"]
    verdict: PointsVerdict

    @model_validator(mode="after")
    def _usable(self) -> PointsPrompt:
        used = self._check_templates("completion")
        if not used & {*_DIALOG, "completion"}:
            raise ValueError("user: a points prompt must hold {conversation}, {prompt} or {completion}")
        self._check_answer(self.verdict.field, tuple(range(1, self.verdict.maximum + 1)))
        return self


class TextsVerdict(_Strict):
    """The answer's fields hold a text each, or a list of texts."""

    fields: Annotated[tuple[str, ...], Field(min_length=1)]
    one_of: str | None = None
    """The field whose text is one of the labels that the asker gives."""


class TextsPrompt(_JudgingPrompt):
    """Asks for texts about a dialog: its topic, a list of its intentions."""

    kind: Literal["texts"]
    verdict: TextsVerdict

    @model_validator(mode="after")
    def _usable(self) -> TextsPrompt:
        used = self._check_templates("completion", "labels")
        if not used & {*_DIALOG, "completion"}:
            raise ValueError("user: a texts prompt must hold {conversation}, {prompt} or {completion}")
        if self.verdict.one_of is not None and self.verdict.one_of not in self.verdict.fields:
            raise ValueError(f"verdict: one_of ({self.verdict.one_of}) is none of its fields")
        if ("labels" in used) != (self.verdict.one_of is not None):
            raise ValueError("verdict: one_of and the placeholder {labels} want each other: give both or neither")
        for field in self.verdict.fields:
            self._check_answer(field, ())
        return self

    def with_labels(self, labels: Sequence[str]) -> TextsPrompt:
        """The prompt with `labels` written out, and answers held to one of them.

        Raises:
            UserError: it has no place for labels, or none are given to one that has.
        """
        if (self.verdict.one_of is None) != (not labels):
            what = "wants labels to choose among" if not labels else "has no `verdict.one_of`, so it takes no labels"
            raise UserError(f"the judging prompt {what}")
        if self.verdict.one_of is None:
            return self
        listed = "\n".join(f"- {label}" for label in labels).replace("{", "(").replace("}", ")")
        properties = dict(self.answer_schema["properties"])
        properties[self.verdict.one_of] = {"type": "string", "enum": list(labels)}
        return self.model_copy(
            update={
                "system": self.system.replace("{labels}", listed),
                "user": self.user.replace("{labels}", listed),
                "answer_schema": {**self.answer_schema, "properties": properties},
            }
        )


class EditVerdict(_Strict):
    """The answer's field holds the better text."""

    field: str


class EditPrompt(_JudgingPrompt):
    """Asks for a better text of the completion that a judge chose of two.

    `{completion}` is that one, `{better}` its place, `first` or `second`, and `{criticism}` what the judge gave as its
    reason; `{first}` and `{second}` are both, as it was asked about them.
    """

    kind: Literal["edit"]
    verdict: EditVerdict

    @property
    def wants_criticism(self) -> bool:
        return "criticism" in self._placeholders()

    @model_validator(mode="after")
    def _usable(self) -> EditPrompt:
        used = self._check_templates("first", "second", "completion", "better", "criticism")
        if not (used & {"completion", "better"} and used & _DIALOG):
            raise ValueError("user: an edit prompt must hold {completion} or {better}, and {conversation} or {prompt}")
        if "better" in used and not {"first", "second"} <= used:
            raise ValueError("user: {better} is the place of one of two completions: give {first} and {second}, too")
        self._check_answer(self.verdict.field, ("a text",))
        return self


JudgingPrompt = PairwisePrompt | PointsPrompt | TextsPrompt | EditPrompt
KINDS = ("pairwise", "points", "texts", "edit")
_ADAPTER: TypeAdapter[JudgingPrompt] = TypeAdapter(Annotated[JudgingPrompt, Field(discriminator="kind")])


def load_prompt(source: str) -> JudgingPrompt:
    """Read a judging prompt, by its path or a bundled one's name.

    Raises:
        UserError: no such file, not YAML, or not a judging prompt; names file, field and what is wrong.
    """
    path = _find(source)
    try:
        values = read_yaml(path)
    except YamlProblem as error:
        raise UserError(f"{path}: not a YAML file that can be used: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a judging prompt is a mapping with kind, system, user, verdict and schema")
    if values.get("kind") not in KINDS:
        raise UserError(f"{path}: kind: {values.get('kind')!r} - write {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        lines = []
        for where, sentence in plain_problems(error):
            field = re.sub(rf"^({'|'.join(KINDS)})\.?", "", where or "")  # the kind, which pydantic puts first
            lines.append(f"{field}: {sentence}" if field else sentence)
        found = "; ".join(lines).replace("is not a column of this kind of row", "is no field of it")
        raise UserError(f"{path}: {found}") from None


def _find(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    bundled = {file.stem: file for file in BUNDLED.glob("*.yaml")}
    if source in bundled:
        return bundled[source]
    raise UserError(
        f"judging prompt {source}: no such file, and no bundled one (these are: {', '.join(sorted(bundled))})"
    )


def prompts_mark(prompts: Sequence[str]) -> str:
    """Hash of several judging prompts' contents: a file of the user's may change under one name."""
    return fingerprint([load_prompt(prompt).digest for prompt in prompts])


def model_mark(config: JudgeConfig) -> str | None:
    """Hash of the judge model's files: their names, sizes, beginnings, middles and ends.

    Weights change everywhere when they change, and reading all of a large judge each round takes minutes. None
    behind an endpoint, whose model nobody here can look at.
    """
    return None if config.endpoint is not None else folder_mark(Path(config.model).expanduser())


def folder_mark(folder: Path) -> str | None:
    """Hash of a model folder's files, as `model_mark`; None where there is no such folder (a hub's id)."""
    if not folder.is_dir():
        return None
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = file.stat().st_size
        total.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            for start in (0, size // 2, max(0, size - _PIECE)):
                stream.seek(start)
                total.update(stream.read(_PIECE))
    return total.hexdigest()[:16]
