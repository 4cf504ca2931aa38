"""What all sections of a recipe are built from."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from alignloop.records import ROW_ORIGINS, RowOrigin

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
NonEmptyText = Annotated[str, Field(min_length=1)]
FOLDER_NAME = r"^[^/\\.][^/\\]*$"
VARIABLE_NAME = r"^[A-Za-z_]\w*$"
FUNCTION_NAME = r"^[\w.]+:[A-Za-z_]\w*$"
POLICY_NAME = r"^(best|previous|base|round-[1-9][0-9]?)$"
TRUTH_NAME = rf"^checkers$|{FUNCTION_NAME}"
Share = Annotated[float, Field(gt=0.0, le=1.0)]


def _in_order(origins: tuple[RowOrigin, ...]) -> tuple[RowOrigin, ...]:
    """Each once and in one order: a list of the same sources is the same setting."""
    return tuple(origin for origin in ROW_ORIGINS if origin in origins)


Origins = Annotated[tuple[RowOrigin, ...], AfterValidator(_in_order)]


class Section(BaseModel):
    """Base of all recipe sections: frozen, strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
