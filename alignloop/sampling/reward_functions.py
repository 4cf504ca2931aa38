"""Reward functions, those that ship and the user's own, called the way TRL's GRPO trainer calls one.

"module:function" --load--> function, digest of its source
prompts, completions, columns --call_function--> one value a completion, or None where it does not apply
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from alignloop.errors import AlignloopError, UserError, did_you_mean

_TRAINER_ONLY: Mapping[str, Any] = {
    "trainer_state": None,
    "log_extra": lambda *args, **options: None,
    "log_metric": lambda *args, **options: None,
}
"""What TRL's trainer passes beside the columns; there is no trainer here, so only to functions that name it."""


@dataclass(frozen=True)
class LoadedFunction:
    """A function, and the digest of what its values depend on.

    That is the source of its module and of the modules of the same package (of alignloop: of the same folder) or of the
    working directory that this one uses, directly or not, as it was when it was loaded. Files the function reads do
    not count.
    """

    function: Callable[..., Any]
    digest: str


@cache
def load(name: str) -> LoadedFunction:
    """The function `module:function` names, imported once a process; the working directory is importable.

    Raises:
        UserError: no such module or attribute, the module cannot be imported, or the attribute cannot be called.
    """
    module_name, _, attribute = name.partition(":")
    module = _import(module_name, name=name)
    where = getattr(module, "__file__", None) or "built in"
    if not hasattr(module, attribute):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = did_you_mean(attribute, known) or f"it has {', '.join(known) or 'no function'}"
        raise UserError(f"reward function {name}: {where} has no {attribute!r}; {hint}")
    function = getattr(module, attribute)
    if not callable(function) or inspect.isclass(function):
        what = "a class" if inspect.isclass(function) else f"of type {type(function).__name__}"
        raise UserError(f"reward function {name}: {attribute} in {where} is {what}: name a function")
    return LoadedFunction(function, _digest(module, function))


def missing_columns(function: Callable[..., Any], columns: Sequence[str]) -> list[str]:
    """Required arguments that no column of the prompts holds."""
    known = {"prompts", "completions", "completion_ids", *columns, *_TRAINER_ONLY}
    fillable = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        parameter.name
        for parameter in _parameters(function).values()
        if parameter.kind in fillable and parameter.default is parameter.empty and parameter.name not in known
    ]


