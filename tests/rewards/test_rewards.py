"""The rewards that ship, each on answers worked by hand, and on columns and answers that are none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from alignloop import rewards
from alignloop.errors import DataError, UserError
from alignloop.records import CandidateRow, Message
from alignloop.sampling.candidate_values import function_values
from alignloop.sampling.reward_functions import call_function, load, missing_columns, require_columns

ENGLISH = "The otter swims in the river and eats fish, which it catches with its paws."
GERMAN = "Der Otter schwimmt im Fluss und frisst Fische, die er mit seinen Pfoten fängt."
PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def values(name: str, *answers: str, **columns: Any) -> list[float | None]:
    """Of answers to one prompt, called as TRL calls a function; a column has one value for all of them."""
    return call_function(
        getattr(rewards, name),
        name=f"alignloop.rewards:{name}",
        prompts=[[{"role": "user", "content": "Where?"}]] * len(answers),
        completions=[[{"role": "assistant", "content": answer}] for answer in answers],
        columns={column: [value] * len(answers) for column, value in columns.items()},
    )


def test_exact_match_is_of_the_whole_answer_but_for_case_spaces_and_edges() -> None:
    answers = ("The  River.", "**the river**", "the river Alder", "<think>\nThe cave?\n</think>\n\nThe river", "")
    assert values("exact_match", *answers, answer="The river") == [1.0, 1.0, 0.0, 1.0, 0.0]
    # A full-width 72, and one of several; 72.0 is another text than 72.
    assert values("exact_match", "\uff17\uff12", "72.0", answer=72) == [1.0, 0.0]
    assert values("exact_match", "a burrow", "a den", answer=["a den", "a holt"]) == [0.0, 1.0]
    assert values("exact_match", "-5", "5", answer="-5") == [1.0, 0.0]


def test_math_equal_is_trls_accuracy_reward_on_the_answer_alone() -> None:
    from trl.rewards import accuracy_reward

    answers = [r"\boxed{\frac{2}{6}}", r"So \boxed{0.5}.", "1/3", r"\boxed{\boxed{"]
    found = values("math_equal", *answers, solution=r"\frac{1}{3}")
    assert found == [1.0, 0.0, 0.0, 0.0]
    completions = [[{"role": "assistant", "content": answer}] for answer in answers]
    assert found == accuracy_reward(completions, [r"\frac{1}{3}"] * 4)
    # A right thought before a wrong answer; a number as solution; a solution that is no mathematics.
    assert values("math_equal", "<think>\\boxed{72}</think>\\boxed{71}", r"\boxed{72}", solution=72) == [0.0, 1.0]
    assert values("math_equal", r"\boxed{72}", solution="no number") == [None]


def test_math_equal_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time limits are signals', which another thread does not get: there an answer may take for ever."""
    found: list[str] = []

    def ask() -> None:
        with pytest.raises(UserError) as caught:
            values("math_equal", r"\boxed{1}", solution="1")
        found.append(str(caught.value))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert "main thread" in found[0]
    monkeypatch.setattr("alignloop.rewards.mathematics.find_spec", lambda name: None)
    ask()
    assert "pip install math-verify" in found[1]


def test_fits_schema() -> None:
    answers = (
        '{"age": 7}',
        'Here:\n```json\n{"age": 7}\n```',
        '{"age": "7"}',
        "{}",
        '{"age": NaN}',
        "seven",
        "[" * 100_000,
        '{"age": ' + "9" * 5000 + "}",
    )
    expected = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert values("fits_schema", *answers, schema=PERSON) == expected
    assert values("fits_schema", answers[0], schema='{"type": "object"}') == [1.0]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "no JSON"),
        ([1], "a JSON Schema is an object"),
        ({"type": "objet"}, "no JSON Schema"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "references must lead within it"),
    ],
)
def test_a_column_that_is_no_schema_is_named(schema: Any, message: str) -> None:
    with pytest.raises(
        DataError, match=f"alignloop.rewards:fits_schema: prompt 'Where\\?': column schema: .*{message}"
    ):
        values("fits_schema", "1", schema=schema)


