"""Models for training and scoring, loaded; and as the objectives see them: a batch of rows in, logprobs or rewards out.

`TokenLogprobs` and `CompletionRewards` are modules of their own, so that DDP and FSDP see one `forward` to synchronise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alignloop.errors import ModelError
from alignloop.objectives.output_head import token_logprobs
from alignloop.packing.attention import hidden_states
from alignloop.packing.batch import RowBatch
from alignloop.packing.grouped_attention import Reads
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import NO_COMPLETION
from alignloop.progress import Progress
from alignloop.training.base_weights import by

Dtype = Literal["float32", "bfloat16"]
Quantize = Literal["none", "nf4"]

SCORE_HEAD_STD = 0.02
"""Spread of a new reward head: small, so that rewards start near zero and pairs near a coin toss."""

SCORE_HEAD = "score.weight"
HEAD_TOLERANCE = 1e-2
ROWS = "new_rows"
"""Rows of an embedding or an output head that train while the rest of it stays frozen (see `adapters`)."""
_REMEDY = "copy config.json and weights from one place"


def load_policy(
    checkpoint: Path,
    *,
    dtype: torch.dtype = torch.float32,
    quantize: Quantize = "none",
    device: torch.device | None = None,
) -> nn.Module:
    """A causal language model, dropout off.

    `nf4` holds the weights of its linear layers, but the output head, in 4 bits. These are made on `device` while
    loading; anything else is loaded on the CPU.
    """
    from transformers import AutoModelForCausalLM

    model, _ = _load(AutoModelForCausalLM, checkpoint, dtype=dtype, **quantized(quantize, dtype, device))
    return _ready(model)


def load_reward_model(
    checkpoint: Path,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    must_have_head: bool = False,
    quantize: Quantize = "none",
    device: torch.device | None = None,
) -> nn.Module:
    """A sequence classifier with one label, dropout off; `quantize` and `device` are as for `load_policy`.

    A checkpoint without a score head (a policy or a base) gets a new one, drawn from `seed`, unless `must_have_head`.

    Raises:
        ModelError: the path holds no model, or its architecture has no `score` head in transformers.
    """
    from transformers import AutoModelForSequenceClassification

    how = quantized(quantize, dtype, device)
    model, missing = _load(AutoModelForSequenceClassification, checkpoint, dtype=dtype, num_labels=1, **how)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise ModelError(f"{checkpoint}: {type(model).__name__} has no `score` head with one output: no reward model")
    if SCORE_HEAD in missing and must_have_head:
        raise ModelError(f"{checkpoint}: no `{SCORE_HEAD}` in its weights: this is not a reward model")
    if SCORE_HEAD in missing:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * SCORE_HEAD_STD)
    model.config.problem_type = None
    model.config.get_text_config().pad_token_id = _pad_token_id(checkpoint, model.config)
    return _ready(model)


def quantized(quantize: Quantize, dtype: torch.dtype, device: torch.device | None) -> dict[str, Any]:
    """Arguments of from_pretrained for QLoRA (Dettmers et al. 2023): 4-bit NormalFloat with double quantisation,
    multiplied in `dtype`."""
    if quantize == "none":
        return {}
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": device or torch.device("cpu")}}


def _load(auto_class: Any, checkpoint: Path, *, dtype: torch.dtype, **overrides: Any) -> tuple[Any, frozenset[str]]:
    """The model, and the names of weights the checkpoint did not have."""
    if not (checkpoint / "config.json").is_file():
        raise ModelError(f"{checkpoint}: no config.json: not a Hugging Face model directory")
    devices = list(range(torch.cuda.device_count()))
    try:
        # Weights that a checkpoint lacks are drawn from torch's global generator: keep it as it was.
        with quiet_transformers(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            model, info = auto_class.from_pretrained(
                checkpoint,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **overrides,
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{checkpoint}: no model could be loaded: {error}") from error
    missing = frozenset(info["missing_keys"])
    _check_shapes(checkpoint, info)
    if lost := sorted(name for name in missing if name != SCORE_HEAD):
        raise ModelError(f"{checkpoint}: {len(lost)} weights are missing from the checkpoint, such as {lost[0]}")
    return model, missing


def check_complete(folder: Path) -> None:
    """Build the model without memory for its numbers, and check every tensor against it, as loading will."""
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            _, info = AutoModelForCausalLM.from_pretrained(
                folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder}: no causal language model could be made of its config: {error}") from error
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"{folder}: its weights lack {missing[0]}{more}, which its config.json asks for; {_REMEDY}")
    _check_shapes(folder, info)


def _check_shapes(folder: Path, info: Mapping[str, Any]) -> None:
    """Refuse a model some of whose weights were not loaded because of their shape, as from_pretrained's `info` says."""
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise ModelError(f"{folder}: {name} is {by(stored)}, and by config.json {by(wanted)}; {_REMEDY}")


