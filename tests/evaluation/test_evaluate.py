"""An evaluation from task names to figures, on a random model: verdicts, logprobs and answers worked out directly."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evaluation_case import SENTENCES, NoEngine, asked, lines, mmlu_folder, samples_in
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignloop.chat.load import load_format
from alignloop.config.bundled import bundled_benchmarks
from alignloop.engines.transformers_engine import TransformersEngine
from alignloop.errors import DataError
from alignloop.evaluation.ifeval import load_checkers
from alignloop.evaluation.lm import EngineLM
from alignloop.evaluation.questions import pack_messages, unpack_messages
from alignloop.evaluation.report import EvalReport
from alignloop.evaluation.tasks import check_names, load_tasks, local_mmlu
from alignloop.progress import QuietProgress
from alignloop.records import Message
from alignloop.stages.evaluate import local_prompts, too_long

IFEVAL: list[dict[str, Any]] = [
    {"key": index, "prompt": f"Tell me about mill {index}. {text}", "instruction_id_list": ids, "kwargs": kwargs}
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
MILLS = ["Where is the mill?,by the river,on the hill,in town,nowhere at all,B", "Who runs it?,Ada,Bo,Cy,Dee,A"]
MMLU = {
    "mills": MILLS,
    "rivers": ["Is it deep?,yes,no,at times,nobody knows,C"] * 3 + ["A long one " + "word " * 60 + "?,a,b,c,d,D"],
}
SHOTS = ["What is one and one?,one,two,three,four,B", "What is not wet?,rain,a river,sand,the sea,C"]
ANSWER_KEY = "exact_match,get_response"


@pytest.fixture(scope="module")
def measured(
    engine: TransformersEngine, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """One evaluation on three benchmarks: `report`, and `samples` by the task's name."""
    folder = tmp_path_factory.mktemp("measured")
    tasks = [f"ifeval={lines(folder / 'ifeval.jsonl', IFEVAL)}"]
    tasks += [f"{kind}={folder / 'mmlu'}" for kind in ("mmlu", "mmlu_generative")]
    mmlu_folder(folder / "mmlu", MMLU, SHOTS)
    options = {"dtype": "float32", "quantization": "fp8", "samples_file": folder / "samples.jsonl"}
    report = asked(engine, tiny_checkpoint, *tasks, **options)
    rows = samples_in(folder / "samples.jsonl")
    samples = {task: [row for row in rows if row.task == task] for task in {row.task for row in rows}}
    return SimpleNamespace(report=report, samples=samples, tasks=tasks, folder=folder)