def test_code_parses() -> None:
    good, bad = "```python\nx = 1\n```", "Try:\n```py\nx = (\n```"
    in_list = "1. First:\n   ```python\n   for i in x:\n       print(i)\n   ```"
    as_json, cut, plain = '```json\n{"a": 1}\n```', "```python\nx = 1", "```\nx = 1\n```"
    assert values("code_parses", good, bad, good + "\n" + bad, in_list, as_json, cut, "No code.", plain) == [
        1.0,
        0.0,
        0.0,
        1.0,
        1.0,
        1.0,
        None,
        None,
    ]
    asked = values("code_parses", good, as_json, plain, "No code.", "```python\n\n```", code_language="python")
    assert asked == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert values("code_parses", "```\n{,}\n```", "```\n[]\n```", code_language="json") == [0.0, 1.0]
    with pytest.raises(DataError, match="code_language: 'rust': python or json is known"):
        values("code_parses", good, code_language="rust")


@pytest.mark.parametrize(
    "code",
    ["(" * 10_000, "-" * 100_000 + "1", "a" + ".a" * 100_000, "9" * 10_000, "x = '\0'", "x = '\ud800'", "if 1:"],
)
def test_code_that_no_parser_takes_does_not_parse(code: str) -> None:
    assert values("code_parses", f"```python\n{code}\n```") == [0.0]


def test_no_code_of_a_model_is_run(tmp_path: Any) -> None:
    file = tmp_path / "made"
    answer = f"```python\nopen({str(file)!r}, 'w')\n```"
    assert values("code_parses", answer, code_language="python") == [1.0]
    assert not file.exists()


def test_words_are_counted() -> None:
    assert values("at_least_words", "one two", "one, two, three!", "水獭游泳", min_words=3) == [0.0, 1.0, 1.0]
    assert values("at_most_words", "one two", "one two three", "", max_words=2) == [1.0, 0.0, 1.0]
    for limit in ("3", -1, True, 2.5):
        with pytest.raises(DataError, match=r"column max_words: .*: a whole number of words is wanted"):
            values("at_most_words", "one", max_words=limit)


