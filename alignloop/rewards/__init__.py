"""Verifiable rewards: what of an answer can be checked, each called as TRL's GRPO trainer calls a reward function.

prompts, completions, columns of their rows --function--> a value from 0 to 1 each; None where the row lacks the column

In a recipe they are named `alignloop.rewards:<function>`: beside the reward model, before it, as annotator, or for the
pass rate (docs/rewards.md). They see the answer without the reasoning before it, and none runs what a model wrote.
"""

from alignloop.rewards.instructions import instructions_followed
from alignloop.rewards.mathematics import math_equal
from alignloop.rewards.structure import code_parses, fits_schema
from alignloop.rewards.texts import (
    at_least_words,
    at_most_words,
    exact_match,
    in_language,
    matches_regex,
    not_repetitive,
)

__all__ = [
    "at_least_words",
    "at_most_words",
    "code_parses",
    "exact_match",
    "fits_schema",
    "in_language",
    "instructions_followed",
    "matches_regex",
    "math_equal",
    "not_repetitive",
]
