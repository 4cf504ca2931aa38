"""The user's data, and a round's annotations."""

from __future__ import annotations

from typing import Literal

from alignloop.config.base import Fraction, PositiveInt, Section


class DataConfig(Section):
    """How the user's files are read."""

    heldout_fraction: Fraction = 0.05
    """Share of preference rows never trained on: the reward model's held-out accuracy comes from them."""
    max_heldout: PositiveInt = 512
    """At most this many held-out rows."""
    max_bad_fraction: Fraction = 0.01
    """The run stops where more than this share of input rows cannot be read."""
    batches: Literal["split", "all"] = "split"
    """`split`: each round gets its own share of the preferences, in order (the paper's weekly batches).
    `all`: every round sees all of them."""
    split_rounds: PositiveInt = 6
    """With `split`: into how many batches; later rounds see the last batch again. A number of its own, so
    that going on with more rounds does not change the rounds already run."""
