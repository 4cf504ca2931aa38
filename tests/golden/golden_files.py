"""Tags for files in the tables `cases/*.yaml`: they make rows, bases, adapters and runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2.nativetypes import NativeEnvironment

from alignloop.config import load_recipe
from alignloop.config.bundled import QUICKSTART
from alignloop.run_dir.layout import enter, locked
from alignloop.run_dir.manifest import Manifest

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
"""A sound recipe: the default for each case."""
FIRST_LAYER = "model.layers.0.self_attn.q_proj.weight"
SYSTEM_REFUSED = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
TEMPLATES = NativeEnvironment()


class Spliced(list[Any]):
    """Rows that are spliced into a list of rows."""


def put(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text("".join(f"{line}\n" for line in _lines(content)), encoding="utf-8")


def _lines(rows: Sequence[Any]) -> Iterator[str]:
    for row in rows:
        if isinstance(row, Spliced):
            yield from _lines(row)
        else:
            yield row if isinstance(row, str) else json.dumps(row)


def edit(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(_edited(json.loads(path.read_text(encoding="utf-8")), values)), encoding="utf-8")


def _edited(found: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`found` with these values, key by key; None removes one."""
    for name, value in values.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = _edited(found.get(name, {}), value) if isinstance(value, dict) else value
    return found


def row(number: int, columns: Mapping[str, Any]) -> dict[str, Any]:
    good = {"prompt": f"Name river number {number}.", "chosen": f"River {number} it is.", "rejected": "No."}
    return {**good, **columns}


def candidate(number: int, columns: Mapping[str, Any]) -> dict[str, Any]:
    """A scored candidate as in the `score` stage's output; `columns` replace its own, None removes one."""
    made = {
        "id": f"c{number}",
        "prompt_id": f"p{number // 2}",
        "messages": [{"role": "user", "content": f"Name river number {number // 2}."}],
        "completion": f"River {number}.",
        "completion_ids": [5, 6, 7],
        "finish_reason": "stop",
        "round": 1,
        "policy": "sha256:0",
        "reward": 0.5,
        "total_reward": 0.5,
    }
    return {name: value for name, value in (made | columns).items() if value is not None}


