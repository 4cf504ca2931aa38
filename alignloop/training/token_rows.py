"""Rows of the embedding and of the output head that train while the rest of both stays frozen.

    ids --embedding, frozen--> vectors, those of new tokens replaced by trainable rows --> layers --> hidden states
    hidden states --output head, its rows of new tokens replaced--> logprobs (`objectives/output_head.py`)

The matrices stay as they are: a copy with the rows in it, as PEFT's `trainable_token_indices` makes one each time, and
its gradient would each take what the whole embedding takes. What is saved is in PEFT's form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alignloop.training.adapter_files import TOKEN_ROWS

ROWS = "new_rows"
ROW_IDS = "new_row_ids"
START = "new_rows_start"


def add_token_rows(model: Any, token_ids: Sequence[int]) -> None:
    """Make the rows of these tokens trainable, in place, in the embedding and in the output head.

    They start as they are, in float32. Where the two are one matrix, one set of rows serves both.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings() if model.can_generate() else None
    _attach(embedding, token_ids)
    embedding.register_forward_hook(_embed_rows)
    if head is None:
        return
    if head.weight is embedding.weight:
        _register(head, embedding.get_parameter(ROWS), token_ids)
    else:
        _attach(head, token_ids)
    head.register_forward_hook(_replace_logits)


def _matrices(model: nn.Module) -> dict[str, Any]:
    """Each matrix with trainable rows, by name; one that is the embedding itself is not named again."""
    return {name: module for name, module in model.named_modules() if hasattr(module, START)}


def num_new_tokens(model: nn.Module) -> int:
    return max((len(module.new_token_ids) for module in _matrices(model).values()), default=0)


def rows_of(module: Any) -> tuple[Tensor, tuple[int, ...]] | None:
    """[k, D] trainable rows of an embedding or an output head, and the tokens they are of."""
    rows = getattr(module, ROWS, None)
    return None if rows is None else (rows, module.new_token_ids)


@torch.no_grad()
def merge_rows(model: nn.Module, plain: nn.Module, *, trained: Mapping[str, Tensor]) -> None:
    """Move the rows of a plain float32 model as far as training has moved those of `model`: to `trained`, by name.

    What the frozen matrix lost where it is held in bfloat16 stays in.
    """
    for name, module in _matrices(model).items():
        moved = trained[f"{name}.{ROWS}"].float().cpu() - module.get_buffer(START).cpu()
        plain.get_parameter(f"{name}.weight")[list(module.new_token_ids)] += moved


def saved_rows(model: nn.Module, plain: nn.Module) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """(tensors by PEFT's names, its `trainable_token_indices`) of the rows that `merge_rows` put into `plain`."""
    tensors: dict[str, Tensor] = {}
    indices: dict[str, list[int]] = {}
    for name, module in _matrices(model).items():
        ids = list(module.new_token_ids)
        tensors[f"{name}.{TOKEN_ROWS}"] = plain.get_parameter(f"{name}.weight").detach()[ids].contiguous()
        indices[name.rpartition(".")[2]] = ids
    return tensors, indices


def _attach(module: Any, token_ids: Sequence[int]) -> None:
    start = module.weight.detach()[sorted(token_ids)].float()
    _register(module, nn.Parameter(start.clone()), token_ids)
    module.register_buffer(START, start, persistent=False)


def _register(module: Any, rows: nn.Parameter, token_ids: Sequence[int]) -> None:
    module.register_parameter(ROWS, rows)
    module.register_buffer(ROW_IDS, torch.tensor(sorted(token_ids), device=rows.device), persistent=False)
    # Where numbers on the CPU are wanted: asking a GPU for them would make the CPU wait for it.
    module.new_token_ids = tuple(sorted(token_ids))


def _embed_rows(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """The embedding's output with its own forward over the trainable rows where a token is one of theirs."""
    ids, row_ids = args[0], module.get_buffer(ROW_IDS)
    places = torch.searchsorted(row_ids, ids).clamp_(max=len(row_ids) - 1)
    with _rows_as_weight(module):
        replaced = module.forward(places)
    return torch.where((row_ids[places] == ids)[..., None], replaced, output)


@contextmanager
def _rows_as_weight(module: Any) -> Iterator[None]:
    """An embedding of the trainable rows alone, for as long as the block runs: some scale or norm what they look up."""
    weight, padding = module._parameters["weight"], module.padding_idx
    module._parameters["weight"] = module.new_rows.to(weight.dtype)
    module.padding_idx = None
    try:
        yield
    finally:
        module._parameters["weight"], module.padding_idx = weight, padding


def _replace_logits(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """For whoever calls the head itself; training goes by `rows_of`."""
    rows, ids = module.new_rows.to(args[0].dtype), module.get_buffer(ROW_IDS)
    bias = None if module.bias is None else module.bias[ids]
    logits = nn.functional.linear(args[0], rows, bias)
    return output.index_copy(-1, ids, logits.to(output.dtype))