def _ready(model: nn.Module) -> nn.Module:
    """Without dropout: training is a function of data and seed alone, and equal for packed and separate rows."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return model.eval()


def _pad_token_id(checkpoint: Path, config: Any) -> int:
    """For others who load the model: they find the last token by this id, where a reward is read at a known token
    here."""
    from transformers import AutoTokenizer

    pad_token_id = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True).pad_token_id
    if pad_token_id is None:
        pad_token_id = config.get_text_config().pad_token_id
    if pad_token_id is None:
        raise ModelError(f"{checkpoint}: its tokenizer has no pad token: prepare the base with alignloop first")
    return int(pad_token_id)


def uses_bfloat16(dtype: Dtype, *, device: torch.device, progress: Progress) -> bool:
    """Whether to run forward passes under bfloat16 autocast.

    A CPU without AVX512-BF16 or AMX emulates bfloat16 at a tenth of float32's speed: float32 is used there, which is
    exact as well, and a line says so.
    """
    if dtype == "float32":
        return False
    if device.type != "cpu" or _cpu_has_bfloat16():
        return True
    progress.say("  this CPU has no bfloat16 arithmetic (AVX512-BF16 or AMX): running in float32, which is faster here")
    return False


def _cpu_has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pad_token_id_of(model: Any) -> int:
    """Filler of padded positions: they are masked, so any id of the vocabulary will do."""
    pad_token_id = model.config.get_text_config().pad_token_id
    return pad_token_id if isinstance(pad_token_id, int) and pad_token_id >= 0 else 0


def check_vocabulary(model: Any, groups: Sequence[PromptGroup], *, checkpoint: Path) -> None:
    """Raises ModelError where a token id lies beyond the embedding."""
    num_embeddings = int(model.get_input_embeddings().weight.shape[0])
    for group in groups:
        largest = max(max(group.prompt_ids), *(max(c.token_ids, default=0) for c in group.completions))
        if largest >= num_embeddings:
            raise ModelError(
                f"{checkpoint}: row {group.id} has token id {largest}, but the embedding has only {num_embeddings} "
                "rows: the tokenizer does not belong to this model, or its embeddings were never resized"
            )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars for tiny files; no warning that a policy loaded as a reward model has no head yet: that is the plan."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def rows_of(module: Any) -> tuple[Tensor, tuple[int, ...]] | None:
    """[k, D] trainable rows of an embedding or an output head, and the tokens they are of."""
    rows = getattr(module, ROWS, None)
    return None if rows is None else (rows, module.new_token_ids)


class TokenLogprobs(nn.Module):
    """RowBatch -> [T] float32 logprobs of its trained targets. Only their positions go through the output head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        self._scale = logit_scale(model.config)
        self._softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    def forward(self, batch: RowBatch) -> Tensor:
        # With `train_on: all_assistant` prompts hold targets too.
        reads: Reads = "everything" if (batch.completion_index == NO_COMPLETION).any() else "completions"
        backbone = backbone_of(self.model)
        hidden = hidden_states(backbone, batch, at=batch.trained_index, reads=reads)
        return self.logprobs(hidden, target_ids=batch.target_ids)

    def logprobs(self, hidden: Tensor, *, target_ids: Tensor) -> Tensor:
        """[T] of targets, from the [T, D] hidden states before them."""
        head = self.model.get_output_embeddings()
        return token_logprobs(
            hidden,
            target_ids=target_ids,
            head_weight=head.weight,
            head_bias=getattr(head, "bias", None),
            head_rows=rows_of(head),
            scale=self._scale,
            softcap=self._softcap,
        )


class CompletionRewards(nn.Module):
    """RowBatch -> [C] float32 rewards, each read at its completion's own last token."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, batch: RowBatch) -> Tensor:
        backbone = backbone_of(self.model)
        last = hidden_states(backbone, batch, at=batch.last_index, reads="last tokens")
        # In float32: eight bits of mantissa would tie the rewards of candidates that are nearly as good.
        with torch.autocast(device_type=last.device.type, enabled=False):
            return nn.functional.linear(last.float(), self.model.score.weight.float()).squeeze(-1)


def backbone_of(model: Any) -> Any:
    """The model without its head; a ModelError where the architecture has none of its own."""
    if model.base_model is model:
        raise ModelError(f"{type(model).__name__}: has no backbone apart from its head: it cannot be trained here")
    return model.base_model


def logit_scale(config: Any) -> float:
    """Factor that an architecture puts on its logits (Cohere multiplies, Granite divides)."""
    text_config = config.get_text_config()
    scale = getattr(text_config, "logit_scale", None)
    divisor = getattr(text_config, "logits_scaling", None)
    return float(scale) if scale else 1.0 / float(divisor) if divisor else 1.0


@torch.no_grad()
def check_head(module: TokenLogprobs) -> None:
    """Raises ModelError where our output head does not give the model's own logits, which it changes in an unknown
    way."""
    model = module.model
    weight = model.get_output_embeddings().weight
    ids = torch.arange(1, 9, device=weight.device)[None] % weight.shape[0]
    own = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    hidden = backbone_of(model)(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    ours = module.logprobs(hidden, target_ids=ids[0, 1:])
    difference = float((own.gather(1, ids[0, 1:, None])[:, 0] - ours).abs().max())
    if not difference <= HEAD_TOLERANCE * max(1.0, float(ours.abs().max())):
        raise ModelError(
            f"{type(model).__name__}: logprobs from its hidden states differ from its own by {difference:.3g} nats: "
            "this architecture changes its logits in a way that alignloop does not know"
        )
