"""What stands on the page of a run: its numbers, nothing that acts, and what there is of a run that has just begun."""

from __future__ import annotations

import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_run import (
    base_round,
    begin,
    evaluate,
    finish,
    make_run,
    measures_of,
    metrics_of,
    put,
    put_round,
    row_of,
    samples_of,
)

from alignloop.errors import RunDirError, UserError
from alignloop.report.completions import BENCHMARK, HELDOUT, fitting
from alignloop.report.content import MOST_BYTES, cut, rendered_dialog, visible
from alignloop.report.facts import Number, RoundRecord, read_run
from alignloop.report.measures import measures
from alignloop.report.pages import run_page, write_comparison, write_report, write_report_or_say
from alignloop.run_dir.layout import locked


class ShownPage(HTMLParser):
    """Tables by name: rows of (text, whole value); every tag, address and id; the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[tuple[str, float | None]]]] = {}
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self._table: list[list[tuple[str, float | None]]] = []
        self._value: float | None = None
        self._cell: list[str] = []
        self.feed(source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.addresses += [values[name] for name in ("src", "href", "action") if name in values]
        self.handlers += [name for name in values if name.startswith("on")]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "table":
            self._table = self.tables.setdefault(values.get("data-table", ""), [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._cell = []
            self._value = float(values["data-value"]) if "data-value" in values else None

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._table[-1].append(("".join(self._cell), self._value))

    def cells(self, name: str) -> list[list[str]]:
        """What a table shows, its heads first."""
        return [[text for text, _ in row] for row in self.tables[name]]

    def values(self, name: str) -> dict[str, list[float | None]]:
        return {row[0][0]: [value for _, value in row[1:]] for row in self.tables[name][1:]}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "run")


def compared(*run_dirs: Path) -> ShownPage:
    out = run_dirs[0].parent / "both.html"
    write_comparison(run_dirs, out=out)
    return ShownPage(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def source(run_dir: Path) -> str:
    return run_page(read_run(run_dir)).html()


@pytest.fixture(scope="module")
def page(source: str) -> ShownPage:
    return ShownPage(source)


def page_of(run_dir: Path) -> ShownPage:
    return ShownPage(run_page(read_run(run_dir)).html())


def rounds_of(run_dir: Path) -> list[tuple[str, RoundRecord]]:
    return [(entry.label, entry) for entry in read_run(run_dir).finished]


def test_benchmarks_are_the_run_s_own(page: ShownPage) -> None:
    assert page.values("climb-ifeval/mean") == {
        label: [metrics_of(number)["ifeval/mean"]] for number, label in enumerate(("base", "1", "2", "3"))
    }
    assert page.cells("climb-ifeval/mean")[:3] == [["round", "mean"], ["base", "21.5 ± 3.0"], ["1", "31.5 ± 3.0"]]
    four = page.cells("climb-ifeval-four")
    assert four[0] == ["round", "prompt strict", "prompt loose", "instr. strict", "instr. loose"]
    assert four[4] == ["3", "50.0", "51.0", "52.0", "53.0"]
    assert [row[1] for row in page.cells("climb-mmlu/acc")[1:]] == [f"{50 + n}.0 ± 2.0" for n in range(4)]
    assert page.cells("ifeval-types")[1] == ["change_case:english_capital", "0.0", "12.5", "25.0", "37.5"]
    table = page.cells("differences ifeval/mean: against the round before")
    assert table[2] == ["1 to 2", "+10.0", "+5.0", "+15.0", "3", "better"]
    assert page.cells("differences ifeval/mean: against the base")[2][0] == "base to 3"


def test_measures_are_the_published_ones(page: ShownPage) -> None:
    assert page.cells("measure-heldout/accuracy")[2] == ["1", "72.0 ± 3.0"]
    rewards = page.values("measure-reward/best_of_k+reward/random+reward/policy_heldout")
    assert rewards["3"] == [2.5, 1.0, 4.25]
    assert page.cells("measure-own/measure")[3] == ["2", "2.000"]  # one that nobody foresaw
    assert page.values("measures")["kl_to_base"] == [None, 0.05, 0.1, measures_of(3)["kl_to_base"]]
    assert page.cells("reliability")[1:] == [["52.0", "55.0", "8"], ["77.0", "80.0", "8"]]
    assert page.cells("rewards-1")[0] == ["reward", "best of K, % (mean 2.50)", "random, % (mean 0.50)"]
    assert sum(best or 0.0 for best, _ in page.values("rewards-1").values()) == pytest.approx(1.0)


def test_a_round_that_picks_at_random_has_no_best_to_draw(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    shutil.rmtree(copy / "round-01" / "06_select")
    put(
        copy,
        1,
        "06_select",
        files={"selected.jsonl": '{"reward": 1.0, "random_reward": 1.0}\n'},
        config={"pick": "random"},
    )
    html = run_page(read_run(copy)).html()
    assert "rewards-1" not in html
    assert "rewards-2" in html


def test_a_win_rate_that_says_the_opposite_of_the_benchmark_says_so_beside_it(tmp_path: Path) -> None:
    """0.3 with an error of 0.05, while ifeval/mean rose by 0.1 (0.05 to 0.15)."""
    run = make_run(tmp_path / "run", rounds=2)
    rows = [row_of(number) for number in range(3)]
    rows[2].measures.update({"win_rate/previous": 0.3, "win_rate/previous_stderr": 0.05})
    (run / "rounds.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    (figure,) = [
        each for each in measures(read_run(run)).figures if each.title == "Win rate of the round's model, by reward"
    ]
    assert figure.note == (
        "Ties count half; 50 % is as good as the other. Round 2, disagreement: since round 1 the win rate by reward is "
        "0.3 (0.202 to 0.398) while ifeval/mean rose by 0.100 (0.050 to 0.150)."
    )
    assert sum("disagreement" in each.note for each in measures(read_run(run)).figures) == 1


def test_measures_fall_back_to_the_reward_model_s_own(run_dir: Path) -> None:
    assert read_run(run_dir).finished[1].figure("heldout_accuracy") == Number(0.75)


def test_funnel_names_rows_and_reasons(page: ShownPage) -> None:
    assert page.cells("funnel-prune")[0] == ["round", "kept", "dropped: quality"]
    assert page.values("funnel-prune")["1"] == [3.0, 1.0]
    # What the manifest does not count by rule is counted in dropped.jsonl.
    kinds = ["kept: preference pairs", "kept: on policy pairs", "dropped: strength"]
    assert page.cells("funnel-build_pairs")[0] == ["round", *kinds]
    assert page.values("funnel-build_pairs")["1"] == [6.0, 4.0, 2.0]
    stages = {row[0]: row[1:] for row in page.cells("stages-1")}
    assert stages["10_build_pairs"][3] == "2 strength (marginal)"
    assert stages["02_train_reward"][:3] == ["55", "50", "5"]
    assert page.cells("flow")[2] == ["2", "55", "40", "3", "10"]


def test_what_is_right_stands_with_the_data_round_by_round(page: ShownPage) -> None:
    assert page.cells("truth") == [
        ["right, %", "1", "2", "3"],
        ["a random candidate", "25.0", "25.0", "25.0"],
        ["the reward model's pick", "37.5 ± 6.2", "50.0 ± 6.2", "62.5 ± 6.2"],
        ["annotated preferences: chosen", "-", "75.0", "75.0"],
    ]
    assert "known from measure.truth, which nothing that trains sees" in page.text
    assert page.values("measure-truth/random+truth/pick")["2"] == [0.25, 0.5]


def test_a_run_without_a_truth_has_no_such_table(tmp_path: Path) -> None:
    put(run := begin(tmp_path / "run"), 1, "01_collect", counts={"preferences": 50, "annotated": 5})
    page = page_of(run)
    assert "truth" not in page.tables
    assert "measure.truth, which" not in page.text


def test_rows_left_out_where_they_come_in_stand_in_the_funnel_prompts_by_themselves(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    reason = "holds 79% of ifeval 3, the longest piece"
    files = {
        f"{name}.jsonl": json.dumps({"id": name, "rule": "decontaminate", "reason": f"{reason} {name}"}) + "\n"
        for name in ("dropped", "dropped_prompts")
    }
    counts = {"in": 9, "kept": 8, "dropped": 1, "dropped_by_read": 0, "dropped_by_decontaminate": 1}
    counts |= {"prompts_in": 5, "prompts": 4, "prompts_dropped": 1}
    put(run, 0, "01_ingest", counts=counts, files=files)
    assert page_of(run).cells("stages-0")[1:] == [
        ["01_ingest", "9", "8", "1", f"1 decontaminate ({reason} dropped)"],
        ["01_ingest: prompts", "5", "4", "1", f"1 decontaminate ({reason} dropped_prompts)"],
    ]


def test_time_and_tokens_are_summed(page: ShownPage) -> None:
    seconds = dict(zip(page.cells("seconds")[0][1:], page.values("seconds")["1"], strict=True))
    assert (seconds["training"], seconds["evaluating"]) == (11.0, 4.0)
    assert seconds["all"] == 0.25 + 11.0 + 3.0 + 4.0 + 2.0
    # 40 candidates of 10 tokens, two steps of 100, 3 answers of 21.
    tokens = dict(zip(page.cells("tokens")[0][1:], page.values("tokens")["1"], strict=True))
    assert tokens == {"sampling": 400.0, "training": 200.0, "evaluating": 63.0, "all": 663.0}
    *rounds, last = page.values("tokens").items()
    assert last == (
        "all",
        [sum(value or 0.0 for value in of) for of in zip(*(values for _, values in rounds), strict=True)],
    )


def test_what_chose_nothing_and_a_doubtful_best_are_said(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", overrides=["evaluate.test_tasks=[ifeval_unseen=x.jsonl]"])
    entries = json.loads((run_dir / "differences.json").read_text())
    for entry in entries["rounds"]:
        entry["differences"][0]["low"] = -0.01
    (run_dir / "differences.json").write_text(json.dumps(entries))
    text = ShownPage(run_page(read_run(run_dir)).html()).text
    # The last, round 3, is held back.
    assert "It is not clearly better than round 1: +10.0 (-1.0 to +15.0) points. ifeval_unseen chose nothing" in text


@pytest.mark.parametrize(
    "sentence",
    [
        "Round 2: over-optimisation: since round 1 the reward rose by 1",
        "Round 3 is held back by the gate: ifeval/mean fell by 0.2",
        # Round 3 has the highest mean, and is held back.
        "Best round by ifeval/mean: 2, with 41.5 %, +20.0 (+15.0 to +25.0) points against the base.",
        "The annotator is simulated",
        "best_metric: ifeval/mean",
        "engine that sampled in round 1, 2",
        "measured 1",
        "round 2 says",
    ],
)
def test_a_reader_is_informed(page: ShownPage, sentence: str) -> None:
    assert sentence in page.text


def test_the_contents_are_the_sections_in_their_order(page: ShownPage) -> None:
    assert [address for address in page.addresses if address.startswith("#")] == [f"#{name}" for name in page.ids]
    assert page.ids == [
        "climb", "breakdown", "differences", "measures", "rewards", "funnel", "work", "completions", "recipe",
    ]  # fmt: skip
    protocol = {row[0]: row[1:] for row in page.cells("protocol")}
    assert protocol["lm_eval_version"] == ["0.4.13", "0.4.13"]
    assert protocol["output_type"] == ["generate_until", "multiple_choice"]


def test_nothing_in_a_model_s_text_acts(source: str, page: ShownPage) -> None:
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert page.handlers == []
    assert {address for address in page.addresses if not address.startswith("#")} == {"data:,"}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", source)
    for part in ("⟦U+202E⟧", "⟦U+001B⟧", "default-src 'none'"):
        assert part in source
    assert "url(" not in source


def test_every_chart_says_its_numbers(source: str) -> None:
    charts = re.findall(r'<svg viewBox="[^"]+" role="img" aria-label="([^"]*)"', source)
    assert len(charts) == source.count("<svg")
    assert any("IFEval, mean of the four accuracies. round base: mean 21.5 ± 3.0" in alt for alt in charts)


def test_text_that_hides_and_text_that_is_long() -> None:
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible("\u200ba\ud800\ufeff") == "⟦U+200B⟧a⟦U+D800⟧⟦U+FEFF⟧"
    assert visible("\u200d") == "\u200d"
    assert cut("abcdef", num_characters=4) == "abcd… [2 more characters]"
    assert cut("abcd", num_characters=4) == "abcd"


def test_a_run_that_has_not_finished_a_round_shows_what_there_is(tmp_path: Path) -> None:
    nothing = begin(tmp_path / "nothing")
    assert "No round is finished; no stage is published yet. This page shows what there is." in page_of(nothing).text
    begun = begin(tmp_path / "begun")
    put(begun, 0, "01_ingest", counts={"in": 9, "kept": 8, "dropped": 1}, seconds={"other": 1.0})
    page = page_of(begun)
    assert "No round is finished; the last published stage is round-00/01_ingest." in page.text
    assert page.cells("stages-0")[1][:4] == ["01_ingest", "9", "8", "1"]
    base_round(base := begin(tmp_path / "base"))
    finish(base, rounds=0)
    put(base, 1, "01_collect", counts={"preferences": 50, "annotated": 5})
    page = page_of(base)
    assert "Only the base is measured: no round is finished yet." in page.text
    assert page.cells("climb-ifeval/mean")[1] == ["base", "21.5 ± 3.0"]


def test_older_runs_have_less(tmp_path: Path) -> None:
    run_dir = begin(tmp_path / "old", rounds=1)
    put(run_dir, 1, "13_evaluate", files={"report.json": ""}, seconds={"evaluating": 4.0})
    (run_dir / "round-01" / "13_evaluate" / "report.json").unlink()
    values = row_of(1).model_dump(exclude={"measures", "flags", "gated"})
    (run_dir / "rounds.jsonl").write_text(json.dumps({**values, "round": 0}) + "\n" + json.dumps(values) + "\n")
    (run_dir / "differences.json").write_text("{")
    page = page_of(run_dir)
    assert "report.json" in page.text
    assert "differences.json: not a run's differences" in page.text
    assert len(page.tables["climb-ifeval/mean"]) == 3


def test_rows_of_another_form_do_not_stop_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=2)
    (run / "round-01" / "14_measure" / "completions.jsonl").write_bytes(
        b'\x00\xff\n3\n[]\n{}\n{"id": 5, "messages": 3, "completion": null}\n{"id": "a", "messages": [3]}\n'
    )
    (run / "round-02" / "13_evaluate" / "samples.jsonl").write_bytes(b'{"task": 5, "index": "x", "response": 3}\n')
    (run / "round-02" / "13_evaluate" / "report.json").write_bytes(b"\xff\xfe")
    assert "report.json: not an evaluation's report" in page_of(run).text


def test_rounds_of_another_protocol_are_not_drawn(tmp_path: Path) -> None:
    run_dir = begin(tmp_path / "run", rounds=2)
    base_round(run_dir)
    put_round(run_dir, 1, num_samples=2)
    put_round(run_dir, 2)
    finish(run_dir, rounds=2)
    page = page_of(run_dir)
    assert list(page.values("climb-ifeval/mean")) == ["base", "2"]
    other = "round 1: ifeval was asked by another protocol (tasks.ifeval.num_samples: 3 -> 2) and is not compared"
    assert other in page.text


def test_a_huge_run_stays_small(tmp_path: Path) -> None:
    run_dir = begin(tmp_path / "run", rounds=1)
    base_round(run_dir)
    many = samples_of(1, num=1_000, response="\u202e" * 20_000)  # each shown by 8 characters
    evaluate(run_dir, 1, "13_evaluate", samples=many)
    finish(run_dir, rounds=1)
    source = run_page(read_run(run_dir)).html()
    assert len(source.encode()) < MOST_BYTES
    text = ShownPage(source).text
    assert "18,000 more characters" not in text  # 20,014 characters, 2,000 shown
    assert "[18,013 more characters]" in text
    assert re.search(r"Benchmark prompts \d+ prompts\. To keep the page small, more are left out", text)


def test_many_rounds_are_thinned_and_the_page_says_so(tmp_path: Path) -> None:
    run_dir = begin(tmp_path / "run", rounds=1)
    base_round(run_dir)
    rows = [row_of(0).model_copy(update={"round": n, "gated": None, "flags": []}) for n in range(60)]
    (run_dir / "rounds.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    page = page_of(run_dir)
    assert len(page.tables["climb-ifeval/mean"]) == 61
    assert len(page.tables["ifeval-types"][0]) == 13
    assert page.tables["ifeval-types"][0][-1][0] == "59"
    assert "Left out here: 48 rounds between." in page.text


def test_a_prompt_is_followed_through_the_rounds_within_the_budget(run_dir: Path) -> None:
    prompts, is_cut = BENCHMARK.prompts(rounds_of(run_dir))
    assert not is_cut
    assert [[answer.passed for answer in prompt.answers] for prompt in prompts] == [
        [False, True, True, True],
        [False, False, True, True],
        [False, False, False, True],
    ]
    sizes = [len(rendered_dialog(prompt).encode()) for prompt in prompts]
    assert [len(fitting(prompts, budget_bytes=sum(sizes) - less)) for less in (0, 1, 1 + sizes[-1])] == [3, 2, 1]
    (held, *_), _ = HELDOUT.prompts(rounds_of(run_dir))
    assert [answer.reward for answer in held.answers] == [0.25, 0.5, 0.75]
    assert held.chosen == "people like this"


def test_six_rounds_build_in_under_five_seconds(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", rounds=6)
    started = time.process_time()  # of this process: others may hold the cores
    path = write_report(run_dir)
    assert time.process_time() - started < 5.0
    assert path == run_dir / "report.html"
    assert path.stat().st_size < MOST_BYTES


def test_a_report_that_fails_does_not_stop_a_run(tmp_path: Path) -> None:
    lines: list[str] = []
    write_report_or_say(tmp_path / "none", say=lines.append)
    assert len(lines) == 1
    assert "report.html: RunDirError: " in lines[0]
    assert f"`alignloop report {tmp_path / 'none'}` makes it again" in lines[0]


def test_runs_are_compared(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a" / "run", rounds=1)
    two = make_run(tmp_path / "b" / "run", rounds=2, overrides=["dpo.beta=0.25"])
    page = compared(one, two)
    assert list(page.values("runs")) == ["a/run", "b/run"]
    assert page.cells("several-ifeval/mean") == [
        ["round", "a/run", "b/run"],
        ["base", "21.5 ± 3.0", "21.5 ± 3.0"],
        ["1", "31.5 ± 3.0", "31.5 ± 3.0"],
        ["2", "-", "41.5 ± 3.0"],
    ]
    assert page.cells("settings")[1:] == [["rounds", "1", "2"], ["dpo.beta", "0.1", "0.25"]]
    assert "b/run, round 2, passed" in page.text
    assert "each run's own first reward model: their scales differ between runs" in page.text
    assert "one scale for all its rounds" not in page.text


def test_runs_of_two_protocols_are_marked_and_not_drawn_together(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", rounds=1)
    two = begin(tmp_path / "two", rounds=1)
    evaluate(two, 0, "03_evaluate", num_samples=2)
    put_round(two, 1, num_samples=2)
    finish(two, rounds=1)
    page = compared(one, two)
    assert "two, round 1: ifeval was asked by another protocol (tasks.ifeval.num_samples: 3 -> 2)" in page.text
    assert page.cells("several-ifeval/mean")[2] == ["1", "31.5 ± 3.0", "-"]


def test_answers_to_other_prompts_stand_apart(tmp_path: Path) -> None:
    """Two runs may have asked other data under one name: an answer stands under the prompt that it answers."""
    one = make_run(tmp_path / "one", rounds=1)
    two = make_run(tmp_path / "two", rounds=1, samples=samples_of(1).replace("Question ", "Other question "))
    prompts, _ = BENCHMARK.prompts([(run.name, read_run(run).finished[-1]) for run in (one, two)])
    assert [[answer.label for answer in prompt.answers] for prompt in prompts] == [["one"]] * 3 + [["two"]] * 3


@pytest.mark.parametrize(
    ("runs", "out", "error"),
    [
        (("one", "two"), None, "name its file, for example --out"),
        (("one", "one"), "x.html", "one: named twice"),
        (("one",), "none/x.html", "no file can be written there"),
        (("one",), "/proc/x.html", "cannot be written .*; name another file with --out"),
        (("one", "three"), "x.html", "no run lies here"),
        ((".",), None, r"no run lies here; runs there: .*one"),
    ],
)
def test_wrong_ways_to_ask(tmp_path: Path, runs: tuple[str, ...], out: str | None, error: str) -> None:
    for name in ("one", "two"):
        begin(tmp_path / name)
    folders, file = [tmp_path / name for name in runs], None if out is None else tmp_path / out
    with pytest.raises((UserError, RunDirError), match=error):
        write_report(folders[0], out=file) if len(folders) == 1 else write_comparison(folders, out=file)
    assert not (tmp_path / "report.html").exists()


def test_a_page_does_not_say_for_ever_that_a_run_is_at_work(tmp_path: Path) -> None:
    """The run writes it while it holds the directory; it is looked at when the run has long ended."""
    run_dir = make_run(tmp_path / "run", rounds=1)
    with locked(run_dir):
        at_work = write_report(run_dir).read_text()
    assert "1 of 1 rounds done." in at_work
    assert write_report(run_dir).read_text() == at_work
