"""What the training benchmark measures: its cases, their sizes and the settings each side may choose from.

Imports nothing heavy: the page reads it before any measuring process starts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Side = Literal["ours", "theirs"]
Kind = Literal["reward", "dpo", "sft", "score"]
SIZES = ("3m", "25m")
SIDES: tuple[Side, Side] = ("ours", "theirs")

VOCABULARY = 8192
PROMPT_TOKENS, COMPLETION_TOKENS = 256, 128
MAX_LENGTH = 1024
LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-5, 0.01, 1.0
BETA, NLL_COEFFICIENT = 0.1, 0.2


@dataclass(frozen=True)
class ModelSize:
    """A Llama with tied embeddings and a vocabulary of `VOCABULARY`."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int


MODELS = {"3m": ModelSize(192, 512, 4, 3), "25m": ModelSize(512, 1024, 8, 8)}
"""3.3 and 25.2 million parameters; heads of 64."""


@dataclass(frozen=True)
class Setting:
    """What a side may choose for itself, results being the same.

    Attributes:
        rows: ours: packed rows per microbatch; TRL: examples per forward pass (`per_device_train_batch_size`), the
            rest of the step by accumulation; scoring: rows per forward pass.
        precompute_ref: TRL's `precompute_ref_log_probs`.
        packing: TRL's `packing_strategy`.
    """

    rows: int
    precompute_ref: bool = False
    packing: str = ""

    @property
    def label(self) -> str:
        parts = [str(self.rows), "precomputed reference" if self.precompute_ref else "", self.packing]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        data: which prepared rows it reads.
        bar: least ratio of examples per second, ours over theirs.
        ours, theirs: settings to choose from; the first is taken where none is tried out.
        tolerance: largest relative difference of the two sides' loss of the first step (of rewards: largest
            difference as a share of the largest reward): a check that they do the same work.
        grouped: TRL sorts rows by length.
    """

    name: str
    kind: Kind
    data: str
    bar: float
    ours: tuple[Setting, ...]
    theirs: tuple[Setting, ...]
    tolerance: float = 1e-3
    grouped: bool = False

    @property
    def is_real(self) -> bool:
        return self.data not in MADE_UP


MADE_UP = {"triples": 3, "pairs": 2}
"""Prompts and completions of random tokens, all of the same length, by number of completions."""

# The first of each was the fastest of the small model on two cores, and stands where none is tried out.
_OURS = tuple(Setting(rows) for rows in (4, 2, 1))
_OURS_REAL = tuple(Setting(rows) for rows in (2, 1, 4))
_OURS_SFT = tuple(Setting(rows) for rows in (1, 2, 4))
_REWARD = tuple(Setting(rows) for rows in (4, 2, 1))
_DPO = (*(Setting(rows) for rows in (1, 2, 4)), Setting(2, precompute_ref=True))
_SFT = tuple(Setting(rows, packing=how) for how, sizes in (("bfd", (1, 2)), ("wrapped", (1, 2))) for rows in sizes)
_ROWS = tuple(Setting(rows) for rows in (8, 4))
_ROWS_SHORT = tuple(Setting(rows) for rows in (4, 8))
_OURS_ROWS = tuple(Setting(rows) for rows in (4, 2, 8))
_OURS_ROWS_SHORT = tuple(Setting(rows) for rows in (1, 2, 4))

CASES = {
    case.name: case
    for case in (
        Case("reward_3way", "reward", "triples", 3.5, _OURS, _REWARD),
        Case("reward_2way", "reward", "pairs", 1.4, _OURS, _REWARD),
        Case("dpo", "dpo", "pairs", 1.5, _OURS, _DPO),
        # TRL's NLL term is the mean of its forward passes' means, ours the mean over the step's tokens.
        Case("dpo_real", "dpo", "real_pairs", 1.3, _OURS_REAL, _DPO, tolerance=2e-2),
        Case("dpo_real_grouped", "dpo", "real_pairs", 1.1, _OURS_REAL, _DPO, tolerance=2e-2, grouped=True),
        Case("sft", "sft", "real_sft", 1.0, _OURS_SFT, _SFT, tolerance=2e-2),
        Case("score_k16", "score", "candidates_long", 2.2, _OURS_ROWS, _ROWS),
        Case("score_k16_short", "score", "candidates_short", 1.0, _OURS_ROWS_SHORT, _ROWS_SHORT),
    )
}


@dataclass(frozen=True)
class Amount:
    """How much a measurement does.

    Attributes:
        num_groups: in the timed pass.
        batch_groups: an optimiser step.
        short: rows of the first quartile's length, for a look that is no result.
    """

    num_groups: int
    batch_groups: int
    short: bool = False


AMOUNTS = {
    ("made_up", "3m"): Amount(32, 16),
    ("made_up", "25m"): Amount(8, 4),
    ("real", "3m"): Amount(48, 8),
    ("real", "25m"): Amount(8, 4),
    ("score", "3m"): Amount(12, 4),
    ("score", "25m"): Amount(3, 1),
}
QUICK_AMOUNTS = {"made_up": Amount(3, 1), "real": Amount(2, 2, short=True), "score": Amount(1, 1, short=True)}


def amount_of(case: Case, *, size: str, quick: bool) -> Amount:
    """What one measurement of a case does."""
    form = "score" if case.kind == "score" else "real" if case.is_real else "made_up"
    return QUICK_AMOUNTS[form] if quick else AMOUNTS[form, size]


@dataclass(frozen=True)
class Request:
    """One measurement, as it is handed to the process that makes it.

    Attributes:
        work: folder with models and rows, as `training_data.prepare` writes it.
    """

    side: Side
    case: str
    size: str
    setting: Setting
    amount: Amount
    work: str


@dataclass(frozen=True)
class Measurement:
    """What a measuring process hands back.

    Attributes:
        examples: prompt groups of the timed pass (scoring: candidates).
        seconds: of the timed pass.
        tokens: positions that went through the model, padding of TRL's batches included.
        memory_mib: peak resident memory above what it was before training began; 0 where it cannot be read.
        peak_mib: peak resident memory in all.
        first_loss: of the warm-up's one step, from the same weights on the same rows on both sides.
        rewards: of scoring, one list a prompt.
    """

    examples: int
    seconds: float
    tokens: int
    memory_mib: float
    peak_mib: float
    first_loss: float | None = None
    rewards: tuple[tuple[float, ...], ...] = ()

    @property
    def examples_per_second(self) -> float:
        return self.examples / self.seconds

    def to_json(self) -> dict[str, object]:
        """All fields but the rewards, and the rate."""
        values = asdict(self) | {"examples_per_second": self.examples_per_second}
        del values["rewards"]
        return values
