"""Options that several verbs take."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Overrides a field of the recipe; repeatable.")
]
ConfigOption = Annotated[str | None, typer.Option(metavar="RECIPE", help="Settings not given here; default: ours.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Default: the recipe's.")]
EngineOption = Annotated[Literal["vllm", "transformers"] | None, typer.Option(help="What generates.")]
