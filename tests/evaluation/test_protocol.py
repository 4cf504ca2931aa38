"""What an evaluation records of how it was made, and what it refuses before the engine starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignloop.alone.evaluate import find_setting
from alignloop.chat.load import load_format
from alignloop.config.bundled import QUICKSTART
from alignloop.data.jsonl import load_jsonl
from alignloop.engines.transformers_engine import TransformersEngine
from alignloop.errors import DataError, ModelError
from alignloop.evaluation.evaluate import evaluate, evaluate_loaded
from alignloop.evaluation.report import EvalReport, EvalSample
from alignloop.evaluation.tasks import load_tasks, local_mmlu
from alignloop.progress import QuietProgress
from alignloop.stages.evaluate import local_prompts, too_long

QUESTIONS = {
    "mills": ["Where is the mill?,by the river,on the hill,in town,nowhere,B", "Who runs it?,Ada,Bo,Cy,Dee,A"],
    "rivers": ["Is it deep?,yes,no,at times,nobody knows,C"] * 3 + ["A long one " + "word " * 60 + "?,a,b,c,d,D"],
}
SHOTS = ["What is one and one?,one,two,three,four,B", "What is not wet?,rain,a river,sand,the sea,C"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, rows in (("test", QUESTIONS), ("dev", dict.fromkeys(QUESTIONS, SHOTS))):
        (tmp_path / "mmlu" / part).mkdir(parents=True)
        for subject, lines in rows.items():
            (tmp_path / "mmlu" / part / f"{subject}_{part}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "mmlu"


def _evaluate(engine: Any, checkpoint: Path, tasks: list[str], **options: Any) -> EvalReport:
    settings: dict[str, Any] = {"include_path": None, "limit": None, "max_gen_tokens": 12, "seed": 0}
    return evaluate(engine, checkpoint=checkpoint, tasks=tasks, progress=QuietProgress(), **{**settings, **options})


def _samples(path: Path) -> list[EvalSample]:
    return list(load_jsonl(path, EvalSample))


class NoEngine:
    """Fails the test where anything is asked of an engine."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the engine was asked to {name}")


def test_the_protocol_says_how_it_was_measured(engine: TransformersEngine, tiny_checkpoint: Path, folder: Path) -> None:
    report = _evaluate(engine, tiny_checkpoint, [f"mmlu={folder}"], dtype="float32", quantization="fp8")
    protocol = report.protocol
    assert (protocol.engine_dtype, protocol.quantization, protocol.seed) == ("float32", "fp8", 0)
    assert protocol.stop_token_ids == list(load_format(tiny_checkpoint).stop_token_ids)
    assert protocol.groups == {"mmlu": ["mmlu_mills", "mmlu_rivers"]}
    assert protocol.tasks["mmlu_mills"].num_fewshot == 2
    assert EvalReport.model_validate_json(report.model_dump_json()) == report


def test_macro_is_over_subjects_and_micro_over_questions(
    engine: TransformersEngine, tiny_checkpoint: Path, folder: Path
) -> None:
    report = _evaluate(engine, tiny_checkpoint, [f"mmlu={folder}"])
    mills, rivers = report.metrics["mmlu_mills/acc"], report.metrics["mmlu_rivers/acc"]
    assert report.metrics["mmlu/acc"] == pytest.approx((2 * mills + 4 * rivers) / 6)
    assert report.metrics["mmlu/acc_macro"] == pytest.approx((mills + rivers) / 2)
    assert report.counts["mmlu/acc_macro"] == 6
    errors = [report.stderr[f"mmlu_{subject}/acc"] for subject in QUESTIONS]
    assert report.stderr["mmlu/acc_macro"] == pytest.approx((errors[0] ** 2 + errors[1] ** 2) ** 0.5 / 2)


