"""The fallback engine: plain `transformers`, for machines or architectures vLLM does not serve.

Runs inside the engine process like vLLM does, so that memory and lifetime are one story.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import Completion, GenerateRequest, Loglikelihood, LoglikelihoodRequest
from alignloop.engines.checkpoint import eos_token_ids
from alignloop.engines.plain import load_plain
from alignloop.errors import EngineError, UserError

if TYPE_CHECKING:
    import torch

_PAD = 0
"""Any id will do: padded positions are masked out and cut off."""
_STOP_MARGIN = 8
"""Tokens decoded beyond the longest stop string: room for tokens that decode to nothing."""
_SCORE_BATCH_TOKENS = 16_384
"""Padded tokens a scoring batch; logits of the whole batch are held at once."""


class TransformersEngine:
    """Serves one checkpoint at a time. Used by `alignloop.engines.worker` alone.

    `GenerateRequest.json_schema` is not held to: completions are sampled freely, and their reader checks them.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._model: Any = None
        self._served: Path | None = None
        self._eos: tuple[int, ...] = ()
        self._tokenizer: Any = None

    def load_weights(self, checkpoint: Path) -> None:
        """Serve `checkpoint`. It is itself the plain forward pass, so there is no canary to ask."""
        if checkpoint == self._served:
            self.wake()
            return
        import torch
        from transformers import GenerationConfig

        self._model = None  # the old weights leave memory before the new ones come
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and self._config.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
            raise UserError("engine.dtype: bfloat16 is not one that this GPU computes in: set engine.dtype: float32")
        model = load_plain(checkpoint, dtype=self._config.dtype)
        model.generation_config = GenerationConfig()  # its sampling defaults must not mix into the requests
        self._model = model.to(device)
        self._eos = eos_token_ids(checkpoint)
        self._tokenizer = None
        self._served = checkpoint

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        model = self._ready()
        results: list[list[Completion]] = [[] for _ in requests]
        for indices in _generation_batches(requests, max_rows=self._config.max_num_seqs):
            batch = [requests[index] for index in indices]
            for index, completions in zip(indices, self._generate_batch(model, batch), strict=True):
                results[index] = completions
        return results

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        model = self._ready()
        lengths = [len(request.context_ids) + len(request.continuation_ids) for request in requests]
        results: dict[int, Loglikelihood] = {}
        for indices in length_batches(lengths, batch_tokens=_SCORE_BATCH_TOKENS):
            batch = [requests[index] for index in indices]
            results.update(zip(indices, _score_batch(model, batch), strict=True))
        return [results[index] for index in range(len(requests))]

    def sleep(self) -> None:
        """The model moves to main memory while something else needs the accelerator's."""
        if self._model is not None and self._model.device.type == "cuda":
            import torch

            self._model.to("cpu")
            torch.cuda.empty_cache()

    def wake(self) -> None:
        import torch

        if self._model is not None and torch.cuda.is_available():
            self._model.to("cuda")

    def _generate_batch(self, model: Any, batch: list[GenerateRequest]) -> list[list[Completion]]:
        """One `generate` call; all requests of a batch share everything but their prompt."""
        import torch

        first = batch[0]
        stop_ids = sorted({*first.stop_token_ids, *self._eos})
        num_candidates = 1 if first.temperature == 0 else first.num_candidates
        ids, mask = padded([request.prompt_ids for request in batch], device=model.device, left=True)
        width = ids.shape[1]
        if first.seed is not None and first.temperature > 0:
            torch.manual_seed(first.seed)
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=_generation_config(first, stop_ids=stop_ids, num_candidates=num_candidates),
                **self._stop_strings(first, width=width),
            )
        rows = [self._cut(row, request=first, stop_ids=stop_ids) for row in output[:, width:].tolist()]
        repeats = first.num_candidates if first.temperature == 0 else 1  # greedy candidates are all the same
        return [rows[i : i + num_candidates] * repeats for i in range(0, len(rows), num_candidates)]

    def _stop_strings(self, request: GenerateRequest, *, width: int) -> dict[str, Any]:
        """A stopping criterion of our own: transformers' cannot read every tokenizer."""
        if not request.stop_strings:
            return {}
        import torch

        def ended(ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            rows = ids[:, width:].tolist()
            return torch.tensor([self._completes(row, request.stop_strings) for row in rows], device=ids.device)

        return {"stopping_criteria": [ended]}

    def _completes(self, row: list[int], stop_strings: tuple[str, ...]) -> bool:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self._served, local_files_only=True)
        tail = row[-(max(map(len, stop_strings)) + _STOP_MARGIN) :]
        text = self._tokenizer.decode(tail, skip_special_tokens=True)
        return any(string in text for string in stop_strings)

    def _cut(self, row: list[int], *, request: GenerateRequest, stop_ids: list[int]) -> Completion:
        """A row of the batch up to where this completion ended: the rest is padding for the longer ones."""
        end = next((i + 1 for i, token_id in enumerate(row) if token_id in stop_ids), None)
        if request.stop_strings:
            ends = range(1, (end or len(row)) + 1)
            end = next((i for i in ends if self._completes(row[:i], request.stop_strings)), end)
        if end is None:
            return Completion(token_ids=tuple(row[: request.max_tokens]), finish_reason="length")
        return Completion(token_ids=tuple(row[:end]), finish_reason="stop")

    def _ready(self) -> Any:
        if self._model is None:
            raise EngineError("the engine serves no model yet: call load_weights first")
        return self._model


