"""Training the quickstart base from scratch: documents -> length-bucketed batches -> weights.

torch and transformers are imported here at the top; import this module only where training happens.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import distributed
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.world.corpus import Document
from scripts.world.muon import Muon
from scripts.world.tokenizer import BOS, END_OF_TEXT, END_OF_TURN, PAD, prompt_text

Say = Callable[[str], None]
_BUCKET_DOCUMENTS = 1024


@dataclass(frozen=True)
class ModelSize:
    """Shape of the base. Heads are 32 wide: the smallest vLLM's CPU attention serves."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 384
    vocab: int = 2048
    max_length: int = 2048
    """Positions a rotary model can be asked for; the documents it learns from are under 256 tokens."""


@dataclass(frozen=True)
class Schedule:
    """One stretch of training."""

    num_tokens: int
    """Tokens seen, prompts included, padding not."""
    learning_rate: float
    warmup_fraction: float = 0.03
    decay_fraction: float = 0.5
    final_fraction: float = 0.03
    batch_tokens: int = 768
    """Tokens a step and process."""
    weight_decay: float = 0.05


@dataclass(frozen=True)
class Encoded:
    token_ids: tuple[int, ...]
    num_context: int
    """Leading tokens without loss."""


def new_model(size: ModelSize, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights and tied embeddings."""
    torch.manual_seed(seed)
    end_of_turn, end_of_text = tokenizer.convert_tokens_to_ids([END_OF_TURN, END_OF_TEXT])
    config = LlamaConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=size.intermediate,
        vocab_size=size.vocab,
        max_position_embeddings=size.max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids(BOS),
        eos_token_id=[end_of_turn, end_of_text],
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [end_of_turn, end_of_text]
    model.generation_config.pad_token_id = config.pad_token_id
    model.generation_config.bos_token_id = config.bos_token_id
    return model


def encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """Token ids as the chat template gives them; plain texts run from begin to end of text."""
    if document.prompt is None:
        ids = tokenizer.encode(f"{BOS}{document.text}{END_OF_TEXT}", add_special_tokens=False)
        return Encoded(tuple(ids), 1)
    context = tokenizer.encode(prompt_text(document.prompt), add_special_tokens=False)
    target = tokenizer.encode(document.text + END_OF_TURN, add_special_tokens=False)
    return Encoded((*context, *target), len(context))


def batches(documents: Iterator[Encoded], *, batch_tokens: int, seed: int) -> Iterator[list[Encoded]]:
    """Documents of like length together, about `batch_tokens` tokens each, in random order."""
    rng = random.Random(seed)
    while True:
        bucket = sorted((next(documents) for _ in range(_BUCKET_DOCUMENTS)), key=lambda one: len(one.token_ids))
        groups: list[list[Encoded]] = [[]]
        for document in bucket:
            if len(groups[-1]) * len(document.token_ids) >= batch_tokens:
                groups.append([])
            groups[-1].append(document)
        rng.shuffle(groups)
        yield from groups


def completion_loss(model: LlamaForCausalLM, batch: Sequence[Encoded], *, pad_id: int) -> torch.Tensor:
    """Mean cross-entropy over the target tokens of a right-padded batch. Scalar.

    The vocabulary is projected at target positions only: half of the time of a step on a model this small.
    """
    width = max(len(one.token_ids) for one in batch)
    ids = torch.full((len(batch), width), pad_id)
    target = torch.zeros((len(batch), width), dtype=torch.bool)
    for row, one in enumerate(batch):
        ids[row, : len(one.token_ids)] = torch.tensor(one.token_ids)
        target[row, one.num_context : len(one.token_ids)] = True
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    chosen = target[:, 1:]
    return functional.cross_entropy(functional.linear(hidden[chosen], model.lm_head.weight), ids[:, 1:][chosen])


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    documents: Iterator[Document],
    *,
    schedule: Schedule,
    seed: int,
    say: Say,
) -> None:
    """Train in place for `schedule.num_tokens` tokens.

    In a torch.distributed group every process trains on documents of its own and gradients are averaged: two
    processes with a thread each do more on two cores than one process with two threads.
    """
    encoded = (encode(document, tokenizer) for document in documents)
    optimizers = _optimizers(model, schedule)
    done, started, losses = 0, time.monotonic(), []
    model.train()
    for step, batch in enumerate(batches(encoded, batch_tokens=schedule.batch_tokens, seed=seed), start=1):
        rate = schedule.learning_rate * _rate_factor(done / schedule.num_tokens, schedule)
        loss = completion_loss(model, batch, pad_id=model.config.pad_token_id)
        torch.autograd.backward(loss)
        loss_value, num_tokens = _averaged_gradients(model, loss.item(), sum(len(one.token_ids) for one in batch))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss_value)
        done += num_tokens
        if step % 200 == 0:
            speed = done / (time.monotonic() - started)
            say(f"  step {step:,}  {done:,} tokens  loss {sum(losses[-200:]) / 200:.3f}  {speed:,.0f} tokens/s")
        if done >= schedule.num_tokens:
            break
    model.eval()


def _optimizers(model: LlamaForCausalLM, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings and norms."""
    matrices = [value for name, value in model.named_parameters() if value.ndim == 2 and "embed" not in name]
    taken = {id(matrix) for matrix in matrices}
    others = [value for value in model.parameters() if id(value) not in taken]
    rate = schedule.learning_rate
    return [
        Muon(matrices, lr=rate, weight_decay=schedule.weight_decay),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def _averaged_gradients(model: LlamaForCausalLM, loss: float, num_tokens: int) -> tuple[float, int]:
    """Average the gradients over the group, in place; returns the mean loss and the sum of tokens."""
    if not distributed.is_initialized():
        return loss, num_tokens
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor([loss, float(num_tokens)])])
    distributed.all_reduce(flat)
    world_size = distributed.get_world_size()
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient) / world_size)
        start += gradient.numel()
    return flat[-2].item() / world_size, int(flat[-1].item())


def _rate_factor(progress: float, schedule: Schedule) -> float:
    """Linear up over `warmup_fraction`, flat, then linear down over `decay_fraction` to `final_fraction`."""
    if progress < schedule.warmup_fraction:
        return max(progress / schedule.warmup_fraction, 0.01)
    left = (1.0 - progress) / schedule.decay_fraction
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * max(0.0, min(1.0, left))


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """The schedule with another number of tokens."""
    return replace(schedule, num_tokens=int(schedule.num_tokens * factor))