def test_generated_answers_are_taken_by_lm_evals_own_filter(
    engine: TransformersEngine, tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    report = _evaluate(engine, tiny_checkpoint, [f"mmlu_generative={folder}"], samples_file=tmp_path / "samples.jsonl")
    key = "exact_match,get_response"
    assert {"mmlu_generative/" + key, "mmlu_mills_generative/" + key} <= report.metrics.keys()
    assert "mmlu_generative/exact_match_macro,get_response" in report.metrics
    assert report.metrics["mmlu_rivers_generative/stop_rate"] >= 0
    protocol = report.protocol.tasks["mmlu_mills_generative"]
    assert (protocol.num_fewshot, protocol.version) == (0, "3.0")
    assert protocol.generation["until"] == ["</s>", "\n"]
    first = _samples(tmp_path / "samples.jsonl")[0]
    assert [message.role for message in first.messages] == ["system", "user"]
    assert first.prompt.endswith("\nA. by the river\nB. on the hill\nC. in town\nD. nowhere\nAnswer:")
    task = local_mmlu(folder, form="generated").tasks["mmlu_mills_generative"]
    answers = {" b.\nBecause": 1.0, "B": 1.0, "A": 0.0, "The answer is B": 0.0}
    for answer, right in answers.items():
        task.build_all_requests(limit=1)
        task.instances[0].resps = [answer]
        task.apply_filters()
        filtered = task.instances[0].filtered_resps["get_response"]
        assert task.process_results(task.eval_docs[0], [filtered])["exact_match"] == right, answer


def test_questions_that_do_not_fit_are_counted_by_task_before_the_engine_starts(
    tiny_checkpoint: Path, folder: Path
) -> None:
    # One token a byte: the two shots and the long question need more than 600, the others less.
    with pytest.raises(DataError, match="do not fit the context of 600 tokens") as caught:
        _evaluate(NoEngine(), tiny_checkpoint, [f"mmlu={folder}"], max_model_len=600)
    assert "mmlu_rivers: 1 of 4 questions with 2 shots before each (the longest needs " in str(caught.value)
    assert "mmlu_mills" not in str(caught.value)
    assert "fewer shots" in str(caught.value)


@pytest.mark.parametrize("kind", ["mmlu", "mmlu_generative"])
@pytest.mark.parametrize("max_model_len", [330, 600, 700])
def test_the_check_measures_what_lm_eval_builds(
    kind: str, max_model_len: int, tiny_checkpoint: Path, folder: Path
) -> None:
    chat = load_format(tiny_checkpoint)
    tasks = local_prompts(f"{kind}={folder}", bundled=False)
    found = too_long(tasks, chat=chat, limit=None, max_model_len=max_model_len)
    expected = DataError if found else AssertionError  # where all fit, the engine is asked
    with pytest.raises(expected) as caught:
        _evaluate(NoEngine(), tiny_checkpoint, [f"{kind}={folder}"], max_model_len=max_model_len)
    lines = [line.strip() for line in str(caught.value).splitlines()[1:-1]]
    assert lines == [str(task) for task in found]


def test_the_check_builds_the_messages_that_are_sent(
    engine: TransformersEngine, tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    for name in (f"mmlu={folder}", f"mmlu_generative={folder}"):
        _evaluate(engine, tiny_checkpoint, [name], samples_file=tmp_path / "samples.jsonl")
        sent = {(row.task, row.index): row.messages for row in _samples(tmp_path / "samples.jsonl")}
        for task in local_prompts(name, bundled=False):
            for index, question in enumerate(task.questions):
                messages = sent[task.name, index]
                assert [*task.shots] == messages[:-1]
                assert messages[-1].content == question
    bundled = [task for name in ("ifeval", "mmlu") for task in local_prompts(name, bundled=True)]
    loaded = load_tasks(["ifeval", "mmlu"], include_path="quickstart").tasks
    assert {task.name for task in bundled} == set(loaded)
    for task in bundled:
        assert task.shots == ()
        assert [loaded[task.name].doc_to_text(doc) for doc in loaded[task.name].eval_docs] == list(task.questions)


def test_a_checkpoint_without_a_template_is_refused_with_the_remedy(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(tiny_checkpoint, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    config = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "chat_template"}))
    with pytest.raises(ModelError, match=r"bare: the tokenizer has no chat template.*--chat-template llama3"):
        _evaluate(NoEngine(), bare, ["ifeval"], include_path="quickstart")


def test_tasks_that_cannot_run_here_are_refused_by_name(tiny_checkpoint: Path, folder: Path) -> None:
    for flag, message in (("UNSAFE_CODE", "runs code that the model writes"), ("MULTIMODAL", "shows images")):
        loaded = local_mmlu(folder)
        setattr(loaded.tasks["mmlu_mills"], flag, True)
        with pytest.raises(DataError, match=f"mmlu_mills {message}"):
            evaluate_loaded(
                NoEngine(),
                checkpoint=tiny_checkpoint,
                loaded=loaded,
                limit=None,
                max_gen_tokens=4,
                seed=0,
                progress=QuietProgress(),
            )


def test_a_task_that_lacks_something_says_what_to_do(tmp_path: Path) -> None:
    def task(body: str) -> Path:
        place = tmp_path / f"tasks-{len(list(tmp_path.iterdir()))}"
        place.mkdir()
        (place / "rows.py").write_text(body)
        (place / "mill.yaml").write_text(
            "task: mill\ncustom_dataset: !function rows.load\ntest_split: test\noutput_type: generate_until\n"
            "doc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
            "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        )
        return place

    lacking = {
        "import nopackage_xyz": "`pip install nopackage_xyz`",
        "import nltk\ndef load(**_): nltk.data.find('corpora/nothere_xyz')": "python -m nltk.downloader nothere_xyz",
        "def load(**_): raise ConnectionError('no hub')": r"data of mill cannot be had: no hub.*HF_HUB_OFFLINE=1",
    }
    for body, message in lacking.items():
        with pytest.raises(DataError, match=message):
            load_tasks(["mill"], include_path=task(body))


def test_wrong_kinds_of_local_data_have_a_near_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mmlu_generativ=.*did you mean mmlu_generative=FOLDER"):
        load_tasks([f"mmlu_generativ={tmp_path}"], include_path=None)
    with pytest.raises(DataError, match=r"IFEval data are JSON lines of key, prompt, instruction_id_list, kwargs"):
        load_tasks([f"ifeval={tmp_path}"], include_path=None)
    (tmp_path / "rows.jsonl").write_text('{"question": "?", "answer": "A"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: key: .*IFEval data are"):
        load_tasks([f"ifeval={tmp_path / 'rows.jsonl'}"], include_path=None)
    with pytest.raises(DataError, match=r"a file, and no test/<subject>_test\.csv in it"):
        load_tasks([f"mmlu={tmp_path / 'rows.jsonl'}"], include_path=None)


def test_a_runs_checkpoint_is_measured_as_the_run_does(tmp_path: Path) -> None:
    from alignloop.config import load_recipe

    recipe = load_recipe("quickstart", overrides=["evaluate.limit=7"])
    (tmp_path / "run" / "round-01").mkdir(parents=True)
    (tmp_path / "run" / "resolved.json").write_text(
        json.dumps({"run_version": 1, "recipe": recipe.model_dump(mode="json")})
    )
    own = shutil.copytree(QUICKSTART / "base", tmp_path / "run" / "round-01" / "model")
    setting = find_setting(own, {})
    assert setting.evaluate == recipe.evaluate
    assert setting.engine == recipe.engine
    assert find_setting(own, {"tasks": ("ifeval",)}).evaluate.limit == 7
    # Other tasks than the run's have lengths of their own; so has a checkpoint outside any run.
    other = find_setting(own, {"tasks": ("gsm8k",)})
    assert (other.evaluate.limit, other.engine.max_model_len, other.engine.dtype) == (None, 2048, "float32")
    outside = find_setting(QUICKSTART / "base", {})
    assert outside.evaluate.include_path == "quickstart"
    assert outside.origin is None
    assert find_setting(QUICKSTART / "base", {"include_path": ""}).evaluate.include_path is None
    named = find_setting(QUICKSTART / "base", {"limit": 3}, config=str(tmp_path / "run"))
    assert (named.evaluate.limit, named.engine.max_model_len) == (3, recipe.engine.max_model_len)