def option_logprobs(checkpoint: Path, messages: list[dict[str, str]], options: list[str]) -> list[float]:
    """Sums of the options' token logprobs after the templated messages, one plain forward pass each."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    context = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    sums = []
    for option in options:
        ids = tokenizer.encode(option, add_special_tokens=False)
        with torch.inference_mode():
            logits = model(torch.tensor([[*context, *ids]])).logits[0].log_softmax(-1)
        sums.append(float(logits[len(context) - 1 : -1].gather(-1, torch.tensor(ids)[:, None]).sum()))
    return sums


def test_ifevals_figures_are_those_of_lm_evals_verdicts(measured: SimpleNamespace) -> None:
    report, samples, utils = measured.report, measured.samples["ifeval"], load_checkers()
    assert [sample.prompt for sample in samples] == [row["prompt"] for row in IFEVAL]
    for sample, row in zip(samples, IFEVAL, strict=True):
        strict = utils.test_instruction_following_strict(utils.InputExample(**row), sample.response)
        assert sample.verdicts["inst_level_strict_acc"] == strict.follow_instruction_list
        assert sample.verdicts["prompt_level_strict_acc"] == float(strict.follow_all_instructions)
        assert 0 < sample.num_tokens <= 12
    followed = sum(sum(sample.verdicts["inst_level_strict_acc"]) for sample in samples)
    assert report.metrics["ifeval/inst_level_strict_acc"] == pytest.approx(followed / 4)
    assert report.counts["ifeval/inst_level_strict_acc"] == 4
    assert report.counts["ifeval/type/punctuation:no_comma"] == 2
    four = [f"ifeval/{level}_level_{mode}_acc" for level in ("prompt", "inst") for mode in ("strict", "loose")]
    assert report.metrics["ifeval/mean"] == pytest.approx(sum(report.metrics[key] for key in four) / 4)
    assert {*four, "ifeval/mean", "ifeval/type/punctuation:no_comma"} <= set(report.stderr)
    assert "ifeval/type/detectable_format:number_bullet_lists" not in report.stderr  # one prompt


def test_answers_are_the_models_greedy_ones(measured: SimpleNamespace, tiny_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    messages = [{"role": "user", "content": IFEVAL[0]["prompt"]}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    output = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert measured.samples["ifeval"][0].response == tokenizer.decode(output, skip_special_tokens=True)


def test_letters_after_shots_are_scored_as_by_a_plain_forward_pass(
    measured: SimpleNamespace, tiny_checkpoint: Path
) -> None:
    for sample in measured.samples["mmlu_mills"]:
        assert [message.role for message in sample.messages] == ["system", *["user", "assistant"] * 2, "user"]
        direct = option_logprobs(tiny_checkpoint, [message.model_dump() for message in sample.messages], list("ABCD"))
        assert sample.option_logprobs == pytest.approx(direct, abs=1e-3)
        assert sample.verdicts["acc"] == float(direct.index(max(direct)) == sample.target)


def test_option_texts_are_scored_as_by_a_plain_forward_pass(
    engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    loaded = local_mmlu(mmlu_folder(tmp_path / "mmlu", {"mills": MILLS}), form="option_text", num_fewshot=0)
    report = asked(engine, tiny_checkpoint, tasks=loaded, samples_file=tmp_path / "samples.jsonl")
    right = []
    for sample, row in zip(samples_in(tmp_path / "samples.jsonl"), MILLS, strict=True):
        question, *options, letter = row.split(",")
        direct = option_logprobs(tiny_checkpoint, [{"role": "user", "content": question}], options)
        assert sample.option_logprobs == pytest.approx(direct, abs=1e-3)
        right.append(float(direct.index(max(direct)) == "ABCD".index(letter)))
        per_char = [logprob / len(option) for logprob, option in zip(direct, options, strict=True)]
        assert sample.verdicts["acc_norm"] == float(per_char.index(max(per_char)) == "ABCD".index(letter))
    assert report.metrics["mmlu/acc"] == report.metrics["mmlu_mills/acc"] == pytest.approx(sum(right) / 2)
    assert report.counts["mmlu/acc"] == 2


def test_halves_of_a_benchmark_have_names_of_their_own(
    engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By path, and bundled where their data lie in the package: one evaluation asks both, and mixes nothing up."""
    monkeypatch.setattr("alignloop.config.bundled.QUICKSTART", tmp_path)
    (tmp_path / "data").mkdir()
    dev = lines(tmp_path / "data" / "ifeval_dev.jsonl", IFEVAL[:2])
    lines(tmp_path / "data" / "ifeval.jsonl", IFEVAL[2:])
    report = asked(engine, tiny_checkpoint, f"ifeval_half={dev}", "ifeval", "ifeval_dev", include_path="quickstart")
    assert list(report.protocol.tasks) == ["ifeval_half", "ifeval", "ifeval_dev"]
    assert report.protocol.groups == {}
    names = {key.partition("/")[0] for key in report.metrics}
    assert names == {"ifeval_half", "ifeval", "ifeval_dev"}
    of_dev = {key.partition("/")[2]: value for key, value in report.metrics.items() if key.startswith("ifeval_dev/")}
    assert of_dev == {key.partition("/")[2]: v for key, v in report.metrics.items() if key.startswith("ifeval_half/")}
    assert "type/punctuation:no_comma" in of_dev
    assert report.counts["ifeval_dev/inst_level_strict_acc"] == 3
    assert report.counts["ifeval/inst_level_strict_acc"] == 1
    assert "ifeval_unseen" not in bundled_benchmarks()


def test_macro_is_over_subjects_and_micro_over_questions(measured: SimpleNamespace) -> None:
    report = measured.report
    mills, rivers = report.metrics["mmlu_mills/acc"], report.metrics["mmlu_rivers/acc"]
    assert report.metrics["mmlu/acc"] == pytest.approx((2 * mills + 4 * rivers) / 6)
    assert report.metrics["mmlu/acc_macro"] == pytest.approx((mills + rivers) / 2)
    assert report.counts["mmlu/acc_macro"] == 6
    errors = [report.stderr[f"mmlu_{subject}/acc"] for subject in MMLU]
    assert report.stderr["mmlu/acc_macro"] == pytest.approx((errors[0] ** 2 + errors[1] ** 2) ** 0.5 / 2)


