"""A case of the golden findings: the files that lie there, and the command that must find what is wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignloop.config.bundled import QUICKSTART
from alignloop.config.yaml_values import dump_yaml

Content = str | bytes | Sequence[Any] | Callable[[Path], object]
"""A file's text or bytes, its rows as JSON lines (a text is a line as it stands), or what makes it at its path."""
SMALL: dict[str, Any] = {
    "base": "quickstart",
    "preferences": "good.jsonl",
    "sample": {"max_tokens": 64},
    "evaluate": {"include_path": "quickstart", "tasks": ["mmlu"]},
    "best_metric": "mmlu/acc",
    "engine": {"max_model_len": 384, "name": "transformers"},
    **{stage: {"max_length": 384} for stage in ("reward", "sft", "dpo")},
}
"""What a case's recipe says where it says nothing else: a sound one."""


@dataclass(frozen=True)
class Case:
    """One command on files that are made for it.

    Attributes:
        command: the words after `alignloop`.
        files: name -> content; beside them lie `good.jsonl` and, where `recipe` is set, `mine.yaml`.
        recipe: what `mine.yaml` says beside `SMALL`.
        during: what holds while the command runs, called with the folder.
    """

    command: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    during: Callable[[Path], AbstractContextManager[object]] = nullcontext

    def make(self, folder: Path) -> None:
        """Write its files."""
        put(folder / "good.jsonl", [row(number) for number in range(40)])
        for name, content in self.files.items():
            put(folder / name, content)
        if self.recipe is not None:
            put(folder / "mine.yaml", dump_yaml({**SMALL, **self.recipe}))


def plan(recipe: Mapping[str, Any], *words: str, **files: Content) -> Case:
    """`alignloop plan mine.yaml`; the files by name, with `__` for the dot."""
    return Case(("plan", "mine.yaml", *words), {name.replace("__", "."): files[name] for name in files}, recipe)


def call(*words: str, **files: Content) -> Case:
    """Any command without a recipe of its own."""
    return Case(words, {name.replace("__", "."): files[name] for name in files})


def row(number: int, **columns: Any) -> dict[str, Any]:
    """A preference; `columns` in place of its own."""
    good = {"prompt": f"Name river number {number}.", "chosen": f"River {number} it is.", "rejected": "No."}
    return {**good, **columns}


def put(path: Path, content: Content) -> None:
    """Make what a case says of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        lines = (line if isinstance(line, str) else json.dumps(line) for line in content)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def folder(path: Path) -> None:
    """An empty folder."""
    path.mkdir(parents=True)


def base(*changes: Callable[[Path], object], **config: Any) -> Callable[[Path], None]:
    """The bundled base with some values of config.json changed (None: taken out), and what `changes` do to it."""

    def make(path: Path) -> None:
        shutil.copytree(QUICKSTART / "base", path)
        edit(path / "config.json", **config)
        for change in changes:
            change(path)

    return make


def without(*names: str) -> Callable[[Path], None]:
    """Removes files of a folder."""

    def change(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return change


def having(name: str, content: Content) -> Callable[[Path], None]:
    """Puts a file in a folder."""
    return lambda path: put(path / name, content)


def edit(path: Path, **values: Any) -> None:
    """Change values of a JSON file; None takes one out."""
    found = json.loads(path.read_text(encoding="utf-8")) | values
    kept = {name: value for name, value in found.items() if value is not None or name not in values}
    path.write_text(json.dumps(kept), encoding="utf-8")


def no_template(path: Path) -> None:
    """Takes the chat template out of a base."""
    (path / "chat_template.jinja").unlink(missing_ok=True)
    edit(path / "tokenizer_config.json", chat_template=None)
