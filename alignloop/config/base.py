"""What all sections of a recipe are built from."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from alignloop.records import ROW_ORIGINS, RowOrigin

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
NonEmptyText = Annotated[str, Field(min_length=1)]
FOLDER_NAME = r"^[^/\\.][^/\\]*$"
VARIABLE_NAME = r"^[A-Za-z_]\w*$"
FUNCTION_NAME = r"^[\w.]+:[A-Za-z_]\w*$"
POLICY_NAME = r"^(best|previous|base|round-[1-9][0-9]{0,3})$"
ANNOTATOR_NAME = rf"^(none|simulated|judge|human)$|{FUNCTION_NAME}"
PASS_NAME = rf"^reward$|{FUNCTION_NAME}"
TRUTH_NAME = rf"^checkers$|{FUNCTION_NAME}"
Share = Annotated[float, Field(gt=0.0, le=1.0)]


def _in_order(origins: tuple[RowOrigin, ...]) -> tuple[RowOrigin, ...]:
    """Each once and in one order: a list of the same sources is the same setting."""
    return tuple(origin for origin in ROW_ORIGINS if origin in origins)


Origins = Annotated[tuple[RowOrigin, ...], AfterValidator(_in_order)]


class Section(BaseModel):
    """Base of all recipe sections: frozen, strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Scheduled(Section):
    """A part of the round that need not be in every one: semi-online rounds (arXiv 2506.21495) sample, score, pair and
    train DPO every time, and do the rest now and then. Not given in the paper, whose rounds are whole."""

    every: PositiveInt = 1
    """In rounds `every`, 2 x `every` and so on."""
    at: tuple[PositiveInt, ...] = ()
    """In these rounds, in place of `every`."""

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        if self.at and self.every != 1:
            raise ValueError(
                f"every ({self.every}) and at ({list(self.at)}) both say in which rounds: give one of them"
            )
        return self

    def is_due(self, number: int) -> bool:
        """Whether round `number` has it, by this schedule."""
        return number in self.at if self.at else number % self.every == 0


class Uncounted(Section):
    """In which rounds a stage runs changes nothing of what it publishes there: mixed into its settings."""

    every: PositiveInt = Field(1, exclude=True)
    at: tuple[PositiveInt, ...] = Field((), exclude=True)