def test_generated_answers_are_taken_by_lm_evals_own_filter(measured: SimpleNamespace) -> None:
    report = measured.report
    assert {f"mmlu_generative/{ANSWER_KEY}", f"mmlu_mills_generative/{ANSWER_KEY}"} <= report.metrics.keys()
    assert "mmlu_generative/exact_match_macro,get_response" in report.metrics
    assert report.metrics["mmlu_rivers_generative/stop_rate"] >= 0
    first = measured.samples["mmlu_mills_generative"][0]
    assert [message.role for message in first.messages] == ["system", "user"]
    assert first.prompt.endswith("\nA. by the river\nB. on the hill\nC. in town\nD. nowhere at all\nAnswer:")
    task = local_mmlu(measured.folder / "mmlu", form="generated").tasks["mmlu_mills_generative"]
    for answer, right in {" b.\nBecause": 1.0, "B": 1.0, "A": 0.0, "The answer is B": 0.0}.items():
        task.build_all_requests(limit=1)
        task.instances[0].resps = [answer]
        task.apply_filters()
        filtered = task.instances[0].filtered_resps["get_response"]
        assert task.process_results(task.eval_docs[0], [filtered])["exact_match"] == right, answer


def test_the_protocol_says_how_it_was_measured(measured: SimpleNamespace, tiny_checkpoint: Path) -> None:
    protocol = measured.report.protocol
    assert (protocol.engine_dtype, protocol.quantization, protocol.seed) == ("float32", "fp8", 0)
    assert protocol.stop_token_ids == list(load_format(tiny_checkpoint).stop_token_ids)
    assert protocol.groups["mmlu"] == ["mmlu_mills", "mmlu_rivers"]
    of = protocol.tasks
    assert [(of[n].num_samples, of[n].num_available, of[n].num_fewshot) for n in ("ifeval", "mmlu_mills")] == [
        (3, 3, 0),
        (2, 2, 2),
    ]
    assert (of["ifeval"].version, of["ifeval"].generation["max_gen_toks"]) == ("4.0", 12)
    generated = of["mmlu_mills_generative"]
    assert (generated.num_fewshot, generated.version, generated.generation["until"]) == (0, "3.0", ["</s>", "\n"])
    assert EvalReport.model_validate_json(measured.report.model_dump_json()) == measured.report


