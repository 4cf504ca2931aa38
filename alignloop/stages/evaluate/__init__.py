"""Benchmarks of a checkpoint on the warm engine."""

from __future__ import annotations

import json
from dataclasses import dataclass

from alignloop.artifacts import Artifact
from alignloop.config.engine import EngineComputes, computing
from alignloop.config.evaluation import EvaluateConfig
from alignloop.config.recipe import Recipe
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext


@dataclass(frozen=True)
class Inputs:
    policy: Artifact


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    report: Artifact
    """`report.json`: metrics, standard errors and the frozen protocol."""
    samples: Artifact

    @property
    def stderr(self) -> dict[str, float]:
        """Standard errors, under the metrics' names."""
        values = json.loads(self.report.path.read_text(encoding="utf-8"))["stderr"]
        return {str(name): float(value) for name, value in values.items()}


class Settings(EvaluateConfig, EngineComputes): ...


def settings(recipe: Recipe) -> Settings:
    """What the engine can hold and how it computes counts, too."""
    return Settings(**dict(recipe.evaluate), **computing(recipe.engine))


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.evaluation.evaluate import evaluate

    with ctx.activity("evaluating"):
        report = evaluate(
            ctx.engine,
            checkpoint=inputs.policy.path,
            tasks=config.tasks,
            include_path=config.include_path,
            limit=config.limit,
            max_gen_tokens=config.max_gen_tokens,
            seed=0,  # greedy decoding: nothing is drawn, and rounds share one protocol
            max_model_len=config.max_model_len,
            samples_file=ctx.dir / "samples.jsonl",
            dtype=config.engine_dtype,
            quantization=config.quantization,
            strip_reasoning=config.strip_reasoning,
            progress=ctx.progress,
        )
    (ctx.dir / "report.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Outputs(
        report=ctx.artifact("report.json"),
        samples=ctx.artifact("samples.jsonl"),
        metrics=report.metrics,
        facts={"protocol": report.protocol.model_dump(mode="json"), "protocol_digest": report.protocol.digest},
    )


STAGE = Stage("evaluate", Inputs, Outputs, settings, run)
