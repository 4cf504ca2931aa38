from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from alignloop.engines.transformers_engine import TransformersEngine
from alignloop.errors import DataError
from alignloop.evaluation.evaluate import evaluate, evaluate_loaded
from alignloop.evaluation.ifeval import load_checkers
from alignloop.evaluation.report import EvalReport, EvalSample
from alignloop.evaluation.tasks import check_names, load_tasks, local_mmlu
from alignloop.progress import QuietProgress

SHARED_DATA = Path(__file__).resolve().parents[2] / "../shared/data"
IFEVAL = [
    {
        "key": index,
        "prompt": f"Tell me about mill number {index}. {text}",
        "instruction_id_list": ids,
        "kwargs": kwargs,
    }
    for index, (text, ids, kwargs) in enumerate(
        [
            ("Do not use commas.", ["punctuation:no_comma"], [{}]),
            (
                "Use at least 90 words. No commas. <|eot_id|>",
                ["length_constraints:number_words", "punctuation:no_comma"],
                [{"relation": "at least", "num_words": 90}, {}],
            ),
            ("Two bullets.", ["detectable_format:number_bullet_lists"], [{"num_bullets": 2}]),
        ]
    )
]
MMLU = [
    ["Where is the mill?", "by the river", "on the hill", "in town", "nowhere at all", "B"],
    ["Who runs the mill?", "Ada", "Bo", "Cy", "Dee", "A"],
    ["What colour is it?", "red", "green", "blue", "a very dark grey", "D"],
]


def _ifeval_file(path: Path, rows: list[dict[str, Any]] = IFEVAL) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _mmlu_folder(path: Path) -> Path:
    (path / "test").mkdir(parents=True)
    (path / "test" / "mills_test.csv").write_text("".join(",".join(row) + "\n" for row in MMLU), encoding="utf-8")
    return path


def _evaluate(engine: TransformersEngine, checkpoint: Path, tasks: list[str], **options: Any) -> EvalReport:
    settings: dict[str, Any] = {"include_path": None, "limit": None, "max_gen_tokens": 12, "seed": 0}
    return evaluate(engine, checkpoint=checkpoint, tasks=tasks, progress=QuietProgress(), **{**settings, **options})


