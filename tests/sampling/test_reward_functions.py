from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from alignloop.errors import UserError
from alignloop.sampling.reward_functions import call_function, load, missing_columns

PROMPTS = [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "bye"}]]
COMPLETIONS = [[{"role": "assistant", "content": "hello"}], [{"role": "assistant", "content": "so long"}]]


def call(function: Any, *, ids: list[str] | None = None, **columns: list[Any]) -> list[float | None]:
    return call_function(function, name="m:f", prompts=PROMPTS, completions=COMPLETIONS, columns=columns, ids=ids)


def test_values_come_back_in_order_and_none_where_it_does_not_apply() -> None:
    def length(completions: list[Any], **columns: Any) -> list[float | None]:
        return [float(len(completion[0]["content"])) for completion in completions]

    assert call(length, topic=["a", "b"]) == [5.0, 7.0]
    assert call(lambda prompts, **columns: (None, 1)) == [None, 1.0]


def test_a_function_gets_the_columns_it_names() -> None:
    def only(completions: list[Any], answer: list[str]) -> list[bool]:
        return [a in c[0]["content"] for c, a in zip(completions, answer, strict=True)]

    assert call(only, answer=["hell", "x"], topic=["a", "b"]) == [1.0, 0.0]

    def everything(**columns: Any) -> list[float]:
        assert set(columns) == {"prompts", "completions", "topic"}
        return [0.0, 0.0]

    assert call(everything, topic=["a", "b"]) == [0.0, 0.0]

    def logging(completions: list[Any], log_metric: Any, trainer_state: Any) -> list[float]:
        log_metric("mean", 1.0)
        assert trainer_state is None
        return [1.0, 2.0]

    assert call(logging) == [1.0, 2.0]
    assert missing_columns(only, ["topic"]) == ["answer"]
    assert missing_columns(only, ["answer"]) == missing_columns(logging, []) == missing_columns(everything, []) == []


def test_async_functions_are_waited_for_and_numpy_and_torch_numbers_are_numbers() -> None:
    async def later(completions: list[Any], **columns: Any) -> list[float]:
        return [1.0, 2.0]

    assert call(later) == [1.0, 2.0]
    import numpy as np

    assert call(lambda **columns: np.array([1.5, 2.5], dtype=np.float32)) == [1.5, 2.5]

    class Element:
        shape = ()

        def item(self) -> float:
            return 3.0

    assert call(lambda **columns: [Element(), 1]) == [3.0, 1.0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        ([1.0, 2.0, 3.0], "returned 3 values for 2 completions"),
        (1.0, "returned 1.0: a list of 2 numbers"),
        (None, "returned None: a list of 2 numbers"),
        ("ab", "returned 'ab'"),
        ({"a": 1, "b": 2}, "returned {'a': 1, 'b': 2}"),
        ([1.0, "good"], "gives row 1 of the batch the value 'good'"),
        ([float("nan"), 1.0], "gives row 0 of the batch the value nan"),
        ([1.0, float("inf")], "gives row 1 of the batch the value inf"),
        ([[1.0], 2.0], r"gives row 0 of the batch the value \[1.0\]"),
        ([1.0, 1j], "gives row 1 of the batch the value 1j"),
    ],
)
def test_a_wrong_answer_names_function_row_and_value(answer: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"reward function m:f .*{said}"):
        call(lambda **columns: answer)
    named = said.replace("row 0 of the batch", "p/1/0").replace("row 1 of the batch", "q/1/0")
    with pytest.raises(UserError, match=f"reward function m:f .*{named}"):
        call(lambda **columns: answer, ids=["p/1/0", "q/1/0"])


def test_what_a_function_raises_is_said_with_its_line() -> None:
    def broken(completions: list[Any], **columns: Any) -> list[float]:
        return [columns["answer"]]

    with pytest.raises(UserError, match=r"m:f raised KeyError: 'answer' \(.*test_reward_functions.py, line \d+\)"):
        call(broken)

    def leaves(**columns: Any) -> list[float]:
        sys.exit("no key")

    with pytest.raises(UserError, match="raised SystemExit: no key"):
        call(leaves)


def test_functions_of_the_working_directory_and_of_installed_packages(module_folder: Path) -> None:
    (module_folder / "mine_a.py").write_text("def f(completions, **columns):\n    return [2.0 for c in completions]\n")
    (module_folder / "kit_a").mkdir()
    (module_folder / "kit_a" / "rules.py").write_text("def g(**columns): return [1.0, 1.0]\n")
    assert call(load("mine_a:f").function) == [2.0, 2.0]
    assert call(load("kit_a.rules:g").function) == [1.0, 1.0]
    assert load("statistics:mean").function is __import__("statistics").mean
    assert load("math:fsum").digest == load("math:fsum").digest  # no source file: still a digest
    (module_folder / "numpy.py").write_text("raise SystemExit('taken')\n")  # takes the place of no installed package
    assert load("numpy:mean").function.__module__.startswith("numpy")