def require_columns(name: str, metas: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError where the function cannot be loaded, or no prompt holds a column that it requires.

    `metas` are the columns of each prompt; nothing is refused where there is no prompt yet.
    """
    columns = sorted({key for meta in metas for key, value in meta.items() if value is not None})
    missing = missing_columns(load(name).function, columns)
    if missing and metas:
        own = "" if _is_ours(name.partition(":")[0]) else ", or give the parameter a default"
        raise UserError(
            f"reward function {name} wants {', '.join(missing)}, which is no column of the prompts (columns: "
            f"{', '.join(columns) or 'none'}) - add it to them{own}"
        )


def call_function(
    function: Callable[..., Any],
    *,
    name: str,
    prompts: list[list[dict[str, Any]]],
    completions: list[list[dict[str, Any]]],
    columns: dict[str, list[Any]],
    ids: Sequence[str] | None = None,
) -> list[float | None]:
    """One batch by TRL's GRPO convention: everything by keyword, one value a completion back.

    Columns that a function without `**kwargs` does not name are not passed to it. An `async` function is awaited.

    Args:
        name, ids: of the function, as in the recipe, and of the B rows: for messages.
        prompts: B dialogs as message dicts.
        completions: B lists of one assistant message.
        columns: further columns of the rows, B values each.

    Raises:
        UserError: the function raises, or returns anything but B finite numbers or Nones; names function, row, value.
    """
    try:
        answer = function(**_accepted(function, {"prompts": prompts, "completions": completions, **columns}))
        if inspect.isawaitable(answer):
            # In a thread of its own: a notebook's thread runs an event loop already.
            with ThreadPoolExecutor(max_workers=1) as thread:
                answer = thread.submit(asyncio.run, _awaited(answer)).result()
    except AlignloopError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"reward function {name} raised {_in_words(error)}") from error
    if isinstance(answer, str | bytes | Mapping) or not hasattr(answer, "__iter__"):
        raise UserError(f"reward function {name} returned {_short(answer)}: a list of {len(prompts)} numbers is wanted")
    values = list(answer)
    if len(values) != len(prompts):
        raise UserError(
            f"reward function {name} returned {len(values)} values for {len(prompts)} completions: it must return one "
            "for each, None where it does not apply"
        )
    rows = ids if ids is not None else [f"row {index} of the batch" for index in range(len(values))]
    return [_checked(value, name=name, row=row) for value, row in zip(values, rows, strict=True)]


def _import(module_name: str, *, name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # last: no file of the user's takes the place of an installed package
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except AlignloopError:
        raise
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (module_name == missing or module_name.startswith(f"{missing}.")):
            hint = did_you_mean(missing, [path.stem for path in Path(folder).glob("*.py")])
            raise UserError(
                f"reward function {name}: no module {missing!r} in {folder} or among the installed packages"
                + (f"; {hint}" if hint else "")
            ) from None
        raise UserError(f"reward function {name}: importing {module_name} raised {_in_words(error)}") from error


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions written in C tell none
        return {"columns": inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD)}


def _accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    parameters = _parameters(function)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    wanted = parameters.keys() | (arguments.keys() if takes_all else set())
    return {name: value for name, value in {**_TRAINER_ONLY, **arguments}.items() if name in wanted}


async def _awaited(answer: Any) -> Any:
    return await answer


def _checked(value: Any, *, name: str, row: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, Real) and getattr(value, "shape", None) == ():
        value = value.item()  # a tensor's element
    if not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(
            f"reward function {name} gives {row} the value {_short(value)}: a finite number is wanted, or None where "
            "it does not apply"
        )
    return float(value)


def _digest(module: ModuleType, function: Callable[..., Any]) -> str:
    """`sha256:<hex>` of the names and bytes of the source files."""
    defined_in = getattr(function, "__module__", None) or type(function).__module__
    total = hashlib.sha256()
    modules = {m.__name__: m for start in (module, sys.modules.get(defined_in, module)) for m in _own_modules(start)}
    for name in sorted(modules):
        file = _file(modules[name])
        total.update(f"{name}\0".encode() + (file.read_bytes() if file is not None else b""))
    return f"sha256:{total.hexdigest()}"


def _own_modules(first: ModuleType) -> Iterator[ModuleType]:
    """A module and those it uses that are of its package or lie in the working directory."""
    package = _package(first.__name__)
    queue, seen = [first], {first.__name__}
    for module in queue:
        yield module
        for value in list(vars(module).values()):
            other = sys.modules.get(_home(value))
            if other is None or other.__name__ in seen:
                continue
            if _package(other.__name__) == package or (_is_local(other) and not _is_ours(other.__name__)):
                seen.add(other.__name__)
                queue.append(other)


def _package(name: str) -> str:
    """The package that a module is of; of alignloop, whose packages change each for itself, the folder in it."""
    return ".".join(name.split(".")[: 2 if _is_ours(name) else 1])


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == __name__.partition(".")[0]


def _home(value: Any) -> str:
    """The name of the module that a value is, or is defined in."""
    if isinstance(value, ModuleType):
        return value.__name__
    return str(value.__module__ if isinstance(value, FunctionType | type) else type(value).__module__)


def _is_local(module: ModuleType) -> bool:
    file = _file(module)
    return file is not None and file.is_relative_to(Path.cwd()) and "site-packages" not in file.parts


def _file(module: ModuleType) -> Path | None:
    name = getattr(module, "__file__", None)
    return Path(name).resolve() if name and Path(name).is_file() else None


def _in_words(error: BaseException) -> str:
    """Kind, text and the deepest line in the traceback that is not ours."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and Path(frame.filename) != Path(__file__)
    ]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