def _samples(path: Path) -> list[EvalSample]:
    return [EvalSample.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _direct(checkpoint: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(checkpoint).eval(), AutoTokenizer.from_pretrained(checkpoint)


def _option_logprobs(checkpoint: Path, messages: list[dict[str, str]], options: list[str]) -> list[float]:
    """Sums of the options' token logprobs after the templated messages, one plain forward pass each."""
    import torch

    model, tokenizer = _direct(checkpoint)
    context = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    sums = []
    for option in options:
        ids = tokenizer.encode(option, add_special_tokens=False)
        with torch.inference_mode():
            logits = model(torch.tensor([[*context, *ids]])).logits[0].log_softmax(-1)
        rows = logits[len(context) - 1 : -1]
        sums.append(float(rows.gather(-1, torch.tensor(ids)[:, None]).sum()))
    return sums


def test_ifeval_report(engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path) -> None:
    data = _ifeval_file(tmp_path / "ifeval.jsonl")
    samples_file = tmp_path / "samples.jsonl"
    report = _evaluate(engine, tiny_checkpoint, [f"ifeval={data}"], samples_file=samples_file)
    utils = load_checkers()
    samples = _samples(samples_file)
    assert [sample.prompt for sample in samples] == [row["prompt"] for row in IFEVAL]
    for sample, row in zip(samples, IFEVAL, strict=True):
        strict = utils.test_instruction_following_strict(utils.InputExample(**row), sample.response)
        assert sample.verdicts["inst_level_strict_acc"] == strict.follow_instruction_list
        assert sample.verdicts["prompt_level_strict_acc"] == float(strict.follow_all_instructions)
        assert sample.num_tokens is not None
        assert sample.num_tokens <= 12
    strict_lists = [sample.verdicts["inst_level_strict_acc"] for sample in samples]
    followed = sum(sum(verdicts) for verdicts in strict_lists if isinstance(verdicts, list))
    assert report.metrics["ifeval/inst_level_strict_acc"] == pytest.approx(followed / 4)
    assert report.counts["ifeval/inst_level_strict_acc"] == 4
    assert report.counts["ifeval/type/punctuation:no_comma"] == 2
    four = [f"ifeval/{level}_level_{mode}_acc" for level in ("prompt", "inst") for mode in ("strict", "loose")]
    assert report.metrics["ifeval/mean"] == pytest.approx(sum(report.metrics[key] for key in four) / 4)
    assert {*four, "ifeval/mean", "ifeval/type/punctuation:no_comma"} <= set(report.stderr)
    assert "ifeval/type/detectable_format:number_bullet_lists" not in report.stderr  # one prompt
    protocol = report.protocol.tasks["ifeval"]
    assert (protocol.num_samples, protocol.num_available, protocol.num_fewshot) == (3, 3, 0)
    assert protocol.generation["max_gen_toks"] == 12
    assert protocol.version == "4.0"


def test_answers_are_the_models_greedy_ones(engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path) -> None:
    import torch

    data = _ifeval_file(tmp_path / "ifeval.jsonl", IFEVAL[:1])
    _evaluate(engine, tiny_checkpoint, [f"ifeval={data}"], samples_file=tmp_path / "samples.jsonl")
    (sample,) = _samples(tmp_path / "samples.jsonl")
    model, tokenizer = _direct(tiny_checkpoint)
    messages = [{"role": "user", "content": IFEVAL[0]["prompt"]}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    output = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert sample.response == tokenizer.decode(output, skip_special_tokens=True)


def test_option_texts_are_scored_as_by_a_plain_forward_pass(
    engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    report = evaluate_loaded(
        engine,
        checkpoint=tiny_checkpoint,
        loaded=local_mmlu(_mmlu_folder(tmp_path / "mmlu"), form="option_text", num_fewshot=0),
        limit=None,
        max_gen_tokens=12,
        seed=0,
        progress=QuietProgress(),
        samples_file=tmp_path / "samples.jsonl",
    )
    samples = _samples(tmp_path / "samples.jsonl")
    right = []
    for sample, (question, *options, letter) in zip(samples, MMLU, strict=True):
        direct = _option_logprobs(tiny_checkpoint, [{"role": "user", "content": question}], options)
        assert sample.option_logprobs == pytest.approx(direct, abs=1e-3)
        right.append(float(direct.index(max(direct)) == "ABCD".index(letter)))
        per_char = [logprob / len(option) for logprob, option in zip(direct, options, strict=True)]
        assert sample.verdicts["acc_norm"] == float(per_char.index(max(per_char)) == "ABCD".index(letter))
    assert report.metrics["mmlu/acc"] == pytest.approx(sum(right) / 3)
    assert report.metrics["mmlu_mills/acc"] == pytest.approx(sum(right) / 3)
    assert report.counts["mmlu/acc"] == 3


def test_real_mmlu_letters_with_shots(engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path) -> None:
    if not (SHARED_DATA / "mmlu").is_dir():
        pytest.skip(f"no {SHARED_DATA / 'mmlu'}")
    folder = tmp_path / "mmlu"
    for part in ("test", "dev"):
        (folder / part).mkdir(parents=True)
        for subject in ("global_facts", "international_law"):
            name = f"{part}/{subject}_{part}.csv"
            (folder / name).write_text((SHARED_DATA / "mmlu" / name).read_text(encoding="utf-8"), encoding="utf-8")
    report = _evaluate(engine, tiny_checkpoint, [f"mmlu={folder}"], limit=2, samples_file=tmp_path / "samples.jsonl")
    samples = _samples(tmp_path / "samples.jsonl")
    assert len(samples) == 4
    for sample in samples:
        assert [message.role for message in sample.messages] == ["system", *["user", "assistant"] * 5, "user"]
        messages = [message.model_dump() for message in sample.messages]
        direct = _option_logprobs(tiny_checkpoint, messages, ["A", "B", "C", "D"])
        assert sample.option_logprobs == pytest.approx(direct, abs=1e-3)
        assert sample.verdicts["acc"] == float(direct.index(max(direct)) == sample.target)
    by_subject = [report.metrics[f"mmlu_{subject}/acc"] for subject in ("global_facts", "international_law")]
    assert report.metrics["mmlu/acc"] == pytest.approx(sum(by_subject) / 2)
    assert report.protocol.tasks["mmlu_global_facts"].num_fewshot == 5
    assert report.protocol.tasks["mmlu_global_facts"].num_available == 100


def test_protocol_digest_follows_data_limit_and_template(
    engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    data = _ifeval_file(tmp_path / "a.jsonl")
    changed = [{**IFEVAL[0], "kwargs": [{}]}, IFEVAL[1], {**IFEVAL[2], "kwargs": [{"num_bullets": 3}]}]
    other = _ifeval_file(tmp_path / "b.jsonl", changed)
    first = _evaluate(engine, tiny_checkpoint, [f"ifeval={data}"])
    again = _evaluate(engine, tiny_checkpoint, [f"ifeval={data}"])
    assert first == again
    reports = {
        "data": _evaluate(engine, tiny_checkpoint, [f"ifeval={other}"]),
        "limit": _evaluate(engine, tiny_checkpoint, [f"ifeval={data}"], limit=2),
        "tokens": _evaluate(engine, tiny_checkpoint, [f"ifeval={data}"], max_gen_tokens=8),
    }
    digests = {first.protocol.digest, *(report.protocol.digest for report in reports.values())}
    assert len(digests) == 4
    # The same prompts with another constraint: only the data differ.
    before, after = first.protocol.tasks["ifeval"], reports["data"].protocol.tasks["ifeval"]
    assert before.data_digest != after.data_digest
    assert before.prompt_digest == after.prompt_digest


def test_task_folders_come_first_and_stop_strings_hold(
    engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.py").write_text(
        "from datasets import Dataset\n"
        "def load(**_):\n"
        "    return {'test': Dataset.from_list([{'q': 'Say one.', 'a': 'one'}, {'q': 'Say two.', 'a': 'two'}])}\n"
    )
    (folder / "mill.yaml").write_text(
        "task: mill\ncustom_dataset: !function rows.load\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\ngen_prefix: 'Well'\n"
        "generation_kwargs: {until: ['e', 't', 'a'], max_gen_toks: 40}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    report = _evaluate(
        engine,
        tiny_checkpoint,
        ["mill"],
        include_path=folder,
        max_gen_tokens=100,
        samples_file=tmp_path / "samples.jsonl",
    )
    assert report.metrics["mill/exact_match"] == 0.0
    for sample in _samples(tmp_path / "samples.jsonl"):
        assert sample.messages[-1].model_dump() == {"role": "assistant", "content": "Well"}
        assert sample.response is not None
        assert not set("eta") & set(sample.response)
        assert sample.num_tokens is not None
        assert sample.num_tokens <= 40


def test_prompts_that_do_not_fit_are_counted(engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path) -> None:
    long = {**IFEVAL[0], "prompt": "word " * 1000}
    data = _ifeval_file(tmp_path / "a.jsonl", [*IFEVAL, long])
    with pytest.raises(
        DataError, match=r"do not fit the context of 4096 tokens:\n  ifeval: 1 of 4 questions .the longest needs 50\d\d"
    ):
        _evaluate(engine, tiny_checkpoint, [f"ifeval={data}"])
    with pytest.raises(DataError, match="context of 64 tokens"):
        _evaluate(engine, tiny_checkpoint, [f"ifeval={data}"], limit=1, max_model_len=64)


def test_missing_sentence_data_are_found_before_anything_is_generated(
    engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr("alignloop.evaluation.ifeval.SENTENCE_PACKAGE", ("no_such_package", ""))
    row = {
        **IFEVAL[0],
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"relation": "at least", "num_sentences": 2}],
    }
    data = _ifeval_file(tmp_path / "a.jsonl", [IFEVAL[1], row])
    with pytest.raises(DataError, match="NLTK_DATA"):
        _evaluate(engine, tiny_checkpoint, [f"ifeval={data}"])
    assert _evaluate(engine, tiny_checkpoint, [f"ifeval={data}"], limit=1).counts["ifeval/mean"] == 1


def test_wrong_task_lists(tmp_path: Path) -> None:
    data = _ifeval_file(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="no task"):
        load_tasks([], include_path=None)
    with pytest.raises(DataError, match="ifeval is named twice"):
        load_tasks([f"ifeval={data}", f"ifeval={data}"], include_path=None)
    with pytest.raises(DataError, match=r"only ifeval=FILE\.jsonl, mmlu=FOLDER"):
        load_tasks(["gsm8k=data"], include_path=None)
    with pytest.raises(DataError, match="no task 'mmlu_anatomi'; near: mmlu_anatomy"):
        check_names(["ifeval", "mmlu_anatomi"], known=["ifeval", "mmlu_anatomy", "gsm8k"])
    with pytest.raises(DataError, match="no folder"):
        load_tasks(["mill"], include_path=tmp_path / "none")


def test_lm_eval_is_quiet(
    engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = _ifeval_file(tmp_path / "a.jsonl")
    folder = _mmlu_folder(tmp_path / "mmlu")
    _evaluate(engine, tiny_checkpoint, [f"ifeval={data}"], limit=1)  # weights are loaded, with their own bar
    capfd.readouterr()
    before = logging.getLogger("lm_eval").level  # a test of the command line before this one may have set it
    _evaluate(engine, tiny_checkpoint, [f"ifeval={data}", f"mmlu={folder}"])
    written = capfd.readouterr()
    assert written.out == ""
    assert written.err == ""
    assert logging.getLogger("lm_eval").level == before
