"""Training against TRL's trainers, and scoring against separate rows: cases, settings, checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from scripts.bench.case import Bench, BenchError, Case, Figure, Reading, Readings, Sides
from scripts.bench.processes import alone

PREFERENCES, CANDIDATES = "preferences/alpacaeval_graded.jsonl", "candidates/alpacaeval_120x20.jsonl"
SOURCES = {"pairs": PREFERENCES, "sft": PREFERENCES, "long": CANDIDATES, "short": CANDIDATES}
"""The file each kind of real rows is read from; made-up rows are `triples` and `twos`."""
SIZES = ("3m", "25m")
BATCH_GROUPS = {"made_up": (16, 4), "real": (8, 4), "score": (4, 1)}
"""Prompt groups an optimiser step, by size."""
AMOUNTS = {"made_up": (32, 8), "real": (48, 8), "score": (12, 3)}
QUICK = {"made_up": 3, "real": 2, "score": 1}
PRELOADED = (
    *("torch.distributed.checkpoint.state_dict", "torch.distributed.tensor", "datasets"),
    *("transformers.models.llama.modeling_llama", "alignloop.training.loop", "alignloop.training.scoring"),
    *("trl.trainer.dpo_trainer", "trl.trainer.reward_trainer", "trl.trainer.sft_trainer"),
)
"""Importing these takes ten seconds: the server that measurements are forked from does it once."""
Side = Literal["ours", "peer"]


@dataclass(frozen=True)
class Spec:
    """What a case trains on or scores.

    Attributes:
        rows: name of the prepared rows.
        ours, peer: settings to choose from, with equal results; the first was the fastest of the small model on two
            cores. A setting is the number of rows a forward pass, and for TRL also how SFT is packed, or that DPO's
            reference is precomputed.
        tolerance: largest relative difference of the two sides' loss of the first step (of rewards: largest
            difference as a share of the largest reward): a check that they do the same work.
        grouped: TRL sorts rows by length.
    """

    name: str
    kind: Literal["reward", "dpo", "sft", "score"]
    rows: str
    bar: float
    ours: tuple[str, ...]
    peer: tuple[str, ...]
    tolerance: float = 1e-3
    grouped: bool = False

    @property
    def form(self) -> str:
        return "score" if self.kind == "score" else "real" if self.rows in SOURCES else "made_up"


_DPO = ("1", "2", "4", "2, precomputed reference")
_SFT = ("1, bfd", "2, bfd", "1, wrapped", "2, wrapped")
# On real rows TRL's NLL term is the mean of its forward passes' means, ours the mean over the step's tokens.
SPECS = (
    Spec("reward_3way", "reward", "triples", 3.5, ("4", "2", "1"), ("4", "2", "1")),
    Spec("reward_2way", "reward", "twos", 1.4, ("4", "2", "1"), ("4", "2", "1")),
    Spec("dpo", "dpo", "twos", 1.5, ("4", "2", "1"), _DPO),
    Spec("dpo_real", "dpo", "pairs", 1.3, ("2", "1", "4"), _DPO, tolerance=2e-2),
    Spec("dpo_real_grouped", "dpo", "pairs", 1.1, ("2", "1", "4"), _DPO, tolerance=2e-2, grouped=True),
    Spec("sft", "sft", "sft", 1.0, ("1", "2", "4"), _SFT, tolerance=2e-2),
    Spec("score_k16", "score", "long", 2.2, ("4", "2", "8"), ("8", "4")),
    Spec("score_k16_short", "score", "short", 1.0, ("1", "2", "4"), ("4", "8")),
)


@dataclass(frozen=True)
class Request:
    """One measurement: `amount` prompt groups in the timed pass; `short`: groups of about the first quartile's length,
    for a look that is no result."""

    spec: Spec
    side: Side
    size: str
    setting: str
    work: Path
    amount: int
    batch_groups: int
    short: bool

    @property
    def num_rows(self) -> int:
        return int(self.setting.partition(",")[0])

    @property
    def extra(self) -> str:
        return self.setting.partition(", ")[2]


def _open(spec: Spec, bench: Bench) -> Sides:
    if spec.rows in SOURCES:
        bench.need(SOURCES[spec.rows])
    environment = {**bench.environment, "OMP_NUM_THREADS": str(bench.threads), "TOKENIZERS_PARALLELISM": "false"}
    options: dict[str, Any] = {"log": bench.work / "training.log", "environment": environment, "preload": PRELOADED}
    alone(_prepare, bench.work, bench.size, spec.rows, bench.data, **options)
    usual = BATCH_GROUPS[spec.form][SIZES.index(bench.size)]
    batch = max(1, min(usual, bench.amount // 2))

    def read(side: Side, setting: str, amount: int) -> Reading:
        request = Request(spec, side, bench.size, setting, bench.work, amount, batch, bench.quick)
        reading: Reading = alone(_measure, request, **options)
        return reading

    peer, most_mib = _setting(bench, spec.peer, lambda name: read("peer", name, batch), most_mib=float("inf"))
    ours, _ = _setting(bench, spec.ours, lambda name: read("ours", name, batch), most_mib=most_mib)
    return Sides(
        lambda: read("ours", ours, bench.amount),
        lambda: read("peer", peer, bench.amount),
        lambda mine, theirs: same_work(spec, mine, theirs, settings=f"settings {ours} | {peer}"),
    )


def _prepare(*arguments: Any) -> None:
    from scripts.bench.training_rows import prepare

    prepare(*arguments)


def _measure(request: Request) -> Reading:
    from scripts.bench.training_sides import measure

    return measure(request)


def _setting(
    bench: Bench, settings: Sequence[str], read: Callable[[str], Reading], *, most_mib: float
) -> tuple[str, float]:
    """The fastest of a side's settings on one step, and its memory; those above `most_mib` only if all are."""
    if bench.setting is not None or bench.quick:
        return bench.setting or settings[0], float("inf")
    tried = {setting: read(setting) for setting in settings}
    shown = "; ".join(f"{name}: {one['rate']:.2f} ({one['memory']:,.0f} MiB)" for name, one in tried.items())
    print(f"  examples/s by setting: {shown}", flush=True)
    least = min(one["memory"] for one in tried.values())
    fitting = [name for name in settings if tried[name]["memory"] <= max(most_mib, least)]
    chosen = max(fitting, key=lambda name: float(tried[name]["rate"]))
    return chosen, tried[chosen]["memory"]


