"""One stage alone, outside any run: on artifacts given by path."""

from __future__ import annotations

import importlib
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignloop.artifacts import Artifact
from alignloop.config import Recipe
from alignloop.engines.open import open_engine
from alignloop.errors import RunDirError, UserError, did_you_mean
from alignloop.progress import Progress
from alignloop.run_dir.layout import LOCK, holder, locked, run_around
from alignloop.run_dir.manifest import PARTIAL, read_manifest
from alignloop.run_dir.stage import Location, Outputs, Stage, run_stage
from alignloop.stages import average

STAGES = tuple(
    "ingest base bootstrap collect train_reward average sample score select prune train_sft build_pairs train_dpo "
    "train_rloo evaluate measure".split()
)


def run_alone(
    name: str, *, recipe: Recipe, inputs: Sequence[str], out: Path, number: int, rebuild: bool, progress: Progress
) -> Outputs:
    """Run a stage of round `number` and publish it in `out`, as a run would; the engine logs to `<out>.engine.log`.

    `inputs` are `field=path` strings; fields that take several artifacts are repeated, or have a comma between paths.

    Raises:
        UserError: an unknown stage, or inputs it does not take, with those it does.
    """
    stage = stage_named(name)
    values = parse_inputs(stage, inputs)
    stage = average.stage_for(recipe, values) if name == "average" else stage
    out = out.resolve()
    run_dir = run_around(out)
    if run_dir is not None:
        raise UserError(
            f"--out {out}: lies in the run directory {run_dir}, where only its own run publishes; name a folder "
            "outside it"
        )
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and read_manifest(out) is None)):
        raise UserError(f"--out {out}: exists and holds no published stage; name a folder that does not exist yet")
    log_file = out.with_name(out.name + ".engine.log")
    with _owned(out), open_engine(recipe.engine, log_file=log_file, say=progress.say) as engine:
        return run_stage(
            stage,
            stage.settings(recipe),
            values,
            location=Location(out, number, recipe.seed),
            engine=engine,
            progress=progress,
            training=recipe.training,
            rebuild=rebuild,
        )


@contextmanager
def _owned(out: Path) -> Iterator[None]:
    """Lock the stage's folder; a UserError where another process makes the same."""
    partial = out.with_name(out.name + PARTIAL)
    try:
        with locked(partial):
            yield
            (out / LOCK).unlink(missing_ok=True)  # it was published with the rest
    except RunDirError as error:
        if partial.exists() and holder(partial) is not None:
            raise UserError(f"--out {out}: another process makes it ({error})".replace("--run-dir", "--out")) from error
        raise


def stage_named(name: str) -> Stage[Any, Any, Any]:
    """The stage of this name; a UserError where there is none."""
    if name not in STAGES:
        hint = f"{did_you_mean(name, STAGES)} ".lstrip()
        raise UserError(f"no stage is called {name!r}; {hint}stages: {', '.join(STAGES)}")
    module = importlib.import_module(f"alignloop.stages.{name}")
    stage: Stage[Any, Any, Any] = module.REWARD if name == "average" else module.STAGE
    return stage


def parse_inputs(stage: Stage[Any, Any, Any], inputs: Sequence[str]) -> Any:
    """The stage's `Inputs`, from `field=path` strings.

    A UserError where fields are unknown or missing, or nothing lies at a path; it says which inputs the stage takes.
    """
    kinds = _kinds(stage)
    paths: dict[str, list[str]] = {field: [] for field in kinds}
    for text in inputs:
        field, equals, path = text.partition("=")
        if not equals or field not in kinds:
            what = "unknown input" if equals else "expected field=path"
            raise UserError(f"--input {text}: {what}\n{_takes(stage)}")
        paths[field] += [part for part in path.split(",") if part]
    values: dict[str, Any] = {}
    for field, kind in kinds.items():
        found = [_artifact(field, path, kind) for path in paths[field]]
        if typing.get_origin(kind) is tuple or (len(found) > 1 and _takes_many(kind)):
            values[field] = tuple(found)
        elif len(found) > 1:
            raise UserError(f"--input {field}: takes one path, not {len(found)}\n{_takes(stage)}")
        elif found or _optional(kind):
            values[field] = next(iter(found), None)
        else:
            raise UserError(f"{stage.name}: --input {field}=PATH is missing\n{_takes(stage)}")
    return stage.inputs(**values)


def _kinds(stage: Stage[Any, Any, Any]) -> dict[str, Any]:
    """The inputs that are paths, by field."""
    kinds = typing.get_type_hints(stage.inputs)
    return {name: kind for name, kind in kinds.items() if kind != tuple[int, ...]}


def _artifact(field: str, text: str, kind: Any) -> Artifact | str:
    path = Path(text).expanduser()
    if path.exists():
        return Artifact.of(path)
    if str in typing.get_args(kind):
        return text
    raise UserError(f"--input {field}={text}: nothing lies there")


def _takes_many(kind: Any) -> bool:
    return any(typing.get_origin(each) is tuple for each in (kind, *typing.get_args(kind)))


def _optional(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) and type(None) in typing.get_args(kind)


def _takes(stage: Stage[Any, Any, Any]) -> str:
    lines = [f"{stage.name} takes:"]
    for name, kind in _kinds(stage).items():
        many = _takes_many(kind)
        is_needed = typing.get_origin(kind) is not tuple and not _optional(kind)
        note = f"{'one or more paths, ' if many else ''}{'needed' if is_needed else 'may be left out'}"
        lines.append(f"  --input {name}=PATH{'[,PATH...]' if many else ''}  ({note})")
    return "\n".join(lines)