def numbered(make: Callable[[int, Mapping[str, Any]], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """`!row 3`, or `!row {n: 3, chosen: ...}`."""

    def tag(value: Any) -> dict[str, Any]:
        columns = dict(value) if isinstance(value, dict) else {"n": value}
        return make(int(columns.pop("n")), columns)

    return tag


def rows(value: dict[str, Any]) -> Spliced:
    """`!rows {n: 3, chosen: ...}`: good rows 0 to 2 with these columns; `n: [1, 3]` begins with 1."""
    columns = {name: column for name, column in value.items() if name != "n"}
    return Spliced(row(n, _rendered(columns, n)) for n in _range(value["n"]))


def each(value: dict[str, Any]) -> Spliced:
    """`!each {n: 3, row: {...}}`: this row for n = 0 to 2; texts are Jinja templates that know `n`."""
    return Spliced(_rendered(value["row"], n) for n in _range(value["n"]))


def _range(n: int | list[int]) -> range:
    return range(*n) if isinstance(n, list) else range(n)


def _rendered(value: Any, n: int) -> Any:
    if isinstance(value, dict):
        return {name: _rendered(each, n) for name, each in value.items()}
    if isinstance(value, list):
        return [_rendered(each, n) for each in value]
    return TEMPLATES.from_string(value).render(n=n) if isinstance(value, str) else value


def base(value: Any) -> Callable[[Path], None]:
    """The bundled base: `config` changes config.json, `without` lists missing files, `put` adds or replaces files,
    `change` lists names of `CHANGES`."""

    def make(path: Path) -> None:
        shutil.copytree(QUICKSTART / "base", path)
        edit(path / "config.json", value.get("config", {}))
        for name in value.get("without", ()):
            (path / name).unlink()
        _changed(path, value)

    return make


def adapter(value: dict[str, Any]) -> Callable[[Path], None]:
    """A LoRA adapter of the bundled base, which lies beside it; `weights`: tensors and their shapes."""

    def make(path: Path) -> None:
        shutil.copytree(QUICKSTART / "base", path.parent / "whole")
        values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "../whole", "r": 2}
        put(path / "adapter_config.json", json.dumps(values))
        edit(path / "adapter_config.json", value.get("config", {}))
        _changed(path, value)
        if "weights" in value:
            import torch
            from safetensors.torch import save_file

            tensors = {f"base_model.model.{name}": torch.zeros(shape) for name, shape in value["weights"].items()}
            save_file(tensors, path / "adapter_model.safetensors")

    return make


def run(value: dict[str, Any]) -> Callable[[Path], None]:
    """A run of `SMALL` that has begun and published nothing; `recipe` are changes to its recipe."""

    def make(path: Path) -> None:
        with locked(path):
            enter(path, load_recipe({**SMALL, **value.get("recipe", {})}), rebuild=False)
        for name, values in value.get("edit", {}).items():
            edit(path / name, values)
        _changed(path, value)

    return make


def _changed(path: Path, value: dict[str, Any]) -> None:
    for name, content in value.get("put", {}).items():
        put(path / name, content)
    for name in value.get("change", ()):
        CHANGES[name](path)


def manifest(stage: str) -> str:
    made: dict[str, Any] = {"config": {"heldout_fraction": 0.5, "gone": True}, "fingerprint": "other", "seed": 1}
    made |= {name: {} for name in ("inputs", "outputs", "counts", "metrics", "versions", "seconds")}
    return Manifest(stage=stage, round=0, started="", ended="", **made).model_dump_json()


def _with_tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors")

    return make


def _cut(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _no_template(path: Path) -> None:
    (path / "chat_template.jinja").unlink(missing_ok=True)
    edit(path / "tokenizer_config.json", {"chat_template": None})


def _no_system(path: Path) -> None:
    template = path / "chat_template.jinja"
    template.write_text(SYSTEM_REFUSED + template.read_text(encoding="utf-8"), encoding="utf-8")


def _extra_token(path: Path) -> None:
    """A special token of the tokenizer for which the embedding has no row."""
    tokenizer = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    more = tokenizer["added_tokens"][0] | {"id": 9000, "content": "<|beyond|>", "special": True}
    edit(path / "tokenizer.json", {"added_tokens": [*tokenizer["added_tokens"], more]})


def _head(tensors: dict[str, Any]) -> None:
    tensors["score.weight"] = tensors["model.norm.weight"].new_zeros(1, len(tensors["model.norm.weight"]))


def _no_number(tensors: dict[str, Any]) -> None:
    tensors[FIRST_LAYER].view(-1)[5] = float("nan")


CHANGES: dict[str, Callable[[Path], None]] = {
    "cut": _cut,
    "no_template": _no_template,
    "no_system": _no_system,
    "extra_token": _extra_token,
    "reward_head": _with_tensors(_head),
    "first_layer_nan": _with_tensors(_no_number),
    "first_layer_gone": _with_tensors(lambda tensors: tensors.pop(FIRST_LAYER)),
    "first_layer_cut": _with_tensors(lambda tensors: tensors.update({FIRST_LAYER: tensors[FIRST_LAYER][:8].clone()})),
}
KINDS: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "reward_model": base({"config": {"architectures": ["LlamaForSequenceClassification"]}, "change": ["reward_head"]}),
}
TAGS: dict[str, Callable[[Any], Any]] = {
    "a": lambda name: KINDS[name],
    "bytes": lambda text: text.encode("latin-1"),
    "noise": lambda size: b"\xff" * int(size),
    "text": lambda template: TEMPLATES.from_string(template).render(),
    "row": numbered(row),
    "rows": rows,
    "each": each,
    "candidate": numbered(candidate),
    "base": base,
    "adapter": adapter,
    "run": run,
    "manifest": manifest,
}


class Loader(yaml.SafeLoader):
    """YAML with the tags above."""


def _tagged(loader: Loader, name: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return TAGS[name](loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return TAGS[name](loader.construct_sequence(node, deep=True))
    return TAGS[name](loader.construct_scalar(node))


Loader.add_multi_constructor("!", _tagged)