@pytest.mark.parametrize(
    ("source", "name", "said"),
    [
        ("def f(): ...", "mine_b:g", "mine_b.py has no 'g'; it has f"),
        ("def reward(): ...", "mine_b:rewrd", "did you mean reward?"),
        ("f = 3", "mine_b:f", "is of type int: name a function"),
        ("class f: ...", "mine_b:f", "is a class: name a function"),
        ("f = ", "mine_b:f", r"importing mine_b raised SyntaxError: invalid syntax \(.*mine_b.py, line 1\)"),
        ("import no_such_thing", "mine_b:f", "importing mine_b raised ModuleNotFoundError: .*no_such_thing.*line 1"),
        ("1 / 0", "mine_b:f", r"importing mine_b raised ZeroDivisionError: .*mine_b.py, line 1\)"),
        ("raise SystemExit(3)", "mine_b:f", "importing mine_b raised SystemExit: 3"),
        ("", "mine_c:f", "no module 'mine_c' in .*; did you mean mine_b?"),
        ("", "mine_b.inner:f", "no module 'mine_b.inner' in .*; did you mean mine_b?"),
        ("", "no_kit.inner:f", "no module 'no_kit' in"),
    ],
)
def test_what_cannot_be_loaded_is_named(module_folder: Path, source: str, name: str, said: str) -> None:
    (module_folder / "mine_b.py").write_text(source)
    with pytest.raises(UserError, match=f"reward function {name}: .*{said}"):
        load(name)


def digest(module_folder: Path, name: str) -> str:
    """As a process that starts now would find it."""
    load.cache_clear()
    for module in [key for key in sys.modules if key.partition(".")[0] in ("mine_d", "beside_d", "kit_d")]:
        del sys.modules[module]
    return load(name).digest


def test_the_digest_follows_the_source_and_the_users_own_modules_it_uses(module_folder: Path) -> None:
    (module_folder / "beside_d.py").write_text("WEIGHT = 1.0\n")
    (module_folder / "mine_d.py").write_text("import beside_d, math\ndef f(**columns): return [beside_d.WEIGHT]\n")
    (module_folder / "other_d.py").write_text("x = 1\n")
    first = digest(module_folder, "mine_d:f")
    (module_folder / "other_d.py").write_text("x = 2\n")  # not used
    assert digest(module_folder, "mine_d:f") == first
    (module_folder / "beside_d.py").write_text("WEIGHT = 2.0\n")
    second = digest(module_folder, "mine_d:f")
    (module_folder / "mine_d.py").write_text("import beside_d, math\ndef f(**columns): return [-beside_d.WEIGHT]\n")
    third = digest(module_folder, "mine_d:f")
    assert len({first, second, third}) == 3
    (module_folder / "beside_d.py").write_text("WEIGHT = 1.0\n")
    (module_folder / "mine_d.py").write_text("import beside_d, math\ndef f(**columns): return [beside_d.WEIGHT]\n")
    assert digest(module_folder, "mine_d:f") == first


def test_the_digest_follows_a_function_to_where_it_is_written(module_folder: Path) -> None:
    (module_folder / "kit_d").mkdir()
    (module_folder / "kit_d" / "__init__.py").write_text("from kit_d.rules import f\n")
    (module_folder / "kit_d" / "rules.py").write_text("def f(**columns): return [1.0]\n")
    first = digest(module_folder, "kit_d:f")
    (module_folder / "kit_d" / "rules.py").write_text("def f(**columns): return [2.0]\n")
    assert digest(module_folder, "kit_d:f") != first


def test_the_digest_is_that_of_the_code_that_runs(module_folder: Path) -> None:
    (module_folder / "mine_d.py").write_text("def f(**columns): return [1.0]\n")
    before = load("mine_d:f")
    (module_folder / "mine_d.py").write_text("def f(**columns): return [2.0]\n")  # while the run goes on
    assert load("mine_d:f") is before
    assert before.function() == [1.0]


def test_the_stage_is_known_by_the_source_of_its_functions(module_folder: Path) -> None:
    from alignloop.config import load_recipe
    from alignloop.stages.score import settings

    assert settings(load_recipe("quickstart")).sources == {}
    (module_folder / "mine_d.py").write_text("def f(**columns): return [1.0]\n")
    recipe = load_recipe("quickstart", overrides=["score.reward_functions=[{function: 'mine_d:f', weight: 0.5}]"])
    stage = settings(recipe)
    assert stage.sources == {"mine_d:f": load("mine_d:f").digest}
    assert stage.reward_functions[0].weight == 0.5
    (module_folder / "mine_d.py").write_text("def f(**columns): return [3.0]\n")
    assert digest(module_folder, "mine_d:f") != stage.sources["mine_d:f"]
    assert settings(recipe) != stage
