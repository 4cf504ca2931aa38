"""`alignloop inspect`: what is shown is what trains, and it can be read with and without colour."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from alignloop.config import load_recipe
from alignloop.config.bundled import QUICKSTART, resolve_base
from alignloop.data.jsonl import dump_jsonl
from alignloop.look.rows import find_row
from alignloop.look.screen import print_views
from alignloop.look.setting import find_setting
from alignloop.look.views import views_of
from alignloop.packing.batch import collate
from alignloop.packing.build import ranked_groups, sft_groups
from alignloop.packing.layout import pack
from alignloop.records import CandidateRow, DroppedRow, Message, PairRow, PromptRow, SelectedRow, SftRow, Source
from alignloop.run_dir.layout import enter, locked

DATA = Path(__file__).resolve().parents[2] / "../shared/data/preferences"
DIALOG = [
    Message(role="system", content="Be brief."),
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Hello."),
    Message(role="user", content="Name a river."),
]
PAIR = PairRow(
    id="p1", messages=DIALOG, chosen="The Elbe.\nIt is long.", rejected="A goat.", origin="on_policy",
    source=Source(file="round-01"),
)  # fmt: skip
GOOD = {"prompt": "Name a river.", "chosen": "The Elbe.\nIt is long.", "rejected": "A goat.", "strength": "better"}
PROMPT = PromptRow(id="q", messages=DIALOG, source=Source(file="x")).model_dump_json()

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def inspect(alignloop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Call:
    """The verb off a terminal: (exit code, out, err)."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return lambda *arguments: astuple(alignloop("inspect", *arguments))


@pytest.fixture
def shown(inspect: Call) -> Callable[..., str]:
    """What the verb prints where nothing is wrong."""

    def call(*arguments: str | Path) -> str:
        code, out, err = inspect(*arguments)
        assert (code, err) == (0, "")
        return out

    return call


@pytest.fixture
def refused(inspect: Call) -> Callable[..., str]:
    def call(*arguments: str | Path) -> str:
        code, out, err = inspect(*arguments)
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        return err

    return call


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def sft_row(answer: str) -> SftRow:
    messages = [*DIALOG, Message(role="assistant", content=answer)]
    return SftRow(id="s", messages=messages, origin="best_of_k", source=Source(file="x"))


def section(out: str, objective: str) -> list[str]:
    (found,) = [part for part in out.split("\n\n") if part.startswith(objective)]
    return found.splitlines()


