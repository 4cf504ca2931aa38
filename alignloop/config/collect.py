"""A round's preferences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from alignloop.config.base import PositiveInt, Section


class CollectConfig(Section):
    """A round's preferences: its batch of the user's file and new annotations (4.2.1)."""

    annotator: Literal["none", "simulated", "judge", "human"] = "none"
    """Who annotates pairs the last policy sampled: nobody, the quickstart's simulated annotator (IFEval
    checkers on training prompts only), the recipe's `judge`, or people: the round then writes the pairs to
    `<run>/annotations/`, stops, and goes on when their answers lie there."""
    num_annotations: Annotated[int, Field(ge=0)] = 0
    """At most this many new annotated pairs a round."""
    min_annotated: PositiveInt | None = None
    """With `human`: the round goes on when so many of its pairs are answered; None: when all are. What is left
    unanswered is counted, and trains nothing."""

    @model_validator(mode="after")
    def _asks_people_for_something(self) -> CollectConfig:
        if self.annotator == "human" and not self.num_annotations:
            raise ValueError(
                "collect.annotator is human, but collect.num_annotations is 0: nobody would be asked anything - say "
                "how many pairs a round people are to compare"
            )
        if self.min_annotated is not None and self.annotator != "human":
            raise ValueError(
                f"collect.min_annotated is for people; collect.annotator is {self.annotator} - leave it out"
            )
        return self
