"""What the stages that ask a judge share; its model's folder is looked at, or its endpoint called once, before anything
is trained."""

from __future__ import annotations

import asyncio
from pathlib import Path

from alignloop.config.engine import EngineComputes, JudgeConfig, JudgeSettings
from alignloop.engines.checkpoint import architecture, longest_sequence, text_config, weight_files
from alignloop.errors import ModelError, UserError
from alignloop.judging.chat_completions import ChatCompletions, EndpointFault, EndpointUnusable, RequestRefused
from alignloop.judging.prompt_file import load_prompt, model_mark
from alignloop.judging.verdicts import Judge
from alignloop.records import Message
from alignloop.run_dir.stage import StageContext
from alignloop.stages.base import load_tokenizer
from alignloop.stages.facts import Facts

KEPT = "judge"
"""Folder of what a judge has finished, until all of it stands in the stage's files."""


def open_stage_judge(
    judge: JudgeSettings, on_engine: EngineComputes | None, ctx: StageContext, *, folder: str = ""
) -> Judge:
    """The judge, with what it has finished in the stage's folder `judge`, or in a folder of that: each prompt that it
    is asked by wants its own."""
    from alignloop.judging.judge import open_judge

    return open_judge(
        judge,
        ctx.engine,
        dir=ctx.dir / KEPT / folder,
        seed=ctx.seed,
        max_model_len=None if on_engine is None else on_engine.max_model_len,
        progress=ctx.progress,
    )


def judge_marks(judge: JudgeConfig) -> dict[str, str | None]:
    """Hashes of the judging prompt and of the judge's model: the recipe names both, and either may change under its
    name."""
    return {"judge_prompt": load_prompt(judge.prompt).digest, "judge_model": model_mark(judge)}


def check_judge(facts: Facts, config: JudgeConfig) -> None:
    with facts.findings.collecting():
        if config.endpoint is None:
            _check_model(facts, config)
        else:
            asyncio.run(_check_endpoint(config))


def _check_model(facts: Facts, config: JudgeConfig) -> None:
    folder = Path(config.model).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"judge.model: {config.model}: no such folder - give a Hugging Face model folder, or set judge.endpoint "
            "where the model is served"
        )
    limit, base_folder, findings = facts.recipe.engine.max_model_len, facts.base.folder, facts.findings
    if config.max_tokens >= limit:
        findings.problems.append(
            f"judge.max_tokens ({config.max_tokens}) leaves no room for a question within engine.max_model_len "
            f"({limit}): lower the first or raise the second"
        )
    _check_template(config, folder)
    positions = longest_sequence(text_config(folder))
    if positions is not None and positions < limit:
        findings.problems.append(
            f"judge.model: {config.model} takes {positions} tokens, fewer than engine.max_model_len ({limit}), with "
            "which the engine starts: lower that, or take another judge"
        )
    if base_folder is not None and architecture(folder) != architecture(base_folder):
        findings.notes.append(
            "judge: its model is of another architecture than the base: the engine starts anew for it, and for the "
            "policy after it, in every round"
        )


def _check_template(config: JudgeConfig, folder: Path) -> None:
    """The folder holds weights, and a tokenizer with a usable chat template."""
    from alignloop.chat.load import format_of

    try:
        weight_files(folder)
        tokenizer = load_tokenizer(folder)
        if not tokenizer.chat_template:
            raise ModelError("its tokenizer has no chat template - take a model that was made to chat")
        format_of(tokenizer, name="its tokenizer")
    except ModelError as error:
        raise ModelError(f"judge.model: {config.model}: {error}") from error


async def _check_endpoint(config: JudgeConfig) -> None:
    """One call: the list of models, or, where that does not name the judge's, a question of one token."""
    listed: tuple[str, ...] = ()
    async with ChatCompletions(config) as client:
        try:
            listed = await client.models() or ()
            if config.model not in listed:
                question = [Message(role="user", content='Reply with {"ok": true}, as JSON.')]
                await client.complete(question, temperature=0.0, max_tokens=1, seed=None, schema={"type": "object"})
        except (EndpointFault, EndpointUnusable, RequestRefused) as error:
            known = f". It lists the models: {', '.join(listed[:8])}" if listed else ""
            raise UserError(
                f"judge.endpoint: {client.url} (model {config.model}): {error}{known}. Start it or put judge right "
                "before the run asks it"
            ) from error
