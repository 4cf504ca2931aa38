"""`alignloop inspect`: what is shown is what trains, and it can be read with and without colour."""

from __future__ import annotations

import io
import json
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
    id="p1", messages=DIALOG, chosen="The Elbe.\nIt is long.", rejected="A hill.", origin="on_policy",
    source=Source(file="round-01"),
)  # fmt: skip
GOOD = {"prompt": "Name a river.", "chosen": "The Elbe.\nIt is long.", "rejected": "A hill.", "strength": "better"}

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def inspect(alignloop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Call:
    """The verb off a terminal: (exit code, out, err)."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return lambda *arguments: astuple(alignloop("inspect", *arguments))


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def section(out: str, objective: str) -> str:
    """What is printed under one objective."""
    (found,) = [part for part in out.split("\n\n") if part.startswith(objective)]
    return found


def test_a_preference_under_all_objectives(inspect: Call, tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", {**GOOD, "edited": "The Elbe is a river."})
    code, out, err = inspect("d.jsonl:1")
    assert (code, err) == (0, "")
    assert out.startswith("row      d.jsonl:1\n         preference (canonical), id ")
    assert "marks    [trained]  masked  {formatting}  «reward»  · between tokens  ↵ newline" in out
    assert section(out, "dpo").splitlines() == [
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
        "  [A· hill·.]{<|eot_id|>}",
    ]
    assert section(out, "sft").splitlines()[-2:] == [
        "  target     9 tokens, 9 trained, 1 of them formatting",
        "  [The· E·l·be· is· a· river·.]{<|eot_id|>}",
    ]
    reward = section(out, "reward").splitlines()
    assert [line.split()[0] for line in reward if "read at the last" in line] == ["edited", "chosen", "rejected"]
    assert reward[-1] == "  A· hill·.·«<|eot_id|>»"


def test_a_sampled_row_is_shown_as_it_trains(inspect: Call, tmp_path: Path) -> None:
    """A cut one without an end of turn, and in the ids that were sampled, not in those of its text."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(QUICKSTART / "base")
    ids = [index for letter in "A hill and" for index in tokenizer.encode(letter, add_special_tokens=False)]
    row = SelectedRow(
        id="p/1/0", prompt_id="p", messages=DIALOG, completion="A hill and", completion_ids=ids, finish_reason="length",
        reward=1.0, random_reward=0.0, rewards=[1.0], pass_rate=1.0, round=1, policy="sha256:x",
    )  # fmt: skip
    dump_jsonl(tmp_path / "selected.jsonl", [row])
    code, out, err = inspect("selected.jsonl:1")
    assert (code, err) == (0, "")
    assert section(out, "sft").splitlines()[-2:] == [
        "  target     10 tokens, 10 trained, 0 of them formatting",
        "  [A· ·h·i·l·l· ·a·n·d]",
    ]


@pytest.mark.parametrize("train_on", ["last_assistant", "all_assistant"])
def test_what_is_shown_trained_is_what_a_training_batch_holds(tmp_path: Path, train_on: Any) -> None:
    """Against the tensors the trainer makes: the trained targets, in order, with their formatting flags."""
    setting = find_setting(tmp_path / "x", base=None, chat_template=None, config=None)
    sft = SftRow(
        id="s",
        messages=[*DIALOG, Message(role="assistant", content="The Elbe.")],
        origin="best_of_k",
        source=Source(file="x"),
    )
    for row, objective, groups in (
        (PAIR, "dpo", ranked_groups([PAIR], setting.chat)),
        (sft, "sft", sft_groups([sft], setting.chat, train_on=train_on)),
    ):
        batch = collate(pack(groups, row_tokens=8), pad_token_id=0, mode="packed")
        (view,) = views_of(row, setting, objective=objective, train_on=train_on)
        shown = [token for part in view.parts for token in part.tokens if token.use in ("trained", "formatting")]
        assert [token.token_id for token in shown] == batch.target_ids.tolist()
        assert [token.use == "formatting" for token in shown] == batch.formatting_mask.tolist()
        assert shown


def test_earlier_answers_train_where_asked(inspect: Call, tmp_path: Path) -> None:
    dump_jsonl(
        tmp_path / "sft.jsonl",
        [SftRow(id="s", messages=[*DIALOG, Message(role="assistant", content="Yes.")], origin="best_of_k",
                source=Source(file="x"))],
    )  # fmt: skip
    last = inspect("sft.jsonl:1")[1]
    assert "H·ell·o·.·<|eot_id|>·<|start_header_id|>" in last
    every = inspect("sft.jsonl:1", "--train-on", "all_assistant")[1]
    assert "cross-entropy on all answers" in every
    assert "[H·ell·o·.·<|eot_id|>]·<|start_header_id|>" in every


def test_table_of_ids_and_positions(inspect: Call, tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", {**GOOD, "prompt": "Hi", "chosen": "A.", "rejected": "B."})
    out = inspect("d.jsonl:1", "--objective", "dpo", "--ids")[1]
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d+ +\d+ +\d+ +\d ", line)]
    assert [int(row[0]) for row in rows] == list(range(len(rows)))
    # Prompt of 14 tokens: 13 shared, and its last one at the head of each completion, where positions restart.
    assert [(int(row[2]), int(row[3])) for row in rows[12:]] == [
        (12, 0), (13, 1), (14, 1), (15, 1), (16, 1), (13, 2), (14, 2), (15, 2), (16, 2),
    ]  # fmt: skip
    assert rows[13][4:7] == ["chosen,", "copy", "↵"]
    assert rows[17][4:] == ["rejected,", "copy", "↵"]
    assert rows[16][4:] == ["chosen,", "formatting", "<|eot_id|>"]


def test_rows_of_a_run(inspect: Call, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    with locked(run):
        enter(run, load_recipe("quickstart", overrides=["sft.train_on=all_assistant"]), rebuild=False)
    stage = run / "round-01" / "09_build_pairs"
    stage.mkdir(parents=True)
    dump_jsonl(stage / "pairs.jsonl", [PAIR])
    dump_jsonl(stage / "dropped.jsonl", [DroppedRow(id="d9", stage="build_pairs", rule="gap", reason="too narrow")])
    by_line = inspect(f"{stage}/pairs.jsonl:1")
    assert by_line[0] == 0, by_line[2]
    assert "pair, id p1" in by_line[1]
    by_id = inspect("runs/mine:p1")
    assert by_id[1].split("\n", 1)[1] == by_line[1].split("\n", 1)[1]
    assert "runs/mine/round-01/09_build_pairs/pairs.jsonl:1" in by_id[1]
    dropped = inspect("runs/mine:d9")
    assert dropped[0] == 2
    assert "d9 was dropped by build_pairs (gap): too narrow" in dropped[2]
    unknown = inspect("runs/mine:nobody")
    assert unknown[0] == 2
    assert "none of its 2 .jsonl files holds a row with the id 'nobody'" in unknown[2]


def test_a_runs_own_base_is_taken(inspect: Call, alignloop: Callable[..., Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with locked(run):
        enter(run, load_recipe("quickstart"), rebuild=False)
    base = Path(resolve_base("quickstart")).resolve()
    assert alignloop("stage", "base", "--out", tmp_path / "prepared", "--input", f"base={base}").code == 0
    (run / "round-01").mkdir()
    shutil.copytree(tmp_path / "prepared", run / "round-00" / "02_base")  # a run alone publishes in its directory
    dump_jsonl(run / "round-01" / "pairs.jsonl", [PAIR])
    out = inspect("run/round-01/pairs.jsonl:1")[1]
    assert "round-00/02_base/checkpoint" in out
    assert "base     quickstart" in inspect("run/round-01/pairs.jsonl:1", "--base", "quickstart")[1]


def test_candidates_and_selected_rows(inspect: Call, tmp_path: Path) -> None:
    candidate = CandidateRow(
        id="q/1/0", prompt_id="q", messages=DIALOG, completion="A.", completion_ids=[38, 19], finish_reason="length",
        round=1, policy="x",
    )  # fmt: skip
    selected = SelectedRow(
        id="q/1/0", prompt_id="q", messages=DIALOG, completion="A.", finish_reason="stop", reward=1.0,
        random_reward=0.5, rewards=[1.0], pass_rate=1.0, round=1, policy="x",
    )  # fmt: skip
    dump_jsonl(tmp_path / "candidates.jsonl", [candidate])
    dump_jsonl(tmp_path / "selected.jsonl", [selected])
    out = inspect("candidates.jsonl:1")[1]
    # Cut at its limit: no end of turn is put behind it, and the reward is read at its last sampled token.
    assert out.splitlines()[-1] == "  A·«.»"
    assert "[A·.]{<|eot_id|>}" in inspect("selected.jsonl:q/1/0")[1]


def test_rows_left_out_are_said_to_be(inspect: Call, tmp_path: Path) -> None:
    long = {**GOOD, "chosen": "river " * 400, "strength": "slightly_better"}
    write(tmp_path / "d.jsonl", GOOD, long)
    assert "LEFT OUT" not in inspect("d.jsonl:1")[1]
    out = " ".join(inspect("d.jsonl:2")[1].split())
    assert re.search(r"LEFT OUT of training: prompt and longest completion have \d+ tokens, max_length is \d+", out)
    weak = inspect("d.jsonl:2", "--base", "quickstart")[1]  # the defaults: max_length 2048
    assert "its strength is slightly_better; reward.strengths names" in " ".join(section(weak, "reward").split())
    assert "pairs.strengths names significantly_better, better" in " ".join(section(weak, "dpo").split())
    assert "LEFT OUT" not in section(weak, "sft")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl:1"], "none.jsonl: no such file or folder. ROW is FILE:LINE"),
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
        (["."], "name a row in it"),
        (["pair.jsonl:1", "--objective", "reward"], "rows of this kind serve dpo, not reward"),
        (["d.jsonl:1", "--base", "nowhere/at/all"], "no such folder"),
        (["d.jsonl:1", "--base", "broken"], "differs from what its dialogs have before an answer"),
        (["d.jsonl:1", "--base", "bare"], "has no chat template of its own - set chat_template"),
        (["d.jsonl:1", "--base", "bare", "--chat-template", "lama3"], "did you mean llama3 or"),
    ],
)
def test_errors(inspect: Call, tmp_path: Path, base_copies: None, arguments: list[str], message: str) -> None:
    prompt = PromptRow(id="q", messages=DIALOG, source=Source(file="x"))
    write(tmp_path / "d.jsonl", GOOD, {**GOOD, "chosen": "A hill."}, "", '{"prompt": ', prompt.model_dump_json())
    dump_jsonl(tmp_path / "pair.jsonl", [PAIR])
    code, out, err = inspect(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_response_that_was_ranked_with_others_is_said_to_be(inspect: Call, tmp_path: Path) -> None:
    rows = [
        {"prompt": prompt, "response": f"{prompt} {score}", "helpfulness": score}
        for prompt, score in (("A?", 4), ("A?", 1), ("A?", 2), ("B?", 3), ("B?", 0))
    ]
    write(tmp_path / "d.jsonl", *rows[:2], "", *rows[2:])
    for line, first in ((2, 1), (4, 1), (6, 5)):
        err = inspect(f"d.jsonl:{line}")[2]
        assert f"d.jsonl, line {line}: a response to the prompt of line {first}, ranked with that row" in err
        assert f"d.jsonl:{first}" in err
    assert "d.jsonl, line 3: the line is blank" in inspect("d.jsonl:3")[2]
    assert "has no line 7; its rows are lines 1 to 6" in inspect("d.jsonl:7")[2]
    assert "row      d.jsonl:5" in inspect("d.jsonl:5")[1]


def test_a_line_of_a_csv_in_which_no_row_begins(inspect: Call, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('prompt,chosen,rejected\n"A\nB\nC?",yes,no\n\nD?,yes,no\n')
    assert "d.csv, line 1: no row begins here; it is the header" in inspect("d.csv:1")[2]
    for line in (3, 5):
        within = f"line {line}: no row begins here; it is blank, or part of the row that begins in line 2"
        assert within in inspect(f"d.csv:{line}")[2]
    assert "row      d.csv:6" in inspect("d.csv:6")[1]


def test_plan_finds_a_template_whose_spans_cannot_be_found(alignloop: Callable[..., Any], base_copies: None) -> None:
    overrides = ("base=broken", "engine.name=transformers", "training.trackers=[tensorbord,neptune]")
    arguments = [argument for override in overrides for argument in ("--set", override)]
    found = alignloop("plan", *arguments)
    assert found.code == 2
    for part in (
        "base: broken: the chat template's generation prompt",
        "differs from what its dialogs have before an answer",
        "unknown tracker 'tensorbord' - did you mean 'tensorboard'?",
        "pip install neptune",
    ):
        assert part in found.err


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("empty.jsonl:1", "empty.jsonl: the file is empty"),
        ("array.json:2", "array.json, element 2, field chosen: is missing"),
        ("array.json:4", "array.json: has no element 4; its rows are elements 1 to 3"),
        ("array.json:zz", "none of its 2 readable rows has the id 'zz' (1 more cannot be read)"),
        ("one.jsonl:2", "one.jsonl: has no line 2; its one row is line 1"),
        ("broken.jsonl:9", "broken.jsonl: has no line 9; its rows are lines 1 to 2"),
        ("sft.jsonl:2", "sft.jsonl, line 2: "),
        ("sft.jsonl:3", "sft.jsonl, line 3, field origin: "),
        ("sft.jsonl:3", "The other lines are SftRows, as alignloop writes them"),
        ("sft.jsonl:9", "sft.jsonl: has no line 9; its rows are lines 1 to 4"),
        ("sft.jsonl:-1", "sft.jsonl: lines are counted from 1, there is no line -1"),
        ("sft.jsonl:nobody", "none of its 2 readable rows has the id 'nobody' (2 more cannot be read)"),
        ("prompts.jsonl:river", "its one readable row has another id than 'river'"),
        ("prompts.jsonl:3", "prompts.jsonl: has no line 3; its one row is line 1"),
    ],
)
def test_rows_of_odd_files_are_counted_right(inspect: Call, tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "array.json").write_text(json.dumps([GOOD, {"prompt": "Hi"}, GOOD]))
    write(tmp_path / "one.jsonl", GOOD)
    write(tmp_path / "broken.jsonl", '{"prompt": ', '{"chosen": ')
    sft = SftRow(id="s", messages=[*DIALOG, Message(role="assistant", content="Yes.")], origin="best_of_k",
                 source=Source(file="x")).model_dump_json()  # fmt: skip
    write(tmp_path / "sft.jsonl", sft, sft[:40], sft.replace('"best_of_k"', '"nonsense"'), sft)
    write(tmp_path / "prompts.jsonl", PromptRow(id="q", messages=DIALOG, source=Source(file="x")).model_dump_json())
    code, out, err = inspect(place)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_number_that_is_no_line_may_be_an_id(inspect: Call, tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", GOOD, {**GOOD, "id": "1007"}, {**GOOD, "id": "1"})
    assert "d.jsonl:2\n" in inspect("d.jsonl:1007")[1]
    assert "d.jsonl:1\n" in inspect("d.jsonl:1")[1]


def test_ids_with_letters_beyond_ascii_are_found_in_a_folder(inspect: Call, tmp_path: Path) -> None:
    dump_jsonl(tmp_path / "pairs.jsonl", [PAIR.model_copy(update={"id": 'Größe "7"'})])
    assert "pairs.jsonl:1" in inspect('.:Größe "7"')[1]


@pytest.fixture
def base_copies(tmp_path: Path) -> None:
    """`broken`: a base whose template's spans cannot be found. `bare`: one without a template."""
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|eot_id|>{% endfor %}"
    for name, jinja in (("broken", template + "{% if add_generation_prompt %}<|bot|>{% endif %}"), ("bare", None)):
        shutil.copytree(resolve_base("quickstart"), tmp_path / name)
        (tmp_path / name / "chat_template.jinja").unlink()
        config = tmp_path / name / "tokenizer_config.json"
        values = {key: value for key, value in json.loads(config.read_text()).items() if key != "chat_template"}
        config.write_text(json.dumps(values))
        if jinja is not None:
            (tmp_path / name / "chat_template.jinja").write_text(jinja)


def test_a_base_without_template_gets_the_named_one(inspect: Call, tmp_path: Path, base_copies: None) -> None:
    write(tmp_path / "d.jsonl", GOOD)
    code, out, err = inspect("d.jsonl:1", "--base", "bare", "--chat-template", "chatml", "--objective", "sft")
    assert (code, err) == (0, "")
    assert "<|im_start|>" in out
    assert ".]{<|im_end|>·↵}" in out


def in_colour(row: str, *, width: int = 80) -> str:
    found = find_row(row)
    setting = find_setting(found.file, base=None, chat_template=None, config=None)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system="truecolor", width=width, highlight=False)
    views = views_of(found.row, setting, objective="dpo", train_on=None)
    print_views(found, views, setting=setting, ids=False, console=console)
    return screen.getvalue()


def test_colour_tells_tokens_and_uses_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    path = write(tmp_path / "d.jsonl", GOOD)
    shown = in_colour(f"{path}:1")
    by_text = {text: style for style, text in re.findall(r"\x1b\[([\d;]+)m([^\x1b]+)\x1b\[0m", shown)}
    # Neighbours in two shades, and each use in its own.
    assert len({by_text[text] for text in (" hill", "A", "<|eot_id|>", "user")}) == 4
    assert by_text["trained"] in (by_text["A"], by_text[" hill"])
    assert "[trained]" not in shown
    monkeypatch.setenv("NO_COLOR", "1")
    plain = in_colour(f"{path}:1")
    assert "[A· hill·.]{<|eot_id|>}" in plain
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "[A· hill·.]{<|eot_id|>}" in in_colour(f"{path}:1")


def test_reasoning_is_shown_where_the_template_puts_it(inspect: Call, tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", {**GOOD, "chosen": "<think>\nIt flows.\n</think>\n\nThe Elbe."})
    (tmp_path / "r.yaml").write_text(
        "chat_template: qwen3\nchat_template_kwargs: {enable_thinking: true}\npreferences: d.jsonl\n"
    )
    code, out, err = inspect("d.jsonl:1", "--config", "r.yaml", "--objective", "sft")
    assert (code, err) == (0, "")
    assert "template {enable_thinking: true}" in out
    target = out.split("target", 1)[1]
    assert "[<think>·↵]" in target
    assert "[</think>·↵]" in target
    assert "{<|im_end|>·↵}" in target


def test_lines_stay_within_80_columns(inspect: Call, tmp_path: Path) -> None:
    words = "a" * 300 + " 日本語の長い文です。" * 20 + "\n\n\ttab \x1b[31m " + "river " * 60
    write(tmp_path / "d.jsonl", {**GOOD, "prompt": words, "chosen": words + "!"})
    code, out, err = inspect("d.jsonl:1", "--ids")
    assert (code, err) == (0, "")
    body = out.split("marks", 1)[1]
    assert max(cell_len(line) for line in body.splitlines()) <= 80
    assert "\x1b" not in out  # what would steer the terminal is shown, not sent
    assert "\\x1b" in out
    assert "日" in out


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize("name", ["sharegpt_en.jsonl", "sharegpt_zh.json"])
def test_own_data(inspect: Call, name: str) -> None:
    code, out, _ = inspect(f"{(DATA / name).resolve()}:2")
    assert code == 0
    assert "preference (sharegpt)" in out
    body = out.split("marks", 1)[1]
    assert max(cell_len(line) for line in body.splitlines()) <= 80


def test_help(inspect: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = inspect("--help")[1].splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert any("alignloop inspect data.jsonl:1 --base my-model" in line for line in lines)
