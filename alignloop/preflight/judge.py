"""The judge, before anything is trained: its prompt read, its model's folder looked at, its endpoint called once."""

from __future__ import annotations

from pathlib import Path

from alignloop.config import Recipe
from alignloop.config.engine import JudgeConfig
from alignloop.engines.checkpoint import architecture, longest_sequence, text_config, weight_files
from alignloop.errors import ModelError, UserError
from alignloop.judging.chat_completions import ChatCompletions, EndpointFault, EndpointUnusable, RequestRefused
from alignloop.judging.prompt_file import PairwisePrompt, load_prompt
from alignloop.preflight.base import load_tokenizer
from alignloop.preflight.findings import Findings
from alignloop.records import Message
from alignloop.run_dir.reader import all_published

_FIRST_ROUND = 2
"""The first round whose `collect` finds candidates of a round before."""


def check_judge(recipe: Recipe, *, run_dir: Path | None, base_folder: Path | None, findings: Findings) -> None:
    """Look at the recipe's judge, where this run will ask it.

    Args:
        run_dir: of the run; a judge whose verdicts are all published there is not called again.
        base_folder: of the base model, where it is on this machine.
    """
    config = recipe.judge
    if config is None or recipe.collect.annotator != "judge":
        return
    if not recipe.collect.num_annotations:
        findings.notes.append("collect.annotator is judge, but collect.num_annotations is 0: it is never asked to")
        return
    with findings.collecting():
        if not isinstance(load_prompt(config.prompt), PairwisePrompt):
            raise UserError(f"judge.prompt: {config.prompt} compares no two; annotating wants a pairwise prompt")
    if recipe.rounds < _FIRST_ROUND:
        findings.notes.append(
            "judge: the first round has no candidates to annotate yet, so in a run of one round collect never asks it"
        )
    elif not all_published(run_dir, range(_FIRST_ROUND, recipe.rounds + 1), stage="collect"):
        check_judge_answers(recipe, config, base_folder=base_folder, findings=findings)


def check_judge_answers(recipe: Recipe, config: JudgeConfig, *, base_folder: Path | None, findings: Findings) -> None:
    """The judge's model can be loaded, or its endpoint answers."""
    with findings.collecting():
        if config.endpoint is None:
            _check_model(recipe, config, base_folder=base_folder, findings=findings)
        else:
            _check_endpoint(config)


def _check_model(recipe: Recipe, config: JudgeConfig, *, base_folder: Path | None, findings: Findings) -> None:
    folder = Path(config.model).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"judge.model: {config.model}: no such folder - give a Hugging Face model folder, or set judge.endpoint "
            "where the model is served"
        )
    limit = recipe.engine.max_model_len
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
    """The folder holds weights, and a tokenizer with a chat template that can be used."""
    from alignloop.chat.load import format_of

    try:
        weight_files(folder)
        tokenizer = load_tokenizer(folder)
        if not tokenizer.chat_template:
            raise ModelError("its tokenizer has no chat template - take a model that was made to chat")
        format_of(tokenizer, name="its tokenizer")
    except ModelError as error:
        raise ModelError(f"judge.model: {config.model}: {error}") from error


def _check_endpoint(config: JudgeConfig) -> None:
    """One call: the list of models, or, where that does not name the judge's, a question of one token."""
    listed: tuple[str, ...] = ()
    with ChatCompletions(config) as client:
        try:
            listed = client.models() or ()
            if config.model not in listed:
                question = [Message(role="user", content='Reply with {"ok": true}, as JSON.')]
                client.complete(question, temperature=0.0, max_tokens=1, seed=None, schema={"type": "object"})
        except (EndpointFault, EndpointUnusable, RequestRefused) as error:
            known = f". It lists the models: {', '.join(listed[:8])}" if listed else ""
            raise UserError(
                f"judge.endpoint: {client.url} (model {config.model}): {error}{known}. Start it or put judge right "
                "before the run asks it"
            ) from error