def test_a_preference_under_all_objectives(shown: Callable[..., str], tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", {**GOOD, "edited": "The Elbe is a river."})
    out = shown("d.jsonl:1")
    assert out.startswith("row      d.jsonl:1\n         preference (canonical), id ")
    assert "marks    [trained]  masked  {formatting}  «reward»  · between tokens  ↵ newline" in out
    assert section(out, "dpo") == [
        "dpo      sums of both without formatting tokens; NLL of chosen x 0.2",
        "  prompt     17 tokens, masked",
        "  <|begin_of_text|>·<|start_header_id|>·user·<|end_header_id|>·↵",
        "  ↵",
        "  N·ame· a· river·.·<|eot_id|>·<|start_header_id|>·assistant",
        "  <|end_header_id|>·↵",
        "  ↵",
        "  chosen     9 tokens: 8 in its DPO sum, 9 in the NLL; 1 formatting",
        "  [The· E·l·be· is· a· river·.]{<|eot_id|>}",
        "  rejected   4 tokens: 3 in its DPO sum; 1 formatting",
        "  [A· goat·.]{<|eot_id|>}",
    ]
    assert section(out, "sft")[-2:] == [
        "  target     9 tokens, 9 trained, 1 of them formatting",
        "  [The· E·l·be· is· a· river·.]{<|eot_id|>}",
    ]
    reward = section(out, "reward")
    assert [line.split()[0] for line in reward if "read at the last" in line] == ["edited", "chosen", "rejected"]
    assert reward[-1] == "  A· goat·.·«<|eot_id|>»"


def test_a_sampled_row_is_shown_as_it_trains(shown: Callable[..., str], tmp_path: Path) -> None:
    """A cut one without an end of turn, and in the ids that were sampled, not in those of its text."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(QUICKSTART / "base")
    ids = [index for letter in "A goat and" for index in tokenizer.encode(letter, add_special_tokens=False)]
    row = SelectedRow(
        id="p/1/0", prompt_id="p", messages=DIALOG, completion="A goat and", completion_ids=ids, finish_reason="length",
        reward=1.0, random_reward=0.0, rewards=[1.0], pass_rate=1.0, round=1, policy="sha256:x",
    )  # fmt: skip
    whole = row.model_copy(update={"id": "p/1/1", "completion": "A.", "completion_ids": None, "finish_reason": "stop"})
    candidate = CandidateRow(
        id="q/1/0", prompt_id="q", messages=DIALOG, completion="A.", completion_ids=[38, 19], finish_reason="length",
        round=1, policy="x",
    )  # fmt: skip
    dump_jsonl(tmp_path / "selected.jsonl", [row, whole])
    dump_jsonl(tmp_path / "candidates.jsonl", [candidate])
    assert section(shown("selected.jsonl:1"), "sft")[-2:] == [
        "  target     10 tokens, 10 trained, 0 of them formatting",
        "  [A· ·g·o·a·t· ·a·n·d]",
    ]
    assert "[A·.]{<|eot_id|>}" in shown("selected.jsonl:p/1/1")
    # The reward of a cut candidate is read at its last sampled token.
    assert shown("candidates.jsonl:1").splitlines()[-1] == "  A·«.»"


@pytest.mark.parametrize("train_on", ["last_assistant", "all_assistant"])
def test_what_is_shown_trained_is_what_a_training_batch_holds(tmp_path: Path, train_on: Any) -> None:
    """Against the tensors the trainer makes: the trained targets, in order, with their formatting flags."""
    setting = find_setting(tmp_path / "x", base=None, chat_template=None, config=None)
    sft = sft_row("The Elbe.")
    for row, objective, groups in (
        (PAIR, "dpo", ranked_groups([PAIR], setting.chat)),
        (sft, "sft", sft_groups([sft], setting.chat, train_on=train_on)),
    ):
        batch = collate(pack(groups, row_tokens=8), pad_token_id=0, mode="packed")
        (view,) = views_of(row, setting, objective=objective, train_on=train_on)
        trained = [token for part in view.parts for token in part.tokens if token.use in ("trained", "formatting")]
        assert [token.token_id for token in trained] == batch.target_ids.tolist()
        assert [token.use == "formatting" for token in trained] == batch.formatting_mask.tolist()
        assert trained


def test_earlier_answers_train_where_asked(shown: Callable[..., str], tmp_path: Path) -> None:
    dump_jsonl(tmp_path / "sft.jsonl", [sft_row("Yes.")])
    assert "H·ell·o·.·<|eot_id|>·<|start_header_id|>" in shown("sft.jsonl:1")
    every = shown("sft.jsonl:1", "--train-on", "all_assistant")
    assert "cross-entropy on all answers" in every
    assert "[H·ell·o·.·<|eot_id|>]·<|start_header_id|>" in every


def test_table_of_ids_and_positions(shown: Callable[..., str], tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", {**GOOD, "prompt": "Hi", "chosen": "A.", "rejected": "B."})
    out = shown("d.jsonl:1", "--objective", "dpo", "--ids")
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d+ +\d+ +\d+ +\d ", line)]
    assert [int(row[0]) for row in rows] == list(range(len(rows)))
    # Prompt of 14 tokens: 13 shared, and its last one at the head of each completion, where positions restart.
    assert [(int(row[2]), int(row[3])) for row in rows[12:]] == [
        (12, 0), (13, 1), (14, 1), (15, 1), (16, 1), (13, 2), (14, 2), (15, 2), (16, 2),
    ]  # fmt: skip
    assert rows[13][4:7] == ["chosen,", "copy", "↵"]
    assert rows[17][4:] == ["rejected,", "copy", "↵"]
    assert rows[16][4:] == ["chosen,", "formatting", "<|eot_id|>"]


def test_rows_of_a_run(
    shown: Callable[..., str], refused: Callable[..., str], alignloop: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "mine"
    with locked(run):
        enter(run, load_recipe("quickstart", overrides=["sft.train_on=all_assistant"]), rebuild=False)
    stage = run / "round-01" / "09_build_pairs"
    stage.mkdir(parents=True)
    dump_jsonl(stage / "pairs.jsonl", [PAIR, PAIR.model_copy(update={"id": 'Größe "7"'})])
    dump_jsonl(stage / "dropped.jsonl", [DroppedRow(id="d9", stage="build_pairs", rule="gap", reason="too narrow")])
    by_line, by_id = shown(stage / "pairs.jsonl:1"), shown("runs/mine:p1")
    assert "pair, id p1" in by_line
    assert by_id.split("\n", 1)[1] == by_line.split("\n", 1)[1]
    assert "runs/mine/round-01/09_build_pairs/pairs.jsonl:1" in by_id
    assert "pairs.jsonl:2" in shown('runs/mine:Größe "7"')
    assert "d9 was dropped by build_pairs (gap): too narrow" in refused("runs/mine:d9")
    assert "none of its 2 .jsonl files holds a row with the id 'nobody'" in refused("runs/mine:nobody")
    # A run that has prepared its base: a run alone publishes in its directory.
    base = Path(resolve_base("quickstart")).resolve()
    assert alignloop("stage", "base", "--out", tmp_path / "prepared", "--input", f"base={base}").code == 0
    shutil.copytree(tmp_path / "prepared", run / "round-00" / "02_base")
    assert "round-00/02_base/checkpoint" in shown("runs/mine:p1")
    assert "base     quickstart" in shown("runs/mine:p1", "--base", "quickstart")


def test_a_folder_that_cannot_be_read_is_named(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump_jsonl(tmp_path / "pairs.jsonl", [PAIR])
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path: Any) -> Any:  # permissions do not bind the user that tests may run as
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert "closed: cannot be read: Permission denied. Check its permissions" in refused(".:p1")


def test_rows_left_out_are_marked(shown: Callable[..., str], tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", GOOD, {**GOOD, "chosen": "river " * 400, "strength": "slightly_better"})
    assert "LEFT OUT" not in shown("d.jsonl:1")
    out = " ".join(shown("d.jsonl:2").split())
    assert re.search(r"LEFT OUT of training: prompt and longest completion have \d+ tokens, max_length is \d+", out)
    weak = shown("d.jsonl:2", "--base", "quickstart")  # the defaults: max_length 2048
    reward, sft, dpo = (" ".join(" ".join(section(weak, name)).split()) for name in ("reward", "sft", "dpo"))
    assert "its strength is slightly_better; reward.strengths names" in reward
    assert "pairs.strengths names significantly_better, better" in dpo
    assert "LEFT OUT" not in sft


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["d.jsonl:2"], "d.jsonl, line 2: chosen and rejected are the same text"),
        (["d.jsonl:3"], "d.jsonl, line 3: the line is blank"),
        (["d.jsonl:4"], "d.jsonl, line 4: invalid JSON at column"),
        (["d.jsonl:7"], "d.jsonl: has no line 7; its rows are lines 1 to 5"),
        (["d.jsonl:0"], "d.jsonl: lines are counted from 1, there is no line 0; its rows are lines 1 to 5"),
        (["d.jsonl:-1"], "d.jsonl: lines are counted from 1, there is no line -1"),
        (["d.jsonl:²"], "its one readable row has another id than '²'"),
        (["d.jsonl:" + "9" * 5000], "its one readable row has another id than '999"),
        (["d.jsonl:5"], "this is a prompt without a completion"),
        (["d.jsonl:nobody"], "its one readable row has another id than 'nobody' (3 more cannot be read)"),
        (["pair.jsonl:1", "--objective", "reward"], "rows of this kind serve dpo, not reward"),
        (["d.jsonl:1", "--base", "broken"], "differs from what its dialogs have before an answer"),
        (["d.jsonl:1", "--base", "bare"], "has no chat template of its own - set chat_template"),
        (["d.jsonl:1", "--base", "bare", "--chat-template", "lama3"], "did you mean llama3 or"),
        (["empty.jsonl:1"], "empty.jsonl: the file is empty"),
        (["array.json:2"], "array.json, element 2, field chosen: is missing"),
        (["array.json:4"], "array.json: has no element 4; its rows are elements 1 to 3"),
        (["array.json:zz"], "none of its 2 readable rows has the id 'zz' (1 more cannot be read)"),
        (["pair.jsonl:2"], "pair.jsonl: has no line 2; its one row is line 1"),
        (["cut.jsonl:9"], "cut.jsonl: has no line 9; its rows are lines 1 to 2"),
        (["sft.jsonl:2"], "sft.jsonl, line 2: "),
        (["sft.jsonl:3"], "sft.jsonl, line 3, field origin: "),
        (["sft.jsonl:3"], "The other lines are SftRows, as alignloop writes them"),
        (["sft.jsonl:9"], "sft.jsonl: has no line 9; its rows are lines 1 to 4"),
        (["sft.jsonl:-1"], "sft.jsonl: lines are counted from 1, there is no line -1"),
        (["sft.jsonl:nobody"], "none of its 2 readable rows has the id 'nobody' (2 more cannot be read)"),
    ],
)
def test_what_cannot_be_shown_is_said_with_the_reason(
    refused: Callable[..., str], tmp_path: Path, base_copies: None, arguments: list[str], message: str
) -> None:
    write(tmp_path / "d.jsonl", GOOD, {**GOOD, "chosen": "A goat."}, "", '{"prompt": ', PROMPT)
    dump_jsonl(tmp_path / "pair.jsonl", [PAIR])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "array.json").write_text(json.dumps([GOOD, {"prompt": "Hi"}, GOOD]))
    write(tmp_path / "cut.jsonl", '{"prompt": ', '{"chosen": ')
    sft = sft_row("Yes.").model_dump_json()
    write(tmp_path / "sft.jsonl", sft, sft[:40], sft.replace('"best_of_k"', '"nonsense"'), sft)
    assert message in refused(*arguments)


def test_lines_in_which_no_row_of_its_own_stands(
    shown: Callable[..., str], refused: Callable[..., str], tmp_path: Path
) -> None:
    rows = [
        {"prompt": prompt, "response": f"{prompt} {score}", "helpfulness": score}
        for prompt, score in (("A?", 4), ("A?", 1), ("A?", 2), ("B?", 3), ("B?", 0))
    ]
    write(tmp_path / "d.jsonl", *rows[:2], "", *rows[2:])
    for line, first in ((2, 1), (4, 1), (6, 5)):
        err = refused(f"d.jsonl:{line}")
        assert f"d.jsonl, line {line}: a response to the prompt of line {first}, ranked with that row" in err
        assert f"d.jsonl:{first}" in err
    assert "d.jsonl, line 3: the line is blank" in refused("d.jsonl:3")
    assert "has no line 7; its rows are lines 1 to 6" in refused("d.jsonl:7")
    assert "row      d.jsonl:5" in shown("d.jsonl:5")
    (tmp_path / "d.csv").write_text('prompt,chosen,rejected\n"A\nB\nC?",yes,no\n\nD?,yes,no\n')
    assert "d.csv, line 1: no row begins here; it is the header" in refused("d.csv:1")
    for line in (3, 5):
        within = f"line {line}: no row begins here; it is blank, or part of the row that begins in line 2"
        assert within in refused(f"d.csv:{line}")
    assert "row      d.csv:6" in shown("d.csv:6")


def test_a_number_that_is_no_line_may_be_an_id(shown: Callable[..., str], tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", GOOD, {**GOOD, "id": "1007"}, {**GOOD, "id": "1"})
    assert "d.jsonl:2\n" in shown("d.jsonl:1007")
    assert "d.jsonl:1\n" in shown("d.jsonl:1")


def test_plan_finds_a_template_whose_spans_cannot_be_found(alignloop: Callable[..., Any], base_copies: None) -> None:
    overrides = ("base=broken", "engine.name=transformers", "training.trackers=[tensorbord,neptune]")
    found = alignloop("plan", *(argument for override in overrides for argument in ("--set", override)))
    assert found.code == 2
    for part in (
        "base: broken: the chat template's generation prompt",
        "differs from what its dialogs have before an answer",
        "unknown tracker 'tensorbord' - did you mean 'tensorboard'?",
        "pip install neptune",
    ):
        assert part in found.err


@pytest.fixture
def base_copies(tmp_path: Path) -> None:
    """`broken`: a base whose template's spans cannot be found. `bare`: one without a template."""
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|eot_id|>{% endfor %}"
    for name in ("broken", "bare"):
        shutil.copytree(resolve_base("quickstart"), tmp_path / name)
        config = tmp_path / name / "tokenizer_config.json"
        values = {key: value for key, value in json.loads(config.read_text()).items() if key != "chat_template"}
        config.write_text(json.dumps(values))
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    ends = template + "{% if add_generation_prompt %}<|bot|>{% endif %}"
    (tmp_path / "broken" / "chat_template.jinja").write_text(ends)


def test_templates_are_the_named_ones(shown: Callable[..., str], tmp_path: Path, base_copies: None) -> None:
    write(tmp_path / "d.jsonl", GOOD, {**GOOD, "chosen": "<think>\nIt flows.\n</think>\n\nThe Elbe."})
    out = shown("d.jsonl:1", "--base", "bare", "--chat-template", "chatml", "--objective", "sft")
    assert "<|im_start|>" in out
    assert ".]{<|im_end|>·↵}" in out
    # Reasoning stands where its template puts it.
    recipe = "chat_template: qwen3\nchat_template_kwargs: {enable_thinking: true}\npreferences: d.jsonl\n"
    (tmp_path / "r.yaml").write_text(recipe)
    out = shown("d.jsonl:2", "--config", "r.yaml", "--objective", "sft")
    assert "template {enable_thinking: true}" in out
    target = out.split("target", 1)[1]
    for part in ("[<think>·↵]", "[</think>·↵]", "{<|im_end|>·↵}"):
        assert part in target


def in_colour(row: str) -> str:
    found = find_row(row)
    setting = find_setting(found.file, base=None, chat_template=None, config=None)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system="truecolor", width=80, highlight=False)
    views = views_of(found.row, setting, objective="dpo", train_on=None)
    print_views(found, views, setting=setting, ids=False, console=console)
    return screen.getvalue()


