"""Models as the objectives see them: a batch of rows in, logprobs or rewards out.

Modules of their own, so that a wrapper of accelerate (DDP, FSDP) sees one `forward` and synchronises it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alignloop.errors import ModelError
from alignloop.objectives.logprobs import token_logprobs
from alignloop.packing.attention import hidden_states
from alignloop.packing.batch import RowBatch
from alignloop.packing.layout import NO_COMPLETION
from alignloop.training.token_rows import rows_of

HEAD_TOLERANCE = 1e-2


class TokenLogprobs(nn.Module):
    """RowBatch -> [T] float32 logprobs of its trained targets. Only their positions go through the output head."""

    def __init__(self, model: Any, *, isolate: bool = True) -> None:
        super().__init__()
        self.model: Any = model
        self.isolate = isolate
        self._scale = logit_scale(model.config)
        self._softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    def forward(self, batch: RowBatch) -> Tensor:
        model = self.model
        # With `train_on: all_assistant` prompts hold targets too.
        in_prompts = bool((batch.completion_index == NO_COMPLETION).any())
        hidden = hidden_states(
            backbone_of(model),
            batch,
            at=batch.trained_index,
            isolate=self.isolate,
            reads="everything" if in_prompts else "completions",
        )
        head = model.get_output_embeddings()
        return token_logprobs(
            hidden,
            target_ids=batch.target_ids,
            head_weight=head.weight,
            head_bias=getattr(head, "bias", None),
            head_rows=rows_of(head),
            scale=self._scale,
            softcap=self._softcap,
        )


class CompletionRewards(nn.Module):
    """RowBatch -> [C] float32 rewards, each read at its completion's own last token."""

    def __init__(self, model: Any, *, isolate: bool = True) -> None:
        super().__init__()
        self.model: Any = model
        self.isolate = isolate

    def forward(self, batch: RowBatch) -> Tensor:
        model = self.model
        last = hidden_states(backbone_of(model), batch, at=batch.last_index, isolate=self.isolate, reads="last tokens")
        # In float32: eight bits of mantissa would tie the rewards of candidates that are nearly as good.
        with torch.autocast(device_type=last.device.type, enabled=False):
            return nn.functional.linear(last.float(), model.score.weight.float()).squeeze(-1)


def backbone_of(model: Any) -> Any:
    """The model without its head.

    Raises:
        ModelError: the architecture has none of its own.
    """
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
    """Our own output head must give the model's own logits.

    Raises:
        ModelError: the architecture does something to its logits that is not known here.
    """
    model = module.model
    weight = model.get_output_embeddings().weight
    ids = torch.arange(1, 9, device=weight.device)[None] % weight.shape[0]
    own = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    hidden = backbone_of(model)(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    head = model.get_output_embeddings()
    ours = token_logprobs(
        hidden,
        target_ids=ids[0, 1:],
        head_weight=head.weight,
        head_bias=getattr(head, "bias", None),
        head_rows=rows_of(head),
        scale=module._scale,
        softcap=module._softcap,
    )
    difference = float((own.gather(1, ids[0, 1:, None])[:, 0] - ours).abs().max())
    if not difference <= HEAD_TOLERANCE * max(1.0, float(ours.abs().max())):
        raise ModelError(
            f"{type(model).__name__}: logprobs from its hidden states differ from its own by {difference:.3g} nats: "
            "this architecture changes its logits in a way that alignloop does not know"
        )
