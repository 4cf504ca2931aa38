"""Benchmarks of one checkpoint by lm-eval on the live engine.

    task names --load_tasks--> lm-eval tasks --EngineLM--> one generate and one loglikelihood call for all of them
               --lm-eval's verdicts--> EvalReport (figures, standard errors, protocol) + samples

All prompts of all tasks go to the engine at once, so that its batch is full until the last of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.data.jsonl import dump_jsonl
from alignloop.engines.base import Engine
from alignloop.engines.checkpoint import longest_sequence, text_config
from alignloop.errors import DataError, ModelError
from alignloop.evaluation.ifeval import preserved_random, require_sentence_data
from alignloop.evaluation.questions import TooLong, judged_with_reasoning, refuse
from alignloop.evaluation.report import EvalReport
from alignloop.evaluation.results import build_report, eval_samples
from alignloop.evaluation.tasks import LoadedTasks, load_tasks
from alignloop.progress import Progress

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat
    from alignloop.evaluation.lm import EngineLM

AS_CHAT: dict[str, Any] = {"apply_chat_template": True, "fewshot_as_multiturn": True}
"""How every task's messages are built: each shot is a turn of its own."""


def evaluate(
    engine: Engine,
    *,
    checkpoint: Path,
    tasks: Sequence[str] | LoadedTasks,
    include_path: str | Path | None = None,
    limit: int | None,
    max_gen_tokens: int,
    seed: int,
    progress: Progress,
    max_model_len: int | None = None,
    samples_file: Path | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    strip_reasoning: bool = False,
) -> EvalReport:
    """Measure `checkpoint`, a Hugging Face directory, on `tasks` through its chat template; `engine` comes to serve it.

    Args:
        tasks: names as `evaluation.tasks` describes them, or loaded tasks; lm-eval's task objects serve one evaluation.
        include_path: folder of lm-eval task files that come first; `quickstart` for the bundled tasks.
        limit: questions a task (in a group: of each of its tasks); None: all.
        max_gen_tokens: longest answer in tokens, whatever a task asks for.
        seed: of few-shot draws, and of tasks that sample; the bundled ones do neither.
        max_model_len: longest prompt + completion the engine serves, in tokens; None: the model's own.
        samples_file: where one JSON line a question (`EvalSample`) is written; None: nowhere.
        dtype, quantization: how the engine computes, for the protocol; None: not known.
        strip_reasoning: whether `<think>...</think>` is taken off answers before they are judged.

    Raises:
        DataError: an unknown task, wrong or missing data, or prompts that do not fit: found before the engine starts.
        ModelError: the checkpoint has no usable tokenizer, template or configuration.
    """
    loaded = tasks if isinstance(tasks, LoadedTasks) else _load(tasks, include_path=include_path)
    for name, task in loaded.tasks.items():
        for doc in islice(task.eval_docs, limit):
            if isinstance(doc, dict) and "instruction_id_list" in doc:
                require_sentence_data(doc["instruction_id_list"], where=f"task {name}")
    lm = _engine_lm(
        engine,
        checkpoint=checkpoint,
        max_gen_tokens=max_gen_tokens,
        max_model_len=max_model_len,
        seed=seed,
        progress=progress,
        strip_reasoning=strip_reasoning,
    )
    results = _run(lm, loaded=loaded, limit=limit, seed=seed)
    samples = list(eval_samples(results, lm=lm))
    if lm.num_holding_reasoning:
        holding = judged_with_reasoning(
            lm.num_holding_reasoning, len(lm.generations), remedy="evaluate.strip_reasoning: true"
        )
        progress.say(f"  evaluate: {holding}")
    if samples_file is not None:
        dump_jsonl(samples_file, samples)
    return build_report(results, samples=samples, lm=lm, seed=seed, dtype=dtype, quantization=quantization)


def _load(tasks: Sequence[str], *, include_path: str | Path | None) -> LoadedTasks:
    with _quiet_lm_eval():
        return load_tasks(tasks, include_path=include_path)


def _run(lm: EngineLM, *, loaded: LoadedTasks, limit: int | None, seed: int) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate as lm_eval_evaluate

    with _quiet_lm_eval():
        with preserved_random(seed):
            _set_up(loaded, seed=seed)
            _require_fitting(loaded, lm=lm, limit=limit)
        with preserved_random(seed):
            _set_up(loaded, seed=seed)  # again: building the requests has drawn from the tasks' generators
            results: dict[str, Any] = lm_eval_evaluate(
                lm=lm,
                task_dict={"tasks": loaded.tasks, "groups": loaded.groups, "group_map": {}},
                limit=limit,
                bootstrap_iters=0,  # standard errors are closed form, see evaluation.standard_error
                **AS_CHAT,
            )
    return results


def _set_up(loaded: LoadedTasks, *, seed: int) -> None:
    """What lm-eval's own entry does to tasks before it runs them."""
    for task in loaded.tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)


def _require_fitting(loaded: LoadedTasks, *, lm: EngineLM, limit: int | None) -> None:
    """Build all tasks' requests, as lm-eval does again, and measure them; DataError names each task with the number of
    its questions that do not fit."""
    found = []
    for name, task in loaded.tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise DataError(
                f"evaluate.tasks: {name} runs code that the model writes, on this machine and without a sandbox: "
                "alignloop does not run it."
            )
        if getattr(task, "MULTIMODAL", False):
            raise DataError(f"evaluate.tasks: {name} shows images; alignloop's engines read text alone.")
        task.build_all_requests(limit=limit, chat_template=lm.apply_chat_template, **AS_CHAT)
        lengths: dict[int, int] = {}
        for request in task.instances:
            key = int(request.doc_id or 0)
            lengths[key] = max(lengths.get(key, 0), lm.num_tokens(request))
        num_long = sum(length > lm.max_model_len for length in lengths.values())
        if num_long:
            shots = int(task.get_config("num_fewshot") or 0)
            found.append(TooLong(name, num_long, len(lengths), shots, max(lengths.values())))
    refuse(found, max_model_len=lm.max_model_len)


def _engine_lm(engine: Engine, *, checkpoint: Path, max_model_len: int | None, **options: Any) -> EngineLM:
    from transformers import AutoTokenizer

    from alignloop.evaluation.lm import EngineLM

    lengths = [length for length in (max_model_len, longest_sequence(text_config(checkpoint))) if length is not None]
    if not lengths:
        raise ModelError(f"{checkpoint}: config.json names no context length; set engine.max_model_len.")
    return EngineLM(
        engine,
        checkpoint=checkpoint,
        chat=_chat_format(checkpoint),
        tokenizer=AutoTokenizer.from_pretrained(str(checkpoint)),
        max_model_len=min(lengths),
        **options,
    )


def _chat_format(checkpoint: Path) -> ChatFormat:
    from alignloop.chat.load import load_format

    try:
        return load_format(checkpoint)
    except ModelError as error:
        if "no chat template" not in str(error):
            raise
        raise ModelError(
            f"{checkpoint}: the tokenizer has no chat template, and benchmarks are asked through one. Put the template "
            "the model was trained with into the folder as chat_template.jinja (alignloop brings llama3 and chatml: "
            "`alignloop eval --chat-template llama3`, and in a recipe `chat_template: llama3`)."
        ) from error


@contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """lm-eval without its log lines and bars: progress comes from the engine calls."""
    import lm_eval.api.task as lm_eval_task

    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, lm_eval_task.tqdm
    logger.setLevel(logging.ERROR)
    lm_eval_task.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval_task.tqdm = bar