def test_in_language_guesses_at_the_prose() -> None:
    code = "```python\nfor word in words: print(word)\n```\n"
    answers = (ENGLISH, GERMAN, code + GERMAN, code, "17", "")
    assert values("in_language", *answers, language="de") == [0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert values("in_language", ENGLISH, language="en-GB") == [1.0]
    assert values("in_language", "水獭在河里游泳,它用爪子捉鱼吃。", language="zh") == [1.0]
    with pytest.raises(DataError, match="column language: 'english': langdetect knows af, ar"):
        values("in_language", ENGLISH, language="english")


def test_not_repetitive_is_one_less_the_share_of_repeats() -> None:
    # "a b a b a b": abab, baba, abab: one of three stood there before.
    assert values("not_repetitive", "a b a b a b", ENGLISH, "") == pytest.approx([2 / 3, 1.0, 1.0])


def test_matches_regex() -> None:
    assert values("matches_regex", "Yes: 12", "yes", regex=r"^Yes: \d+$") == [1.0, 0.0]
    assert values("matches_regex", "Yes 12", "Yes", regex=["(?i)yes", r"\d"]) == [1.0, 0.0]
    for pattern, message in (("(", "no regular expression"), ([], "a pattern or a list of them"), (7, "a pattern")):
        with pytest.raises(DataError, match=message):
            values("matches_regex", "Yes", regex=pattern)


def test_a_pattern_that_takes_for_ever_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignloop.rewards.texts.MATCH_SECONDS", 0.1)
    with pytest.raises(DataError, match=r"prompt 'Where\?': column regex: '\^\(x|xx\)\+\$' takes over 0.1 s"):
        values("matches_regex", "x" * 60 + "!", regex="^(x|xx)+$")


def test_instructions_followed_is_the_share_of_them() -> None:
    row = {"instruction_id_list": ["detectable_format:title", "punctuation:no_comma"], "kwargs": [{}, {}]}
    answers = (
        "<<Otter>>\nIt swims.",
        "It swims.",
        "It swims, and eats.",
        "<think>\nA, b.\n</think>\n\n<<O>>\nIt swims.",
    )
    assert values("instructions_followed", *answers, **row) == [1.0, 0.5, 0.0, 1.0]
    # As `datasets` has them: every argument that any row has, null where a row has it not.
    of_words = {"num_words": 3, "relation": "at least", "num_bullets": None}
    row = {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [of_words]}
    assert values("instructions_followed", "one two three", "one two", **row) == [1.0, 0.0]
    assert values("instructions_followed", "one", instruction_id_list=[], kwargs=[]) == [None]


@pytest.mark.parametrize(
    ("ids", "arguments", "message"),
    [
        (["poetry:rhyme"], [{}], "no instruction type 'poetry:rhyme'"),
        (["punctuation:no_comma", "detectable_format:title"], [{}], "2 instructions but 1 kwargs"),
        (["punctuation:no_comma"], None, "1 instructions but 0 kwargs"),
        (["punctuation:no_comma"], [{"words": 3}], "do not fit"),
        (["punctuation:no_comma"], ["none"], "do not fit"),
    ],
)
def test_instructions_that_are_none_are_named(ids: list[str], arguments: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"instructions_followed: prompt 'Where\\?': .*{message}"):
        values("instructions_followed", "It swims.", instruction_id_list=ids, kwargs=arguments)


def candidate(row_id: str, text: str, **meta: Any) -> CandidateRow:
    return CandidateRow(
        id=row_id,
        prompt_id=row_id,
        messages=[Message(role="user", content="Where?")],
        completion=text,
        completion_ids=[1],
        finish_reason="stop",
        round=1,
        policy="sha256:x",
        meta=meta,
    )


COLUMNS = {
    "at_least_words": ["min_words"],
    "at_most_words": ["max_words"],
    "code_parses": [],
    "exact_match": ["answer"],
    "fits_schema": ["schema"],
    "in_language": ["language"],
    "instructions_followed": ["instruction_id_list"],
    "matches_regex": ["regex"],
    "math_equal": ["solution"],
    "not_repetitive": [],
}


@pytest.mark.parametrize("name", rewards.__all__)
def test_a_function_names_its_column_and_says_nothing_of_rows_without_it(name: str) -> None:
    function: Callable[..., Any] = load(f"alignloop.rewards:{name}").function
    assert missing_columns(function, []) == COLUMNS[name]
    for column in COLUMNS[name]:
        assert values(name, ENGLISH, **{column: None}) == [None]
        with pytest.raises(UserError, match=f"alignloop.rewards:{name} wants {column}, .*columns: topic.* - add it to"):
            require_columns(f"alignloop.rewards:{name}", [{"topic": "otter", column: None}])
        require_columns(f"alignloop.rewards:{name}", [{"topic": "otter"}, {column: 1}])


def test_the_digest_is_of_the_folder_alone() -> None:
    """Another part of alignloop may change without the rewards of a run being others."""
    from alignloop.sampling.reward_functions import _own_modules

    names = {module.__name__.removeprefix("alignloop.rewards") for module in _own_modules(rewards)}
    assert names == {"", ".instructions", ".mathematics", ".rows", ".structure", ".texts"}
    assert load("alignloop.rewards:exact_match").digest.startswith("sha256:")


def test_trls_rewards_go_by_their_names_and_are_asked_where_they_apply() -> None:
    solved = {"solution": "2"}
    right, wrong = candidate("right", r"\boxed{2}", **solved), candidate("wrong", r"\boxed{3}", **solved)
    unknown = candidate("unknown", r"\boxed{2}")
    assert function_values("trl.rewards:accuracy_reward", [[right, wrong], [unknown]]) == {"right": 1.0, "wrong": 0.0}
    thought = candidate("thought", "<think>\nHm.\n</think>\nYes.")
    found = function_values("trl.rewards:think_format_reward", [[thought, unknown]])
    assert found == {"thought": 1.0, "unknown": 0.0}
    with pytest.raises(UserError, match=r"trl\.rewards:accuracy_reward wants solution"):
        require_columns("trl.rewards:accuracy_reward", [{"answer": "2"}])
