"""What all sections of a recipe are built from."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
NonEmptyText = Annotated[str, Field(min_length=1)]
FOLDER_NAME = r"^[^/\\.][^/\\]*$"
VARIABLE_NAME = r"^[A-Za-z_]\w*$"
FUNCTION_NAME = r"^[\w.]+:[A-Za-z_]\w*$"
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class Section(BaseModel):
    """Base of all recipe sections: frozen, strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
