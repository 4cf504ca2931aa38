"""The models whose answers are annotated beside the policy's (`collect.policies`, section 4.2.1): which they are, and
what is wrong with them, found before anything runs.

    a number   the policy's DPO variants, then the last rounds' policies that passed the gate
    a list     these checkpoints
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from alignloop.artifacts import Artifact
from alignloop.chat.alike import difference
from alignloop.chat.load import format_of
from alignloop.config.recipe import Recipe
from alignloop.engines.checkpoint import architecture, longest_sequence, text_config, weight_files
from alignloop.errors import ModelError, did_you_mean
from alignloop.stages.base import load_tokenizer
from alignloop.stages.base_files import check_causal
from alignloop.stages.facts import Facts
from alignloop.training.adapter_files import is_adapter

_FIELD = "collect.policies"
_ROUNDS_BEFORE = 2
"""A round whose answers are compared has the next one after it, and the first round's policy is there in the second."""


def named_policies(recipe: Recipe) -> tuple[Artifact, ...]:
    """The checkpoints that the recipe names, which are read for their digests."""
    names = recipe.collect.policies
    return tuple(Artifact.of(Path(name).expanduser()) for name in names) if isinstance(names, tuple) else ()


def last_policies(
    wanted: int, policy: Artifact, *, variants: Sequence[Artifact], passed: Iterable[Artifact]
) -> tuple[Artifact, ...]:
    """At most `wanted` models beside the policy: its variants first, then what passed the gate, the latest first. What
    trained nothing is the same model again, and none."""
    found: list[Artifact] = []
    for other in (*variants, *passed):
        if not any(_is_same(other, known) for known in (policy, *found)):
            found.append(other)
    return tuple(found[:wanted])


def _is_same(one: Artifact, other: Artifact) -> bool:
    """Of what a plan stands in for, the digest is not known yet."""
    return one.path == other.path or (one.digest == other.digest and one.digest.startswith("sha256:"))


def check(facts: Facts) -> None:
    """Whether there will be as many models as the recipe asks for, or those that it names can answer."""
    policies = facts.recipe.collect.policies
    if isinstance(policies, int):
        _check_number(facts, policies)
    for name in policies if isinstance(policies, tuple) else ():
        with facts.findings.collecting():
            _check_named(facts, name)


def most_policies(recipe: Recipe) -> int:
    """How many models the last round whose answers are compared can have."""
    variants = recipe.dpo.variants
    num_variants = len(variants) if len(variants) > 1 else 0  # of one, the policy is the variant
    return num_variants + max(1, recipe.rounds - _ROUNDS_BEFORE) if recipe.rounds > _ROUNDS_BEFORE else 1


def _check_number(facts: Facts, wanted: int) -> None:
    most, rounds = most_policies(facts.recipe), facts.recipe.rounds
    if most == 1:
        facts.findings.notes.append(
            f"{_FIELD}: {wanted} wants models of several rounds, and a run of {rounds} has none to compare before its "
            "end: both answers of a pair are of one policy"
        )
    elif most < wanted:
        facts.findings.problems.append(
            f"{_FIELD}: {wanted}, but a run of {rounds} rounds has at most {most} models whose answers it compares "
            "(each round's policy from the second on, and its DPO variants) - ask for fewer, or raise rounds"
        )


def _check_named(facts: Facts, name: str) -> None:
    """Raises ModelError where a checkpoint is not there, cannot sample, or writes other tokens than the base."""
    folder, where = Path(name).expanduser(), f"{_FIELD}: {name}"
    if not folder.is_dir():
        siblings = [str(path) for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = did_you_mean(str(folder), siblings) or "give a Hugging Face model folder"
        raise ModelError(f"{where}: no such folder - {near}")
    if is_adapter(folder):
        raise ModelError(f"{where}: is an adapter: name the folder of the model that it is merged into")
    try:
        config = text_config(folder)
        check_causal(folder, config)
        weight_files(folder)
        chat = format_of(load_tokenizer(folder), name="its tokenizer")
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    limit, positions, base = facts.recipe.engine.max_model_len, longest_sequence(config), facts.base
    if positions is not None and positions < limit:
        raise ModelError(
            f"{where}: takes {positions} tokens, fewer than engine.max_model_len ({limit}): lower that, or name another"
        )
    if base.chat is not None and (found := difference(base.chat, chat)):
        raise ModelError(f"{where}: {found}: what it says cannot train the run's models - name a model of the base")
    if base.folder is not None and architecture(folder) != architecture(base.folder):
        facts.findings.notes.append(
            f"{where}: is of another architecture than the base: the engine starts anew for it, and for the policy "
            "after it, in every round"
        )