def same_work(spec: Spec, ours: Readings, peer: Readings, *, settings: str) -> list[str]:
    what = "rewards" if spec.kind == "score" else "losses of the first step"
    mine, other = ours[0]["same"], peer[0]["same"]
    difference = max(abs(a - b) for a, b in zip(mine, other, strict=True)) / max(abs(b) for b in other)
    if difference > spec.tolerance:
        raise BenchError(f"the two sides' {what} differ by {difference:.1e}, more than {spec.tolerance:g}")
    return [f"{settings}; {what} equal to {difference:.0e}"]


def _case(spec: Spec) -> Case:
    figures = (
        Figure(spec.name, "rate", " examples/s", least=spec.bar),
        Figure(f"{spec.name}_memory", "memory", " MiB", least=1.0, inverse=True),
        Figure(f"{spec.name}_tokens", "tokens", inverse=True),
    )
    amounts = dict(zip(SIZES, AMOUNTS[spec.form], strict=True))
    return Case(spec.name, figures, partial(_open, spec), amounts, quick=QUICK[spec.form])


def _tokens(bench: Bench) -> Sides:
    """What packing alone should give: tokens that go through the model on each side, from the lengths of the rows."""
    from scripts.bench.training_rows import load_groups, prepare, token_counts

    for name in (PREFERENCES, CANDIDATES):
        bench.need(name)
    counts = {}
    for spec in SPECS:
        prepare(bench.work, bench.size, spec.rows, bench.data)
        amount = AMOUNTS[spec.form][SIZES.index(bench.size)]
        counts[spec.name] = token_counts(spec, load_groups(bench.work, spec.rows, amount=amount, short=False))
    reading = {name: parts["ratio"] for name, parts in counts.items()}
    remarks = [
        f"{name}: " + ", ".join(f"{part} {value:,.2f}" for part, value in parts.items())
        for name, parts in counts.items()
    ]
    return Sides(lambda: reading, check=lambda ours, peer: remarks)


_RATIOS = tuple(Figure(f"tokens_{spec.name}", spec.name, "x") for spec in SPECS)
CASES = (*map(_case, SPECS), Case("tokens", _RATIOS, _tokens, dict.fromkeys(SIZES, 1), quick=0, once=True))