def test_protocol_digest_follows_data_limit_and_tokens(
    engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    task = f"ifeval={lines(tmp_path / 'a.jsonl', IFEVAL)}"
    changed = lines(tmp_path / "b.jsonl", [*IFEVAL[:2], {**IFEVAL[2], "kwargs": [{"num_bullets": 3}]}])
    first, again, data, limit, tokens = (
        asked(engine, tiny_checkpoint, name, **options)
        for name, options in (
            (task, {}),
            (task, {}),
            (f"ifeval={changed}", {}),
            (task, {"limit": 2}),
            (task, {"max_gen_tokens": 8}),
        )
    )
    assert first == again
    assert len({report.protocol.digest for report in (first, data, limit, tokens)}) == 4
    # The same prompts with another constraint: only the data differ.
    before, after = first.protocol.tasks["ifeval"], data.protocol.tasks["ifeval"]
    assert before.data_digest != after.data_digest
    assert before.prompt_digest == after.prompt_digest


def task_folder(folder: Path, rows: str, *more: str) -> Path:
    folder.mkdir()
    (folder / "rows.py").write_text(rows)
    (folder / "mill.yaml").write_text(
        "task: mill\ncustom_dataset: !function rows.load\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n" + "\n".join(more)
    )
    return folder


def test_task_folders_come_first_and_stop_strings_hold(
    engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    rows = (
        "from datasets import Dataset\n"
        "def load(**_):\n"
        "    return {'test': Dataset.from_list([{'q': 'Say one.', 'a': 'one'}, {'q': 'Say two.', 'a': 'two'}])}\n"
    )
    stops = "generation_kwargs: {until: ['e', 't', 'a'], max_gen_toks: 40}"
    folder = task_folder(tmp_path / "tasks", rows, "gen_prefix: 'Well'", stops)
    options = {"include_path": folder, "max_gen_tokens": 100, "samples_file": tmp_path / "samples.jsonl"}
    report = asked(engine, tiny_checkpoint, "mill", **options)
    assert report.metrics["mill/exact_match"] == 0.0
    for sample in samples_in(tmp_path / "samples.jsonl"):
        assert sample.messages[-1].model_dump() == {"role": "assistant", "content": "Well"}
        assert sample.response is not None
        assert not set("eta") & set(sample.response)
        assert sample.num_tokens is not None
        assert sample.num_tokens <= 40


@pytest.mark.parametrize("kind", ["mmlu", "mmlu_generative"])
@pytest.mark.parametrize("max_model_len", [330, 600, 700])
def test_questions_that_do_not_fit_are_counted_by_task_before_the_engine_starts(
    kind: str, max_model_len: int, tiny_checkpoint: Path, measured: SimpleNamespace
) -> None:
    """And the check, which does without lm-eval, measures what lm-eval builds."""
    chat = load_format(tiny_checkpoint)
    task = f"{kind}={measured.folder / 'mmlu'}"
    prompts = local_prompts(task, bundled=False)
    found = too_long(prompts, chat=chat, limit=None, max_model_len=max_model_len)
    expected = DataError if found else AssertionError  # where all fit, the engine is asked
    with pytest.raises(expected) as caught:
        asked(NoEngine(), tiny_checkpoint, task, max_model_len=max_model_len)
    said = [line.strip() for line in str(caught.value).splitlines()[1:-1]]
    assert said == [str(one) for one in found]
    if (kind, max_model_len) == ("mmlu", 600):
        # One token a byte: the two shots and the long question need more than 600, the others less.
        assert "do not fit the context of 600 tokens" in str(caught.value)
        assert "mmlu_rivers: 1 of 4 questions with 2 shots before each (the longest needs " in str(caught.value)
        assert "mmlu_mills" not in str(caught.value)
        assert "fewer shots" in str(caught.value)


def test_the_check_builds_the_messages_that_are_sent(measured: SimpleNamespace) -> None:
    for name in measured.tasks:
        for task in local_prompts(name, bundled=False):
            sent = [sample.messages for sample in measured.samples[task.name]]
            assert [[*task.shots, Message(role="user", content=question)] for question in task.questions] == sent
    bundled = [task for name in ("ifeval", "mmlu") for task in local_prompts(name, bundled=True)]
    loaded = load_tasks(["ifeval", "mmlu"], include_path="quickstart").tasks
    assert {task.name for task in bundled} == set(loaded)
    for task in bundled:
        assert task.shots == ()
        assert [loaded[task.name].doc_to_text(doc) for doc in loaded[task.name].eval_docs] == list(task.questions)


def test_missing_sentence_data_are_found_before_anything_is_generated(
    engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path, without_sentence_data: None
) -> None:
    task = f"ifeval={lines(tmp_path / 'a.jsonl', [IFEVAL[1], {**IFEVAL[0], **SENTENCES}])}"
    with pytest.raises(DataError, match="NLTK_DATA"):
        asked(NoEngine(), tiny_checkpoint, task)
    assert asked(engine, tiny_checkpoint, task, limit=1).counts["ifeval/mean"] == 1


def test_wrong_task_lists(tmp_path: Path) -> None:
    data = lines(tmp_path / "a.jsonl", [{"question": "?", "answer": "A"}])
    for names, include_path, message in (
        ([], None, "no task"),
        ([f"ifeval={data}"] * 2, None, "ifeval is named twice"),
        (["gsm8k=data"], None, r"only ifeval=FILE\.jsonl, mmlu=FOLDER"),
        (["mill"], tmp_path / "none", "no folder"),
        ([f"mmlu_generativ={tmp_path}"], None, r"mmlu_generativ=.*did you mean mmlu_generative=FOLDER"),
        ([f"ifeval={tmp_path}"], None, r"IFEval data are JSON lines of key, prompt, instruction_id_list, kwargs"),
        ([f"ifeval={data}"], None, r"a\.jsonl, line 1: key: .*IFEval data are"),
        ([f"mmlu={data}"], None, r"a file, and no test/<subject>_test\.csv in it"),
    ):
        with pytest.raises(DataError, match=message):
            load_tasks(names, include_path=include_path)
    with pytest.raises(DataError, match="no task 'mmlu_anatomi'; near: mmlu_anatomy"):
        check_names(["ifeval", "mmlu_anatomi"], known=["ifeval", "mmlu_anatomy", "gsm8k"])


def test_tasks_that_cannot_run_here_say_why(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for flag, message in (("UNSAFE_CODE", "runs code that the model writes"), ("MULTIMODAL", "shows images")):
        loaded = local_mmlu(mmlu_folder(tmp_path / "mmlu", {"mills": MILLS}))
        setattr(loaded.tasks["mmlu_mills"], flag, True)
        with pytest.raises(DataError, match=f"mmlu_mills {message}"):
            asked(NoEngine(), tiny_checkpoint, tasks=loaded)
    for number, (body, message) in enumerate(
        {
            "import nopackage_xyz": "`pip install nopackage_xyz`",
            "import nltk\ndef load(**_): nltk.data.find('corpora/nothere_xyz')": "nltk.downloader nothere_xyz",
            "def load(**_): raise ConnectionError('no hub')": r"data of mill cannot be had: no hub.*HF_HUB_OFFLINE=1",
        }.items()
    ):
        with pytest.raises(DataError, match=message):
            load_tasks(["mill"], include_path=task_folder(tmp_path / f"tasks-{number}", body))


def test_lm_eval_is_quiet(
    engine: TransformersEngine, tiny_checkpoint: Path, measured: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    engine.load_weights(tiny_checkpoint)  # with their own bar
    capfd.readouterr()
    before = logging.getLogger("lm_eval").level  # a test of the command line before this one may have set it
    asked(engine, tiny_checkpoint, *measured.tasks[:2], limit=1)
    written = capfd.readouterr()
    assert (written.out, written.err) == ("", "")
    assert logging.getLogger("lm_eval").level == before


def lm_over(engine: TransformersEngine, checkpoint: Path, *, max_model_len: int = 4096) -> EngineLM:
    return EngineLM(
        engine,
        checkpoint=checkpoint,
        tokenizer=AutoTokenizer.from_pretrained(checkpoint),
        chat=load_format(checkpoint),
        max_model_len=max_model_len,
        max_gen_tokens=20,
        seed=0,
        progress=QuietProgress(),
    )


@pytest.fixture
def lm(engine: TransformersEngine, tiny_checkpoint: Path) -> EngineLM:
    return lm_over(engine, tiny_checkpoint)


def instance(kind: Any, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("task", 0, 1))


def test_messages_survive_lm_evals_strings() -> None:
    messages = [{"role": "system", "content": "Be\nbrief."}, {"role": "user", "content": 'A "mill" <|eot_id|> \x00 ü'}]
    assert unpack_messages(pack_messages(messages)) == tuple(Message(**message) for message in messages)
    assert unpack_messages("a plain prompt") is None


def test_special_tokens_in_a_prompt_stay_text(lm: EngineLM) -> None:
    for content in ("stop here", "stop <|eot_id|> here"):
        context, option = lm._encode_pair(lm.apply_chat_template([{"role": "user", "content": content}]), "<|eot_id|>")
        assert [*context, *option].count(lm.eot_token_id) == 1  # the one that ends the user's turn


def test_rolling_loglikelihood_predicts_each_token_once(
    lm: EngineLM, engine: TransformersEngine, tiny_checkpoint: Path
) -> None:
    text = "The old mill stands by the river and turns."
    (total,) = lm.loglikelihood_rolling([instance("loglikelihood_rolling", text)])
    ids = torch.tensor([[lm.prefix_token_id, *lm.tok_encode(text)]])
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
    with torch.inference_mode():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    direct = float(logprobs.gather(-1, ids[0, 1:, None]).sum())
    assert total == pytest.approx(direct, abs=1e-3)
    # In windows of 18 tokens the sum is another number, of as many terms.
    windowed = lm_over(engine, tiny_checkpoint, max_model_len=20)
    (in_windows,) = windowed.loglikelihood_rolling([instance("loglikelihood_rolling", text)])
    assert in_windows != pytest.approx(direct, abs=1e-3)


def test_empty_continuations_are_certain(lm: EngineLM) -> None:
    context = lm.apply_chat_template([{"role": "user", "content": "Hello"}])
    results = lm.loglikelihood([instance("loglikelihood", context, text) for text in ("a", "", "b")])
    assert results[1] == (0.0, True)
    assert results[0][0] < 0 > results[2][0]
    assert results[0] != results[2]


def test_tasks_that_sample_do_so_with_the_seed(lm: EngineLM) -> None:
    context = lm.apply_chat_template([{"role": "user", "content": "Hello"}])
    sampled = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 500, "until": "\n\n"}
    assert lm.effective_kwargs(sampled)["max_gen_toks"] == 20
    assert lm.effective_kwargs({"temperature": 0.7})["temperature"] == 0.0
    requests = [instance("generate_until", context, sampled) for _ in range(2)]
    first = lm.generate_until(requests)
    assert first == lm.generate_until(requests)
    assert first[0] != first[1]