def test_colour_tells_tokens_and_uses_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    path = write(tmp_path / "d.jsonl", GOOD)
    coloured = in_colour(f"{path}:1")
    by_text = {text: style for style, text in re.findall(r"\x1b\[([\d;]+)m([^\x1b]+)\x1b\[0m", coloured)}
    # Neighbours in two shades, and each use in its own.
    assert len({by_text[text] for text in (" goat", "A", "<|eot_id|>", "user")}) == 4
    assert by_text["trained"] in (by_text["A"], by_text[" goat"])
    assert "[trained]" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[A· goat·.]{<|eot_id|>}" in in_colour(f"{path}:1")
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "[A· goat·.]{<|eot_id|>}" in in_colour(f"{path}:1")


def test_lines_stay_within_80_columns(shown: Callable[..., str], tmp_path: Path) -> None:
    words = "a" * 300 + " 日本語の長い文です。" * 20 + "\n\n\ttab \x1b[31m " + "river " * 60
    write(tmp_path / "d.jsonl", {**GOOD, "prompt": words, "chosen": words + "!"})
    out = shown("d.jsonl:1", "--ids")
    assert max(cell_len(line) for line in out.split("marks", 1)[1].splitlines()) <= 80
    assert "\x1b" not in out  # what would steer the terminal is shown, not sent
    assert "\\x1b" in out
    assert "日" in out


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize("name", ["sharegpt_en.jsonl", "sharegpt_zh.json"])
def test_own_data(inspect: Call, name: str) -> None:
    code, out, _ = inspect(f"{(DATA / name).resolve()}:2")
    assert code == 0
    assert "preference (sharegpt)" in out
    assert max(cell_len(line) for line in out.split("marks", 1)[1].splitlines()) <= 80


def test_help(shown: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown("--help").splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert any("alignloop inspect data.jsonl:1 --base my-model" in line for line in lines)
