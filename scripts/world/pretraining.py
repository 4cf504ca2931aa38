"""Training the quickstart base from scratch: documents -> length-bucketed batches -> weights.

Imports torch and transformers at the top: import this module only where training happens.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import distributed
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.world.corpus import Document

BOS, END_OF_TEXT = "<|begin_of_text|>", "<|end_of_text|>"
START_HEADER, END_HEADER = "<|start_header_id|>", "<|end_header_id|>"
END_OF_TURN, PAD = "<|eot_id|>", "<|finetune_right_pad_id|>"
CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
_BUCKET_DOCUMENTS = 1024


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on texts, with Llama 3's special tokens and template; `max_length` is in tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, END_OF_TEXT, START_HEADER, END_HEADER, END_OF_TURN, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bos = (BOS, bpe.token_to_id(BOS))
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        additional_special_tokens=[END_OF_TEXT, START_HEADER, END_HEADER],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def prompt_text(prompt: str) -> str:
    """The chat template as text for one user turn, up to the completion."""
    return f"{BOS}{START_HEADER}user{END_HEADER}\n\n{prompt}{END_OF_TURN}{START_HEADER}assistant{END_HEADER}\n\n"


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


def new_model(size: ModelSize, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights and tied embeddings."""
    torch.manual_seed(seed)
    bos, pad, *eos = tokenizer.convert_tokens_to_ids([BOS, PAD, END_OF_TURN, END_OF_TEXT])
    config = LlamaConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=size.intermediate,
        vocab_size=size.vocab,
        max_position_embeddings=size.max_length,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    model.generation_config.update(eos_token_id=eos, pad_token_id=pad, bos_token_id=bos)
    return model


@dataclass(frozen=True)
class Schedule:
    """A stretch of training: `num_tokens` seen, with prompts and without padding; `batch_tokens` a step and process."""

    num_tokens: int
    learning_rate: float
    warmup_fraction: float = 0.03
    decay_fraction: float = 0.5
    final_fraction: float = 0.03
    batch_tokens: int = 768
    weight_decay: float = 0.05

    def rate(self, progress: float) -> float:
        """Linear up over `warmup_fraction`, flat, then linear down over `decay_fraction` to `final_fraction`."""
        if progress < self.warmup_fraction:
            return self.learning_rate * max(progress / self.warmup_fraction, 0.01)
        left = max(0.0, min(1.0, (1.0 - progress) / self.decay_fraction))
        return self.learning_rate * (self.final_fraction + (1.0 - self.final_fraction) * left)


@dataclass(frozen=True)
class Encoded:
    """A document; its first `num_context` tokens have no loss."""

    token_ids: tuple[int, ...]
    num_context: int


def encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """Token ids; the loss is on a chat's answer with its end-of-turn token, or on a plain text but for its BOS."""
    before, end = (BOS, END_OF_TEXT) if document.prompt is None else (prompt_text(document.prompt), END_OF_TURN)
    context = tokenizer.encode(before, add_special_tokens=False)
    target = tokenizer.encode(document.text + end, add_special_tokens=False)
    return Encoded((*context, *target), len(context))


def batches(documents: Iterator[Encoded], *, batch_tokens: int, seed: int) -> Iterator[list[Encoded]]:
    """Documents of like length together, about `batch_tokens` tokens each, in random order."""
    rng = random.Random(seed)
    while True:
        bucket = sorted(islice(documents, _BUCKET_DOCUMENTS), key=lambda one: len(one.token_ids))
        groups: list[list[Encoded]] = [[]]
        for document in bucket:
            if len(groups[-1]) * len(document.token_ids) >= batch_tokens:
                groups.append([])
            groups[-1].append(document)
        rng.shuffle(groups)
        yield from groups


def completion_loss(model: LlamaForCausalLM, batch: Sequence[Encoded], *, pad_id: int) -> torch.Tensor:
    """Mean cross-entropy over the target tokens of a right-padded batch. Scalar.

    The vocabulary is projected at target positions only, which halves the time of a step on a model this small.
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
    say: Callable[[str], None],
) -> None:
    """Train in place for `schedule.num_tokens` tokens.

    In a torch.distributed group every process trains on its own documents and gradients are averaged: two processes
    with a thread each do more on two cores than one process with two threads.
    """
    encoded = (encode(document, tokenizer) for document in documents)
    optimizers = _optimizers(model, schedule)
    done, started, losses = 0, time.monotonic(), []
    model.train()
    for step, batch in enumerate(batches(encoded, batch_tokens=schedule.batch_tokens, seed=seed), start=1):
        rate = schedule.rate(done / schedule.num_tokens)
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
    named = list(model.named_parameters())
    matrices = [value for name, value in named if value.ndim == 2 and "embed" not in name]
    others = [value for name, value in named if value.ndim != 2 or "embed" in name]
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
    sizes = [gradient.numel() for gradient in gradients]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor([loss, float(num_tokens)])])
    distributed.all_reduce(flat)
    world_size = distributed.get_world_size()
    *parts, last = torch.split(flat, [*sizes, 2])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient) / world_size)
    return last[0].item() / world_size, int(last[1].item())


def orthogonalised(matrices: torch.Tensor, *, num_steps: int = 5) -> torch.Tensor:
    """Nearest semi-orthogonal matrices, about, by Newton-Schulz steps. Shape [N, rows, columns], rows <= columns."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised in float32, batched by shape; its size matches AdamW's (root mean square
    0.2). K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024).

    torch's own works in bfloat16, which is slower than everything else together on a CPU without bfloat16 units.
    """

    def __init__(
        self, matrices: Iterable[torch.nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix with a gradient; those of one shape, or its transpose, in one batch."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[torch.nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[min(matrix.shape), max(matrix.shape)].append(matrix)
            for matrices in by_shape.values():
                updates = torch.stack([_wide(self._momentum(one, group["momentum"])) for one in matrices])
                scale = 0.2 * max(matrices[0].shape) ** 0.5
                for matrix, update in zip(matrices, orthogonalised(updates), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update if _is_wide(matrix) else update.mT, alpha=-group["lr"] * scale)

    def _momentum(self, matrix: torch.nn.Parameter, share: float) -> torch.Tensor:
        gradient = matrix.grad
        assert gradient is not None, "step() takes matrices with a gradient only"
        momentum: torch.Tensor = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
        momentum.lerp_(gradient, 1 - share)
        return gradient.lerp(momentum, share)


def _is_wide(matrix: torch.Tensor) -> bool:
    return matrix.shape[0] <= matrix.shape[1]


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    return matrix if _is_wide(matrix) else matrix.mT
