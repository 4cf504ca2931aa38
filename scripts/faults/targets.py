"""What is fuzzed: how an input is made, and what reads it. An input that is refused with our own error is read well."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import yaml
from hypothesis import strategies as st
from pyarrow import parquet

from alignloop.config.bundled import RECIPES
from alignloop.config.load import load_recipe
from alignloop.data.check_files import check_file
from alignloop.data.forms import FORMS
from alignloop.data.reading import Kind, Reading
from alignloop.errors import AlignloopError
from alignloop.judging.prompt_file import BUNDLED, load_prompt
from alignloop.judging.reading import UnreadableAnswer, VerdictReader
from alignloop.records import PreferenceRow
from scripts.faults.odd import PIECES, YAML_PIECES, all_keys, any_value, json_of, odd_bytes, odd_value

EXAMPLES = Path(__file__).resolve().parents[2] / "data_schemas" / "examples"
KINDS: tuple[Kind, ...] = ("preferences", "prompts", "sft")
ROWS = [
    json.loads(line)
    for line in """
{"prompt": "Hi", "chosen": "Hello.", "rejected": "No.", "edited": "Hello!", "strength": "better"}
{"messages": [{"role": "user", "content": "Hi"}], "chosen": "a", "rejected": "b"}
{"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "a"}], "rejected": []}
{"chosen": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "rejected": "z"}
{"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {}}
{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "<think>x</think>a"}]}
{"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: a", "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: b"}
{"instruction": "Do", "input": "it", "output": "done", "history": [["a", "b"]], "system": "s"}
{"prompt": "Hi", "completions": ["a", "b"], "ranking": [2, 1]}
{"prompt": "Hi", "responses": ["a", "b"], "scores": [0.5, 1]}
{"prompt": "Hi", "completion": "a", "label": true}
{"prompt": "Hi", "completion": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}]}
{"question": "Hi", "system": "s", "chosen": "a", "rejected": "b", "tools": []}
{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": "a"}]}
""".strip().splitlines()
]
"""One of each form, some of them wrong."""
TABLES = (
    b"prompt,chosen,rejected\nHi,a,b\n",
    b'prompt\tchosen\trejected\n"H\ti"\ta\tb\n',
    b"question,answer\r\n1,2\r\n",
)
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", "")
MOST_UNPACKED = 50_000
"""Bytes of what is compressed: a target reads each input some 90 times, as every kind and form."""
ANSWERS = (
    {"reason": "shorter", "verdict": "A"},
    {"reason": "", "points": 2},
    {"intentions": ["a", "b"]},
    {"reason": "r", "coarse": "code", "fine": "sql"},
    {"score": 3},
)
Inputs = st.SearchStrategy[tuple[bytes, str]]
"""Bytes, and the name of the file they are put in."""


class Target(NamedTuple):
    """What makes inputs, and what reads them; `read` raises only what is not a refusal."""

    inputs: Inputs
    read: Callable[[Path], None]


def rows_target() -> Target:
    """Data files: rows of every form, as lines, arrays, tables, compressed, Parquet."""
    files = sorted(EXAMPLES.glob("*.jsonl"))
    rows = [*ROWS, *(json.loads(line) for file in files for line in file.read_bytes().splitlines())]
    keys, table = all_keys(rows), io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([ROWS[0], ROWS[0]]), table)
    whole = [json.dumps(rows[:4]).encode(), table.getvalue()]
    seeds = [*(json.dumps(row).encode() + b"\n" for row in rows), *TABLES, *whole]
    some = st.lists(json_of(odd_value(rows, keys) | any_value(keys)), min_size=1, max_size=5)
    content = odd_bytes(seeds) | some.map(b"\n".join) | some.map(lambda lines: b"[" + b",".join(lines) + b"]")
    packed = content.map(lambda made: gzip.compress(made[:MOST_UNPACKED], compresslevel=1, mtime=0))
    packed |= packed.flatmap(lambda made: odd_bytes([made])).filter(_unpacks_to_little)
    inputs = st.tuples(content, st.sampled_from(SUFFIXES).map("rows{}".format))
    inputs |= st.tuples(packed, st.just("rows.jsonl.gz"))
    inputs |= st.tuples(odd_bytes([table.getvalue()], PIECES[:30]) | content, st.just("rows.parquet"))
    return Target(inputs, _read_rows)


def _unpacks_to_little(made: bytes) -> bool:
    """A whole file repeated 200 times takes 200 times its seconds to read: no finding."""
    try:
        with gzip.open(io.BytesIO(made)) as file:
            return len(file.read(MOST_UNPACKED + 1)) <= MOST_UNPACKED
    except (OSError, EOFError, zlib.error):
        return True


def _read_rows(file: Path) -> None:
    for kind in KINDS:
        for form in (None, FORMS[file.stat().st_size % len(FORMS)].name if kind == "preferences" else None):
            with suppress(AlignloopError):
                reading: Reading[PreferenceRow] = Reading(file, kind, form=form)
                for row in reading:
                    row.model_dump_json()
                assert reading.num_read == reading.num_kept + reading.num_rejected, "rows vanished"
    with suppress(AlignloopError):
        check_file(file, workers=1)


def recipes_target() -> Target:
    """Recipes and judging prompts as YAML, and values as `--set` takes them."""
    seeds = [file.read_bytes() for file in sorted([*RECIPES.glob("*.yaml"), *BUNDLED.glob("*.yaml")])]
    values = [yaml.safe_load(seed) for seed in seeds]
    keys = all_keys(values)
    content = odd_bytes(seeds, [*PIECES, *YAML_PIECES]) | json_of(odd_value(values, keys) | any_value(keys))
    return Target(st.tuples(content, st.just("recipe.yaml")), _read_recipe)


def _read_recipe(file: Path) -> None:
    text = file.read_bytes()[:200].decode("utf-8", errors="replace")
    overridden = partial(load_recipe, "quickstart", overrides=[text, f"dpo.beta={text}"])
    for read in (partial(load_recipe, file), partial(load_prompt, str(file)), overridden):
        with suppress(AlignloopError):
            read()


def answers_target() -> Target:
    """Judges' answers to each bundled prompt."""
    readers = [VerdictReader(load_prompt(file.stem)) for file in sorted(BUNDLED.glob("*.yaml"))]
    seeds = [json.dumps(value).encode() for value in ANSWERS]
    seeds += [b"```json\n" + seed + b"\n```" for seed in seeds] + [b"<think>{</think>\n" + seed for seed in seeds]
    before, after = st.sampled_from((b"", b"So:\n", b"```json\n")), st.sampled_from((b"", b"\n```", b" ."))
    content = odd_bytes(seeds) | st.tuples(before, json_of(odd_value(ANSWERS, all_keys(ANSWERS))), after).map(b"".join)

    def read(file: Path) -> None:
        text = file.read_bytes().decode("utf-8", errors="surrogateescape")  # lone surrogates, too
        for reader in readers:
            with suppress(UnreadableAnswer):
                reader.read(text)

    return Target(st.tuples(content, st.just("answer.txt")), read)


TARGETS: dict[str, Callable[[], Target]] = {
    "readers": rows_target,
    "recipes": recipes_target,
    "answers": answers_target,
}
