"""A round's preferences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from alignloop.config.base import Section


class CollectConfig(Section):
    """A round's preferences: its batch of the user's file and new annotations (4.2.1)."""

    annotator: Literal["none", "simulated", "judge"] = "none"
    """Who annotates pairs the last policy sampled: nobody, the quickstart's simulated annotator (IFEval
    checkers on training prompts only), or the recipe's `judge`."""
    num_annotations: Annotated[int, Field(ge=0)] = 0
    """At most this many new annotated pairs a round."""