def length_batches(lengths: Sequence[int], *, batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length that hold at most `batch_tokens` padded tokens, longest first."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(rows: Sequence[Sequence[int]], *, device: Any, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, both [B, T].

    At the right a causal model never sees the padding, and positions need no care. At the left all rows end where
    generation begins.
    """
    import torch

    width = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        pad, own = [_PAD] * (width - len(row)), list(row)
        ids.append(pad + own if left else own + pad)
        mask.append([0] * len(pad) + [1] * len(own) if left else [1] * len(own) + [0] * len(pad))
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _generation_config(request: GenerateRequest, *, stop_ids: list[int], num_candidates: int) -> Any:
    from transformers import GenerationConfig

    sampling: dict[str, Any] = {"do_sample": False}
    if request.temperature > 0:
        sampling = {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=request.max_tokens,
        eos_token_id=stop_ids or None,
        pad_token_id=_PAD,
        num_return_sequences=num_candidates,
        **sampling,
    )


def _generation_batches(requests: Sequence[GenerateRequest], *, max_rows: int) -> Iterator[list[int]]:
    """Indices of requests that can share a `generate` call, shortest prompts first.

    `generate` has one random stream, so each seeded request is a call of its own: its completions must not
    depend on its neighbours.
    """
    alike: dict[tuple[int | None, GenerateRequest], list[int]] = {}
    for index, request in enumerate(requests):
        own_stream = index if request.seed is not None and request.temperature > 0 else None
        key = (own_stream, replace(request, prompt_ids=(), seed=None, json_schema=None))
        alike.setdefault(key, []).append(index)
    for indices in alike.values():
        indices.sort(key=lambda index: len(requests[index].prompt_ids))
        size = max(1, max_rows // requests[indices[0]].num_candidates)
        yield from (indices[i : i + size] for i in range(0, len(indices), size))


def _score_batch(model: Any, batch: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
    import torch

    rows = [[*request.context_ids, *request.continuation_ids] for request in batch]
    ids, mask = padded(rows, device=model.device)
    scored = []
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for index, (request, row) in enumerate(zip(batch, rows, strict=True)):
            span = slice(len(request.context_ids) - 1, len(row) - 1)
            target = ids[index, len(request.context_ids) : len(row)]
            logprobs = logits[index, span].float().log_softmax(-1)
            taken = logprobs.gather(-1, target[:, None]).squeeze(-1)
            is_greedy = bool((logprobs.argmax(-1) == target).all())
            scored.append(Loglikelihood(logprobs=tuple(taken.tolist()), is_greedy=is_greedy))
    return scored
