"""lm-eval's model class over our engine: text on lm-eval's side, token ids on the engine's.

messages --apply_chat_template--> marked JSON string --(lm-eval)--> generate_until / loglikelihood
         --ChatFormat.prompt_ids--> token ids --Engine--> completions / logprobs
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from alignloop.chat.format import ChatFormat
from alignloop.chat.load import in_first_user_turn, takes_system_turn
from alignloop.chat.reasoning import holds_reasoning
from alignloop.chat.template_defaults import Value
from alignloop.engines.base import Completion, Engine, GenerateRequest, LoglikelihoodRequest
from alignloop.errors import DataError
from alignloop.evaluation.questions import RenderedPrompts, pack_messages, unpack_messages, without_reasoning
from alignloop.progress import Progress
from alignloop.records import Message

DEFAULT_MAX_GEN_TOKS = 256
"""lm-eval's own limit for tasks that name none."""
SCORED_AT_ONCE = 512
"""Options to a call of the engine: vLLM keeps a record of every token of every prompt until a call ends, gigabytes of
them for all of MMLU."""
Request = TypeVar("Request")
Result = TypeVar("Result")


class EngineLM(TemplateLM):
    """An lm-eval model that is a live engine.

    Args:
        engine: is made to serve `checkpoint` when the first request comes.
        tokenizer: the checkpoint's Hugging Face tokenizer; plain (not chat) contexts are encoded with it.
        max_model_len: longest prompt + completion the engine serves, in tokens.
        max_gen_tokens: longest answer, whatever a task asks for.
        seed: of tasks that sample; greedy ones do not need it.
        strip_reasoning: take reasoning off answers before lm-eval sees them; stop strings are then looked for in the
            answer alone.

    Attributes:
        takes_system_turn: whether the template does; else a description goes before the first user turn.
        generations: (task name, question index) -> the completion as sampled, for stop rates and lengths.
        reasonings: the same -> what was taken off.
        num_holding_reasoning: answers judged with it.
        rendered: of the prompts that `num_tokens` was asked about.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        checkpoint: Path,
        tokenizer: Any,
        chat: ChatFormat,
        max_model_len: int,
        max_gen_tokens: int,
        seed: int,
        progress: Progress,
        strip_reasoning: bool = False,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.strip_reasoning = strip_reasoning
        self.takes_system_turn = takes_system_turn(chat)
        self.generations: dict[tuple[str, int], Completion] = {}
        self.reasonings: dict[tuple[str, int], str] = {}
        self.num_holding_reasoning = 0
        self.rendered = RenderedPrompts()
        self._engine = engine
        self._checkpoint = checkpoint
        self._chat = chat
        # A question's options and its answer share one context, asked for one after another.
        self._context_ids = lru_cache(maxsize=4)(self._encode_context)
        self._max_gen_tokens = max_gen_tokens
        self._seed = seed
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        return self._chat.stop_token_ids[0]

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """What ends an answer."""
        return self._chat.stop_token_ids

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is: BOS, or where a tokenizer has none the end of a turn."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    @property
    def template_kwargs(self) -> Mapping[str, Value]:
        """What the chat template is rendered with beside the messages."""
        return self._chat.template_kwargs

    @property
    def chat_template_digest(self) -> str:
        """SHA-256 of the template."""
        template = json.dumps(self.tokenizer.chat_template, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(template.encode()).hexdigest()

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages -> marked string. A last assistant message is the beginning of the answer (`gen_prefix`)."""
        if self.takes_system_turn:
            return pack_messages(chat_history)
        folded = in_first_user_turn([Message(**message) for message in chat_history])
        return pack_messages([{"role": message.role, "content": message.content} for message in folded])

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Ids of plain text: special tokens in it are text, and none is added unless asked for."""
        ids = self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens), split_special_tokens=True)
        return [int(token_id) for token_id in ids]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """One engine call for all prompts of all tasks; answers as text, cut before the first stop string."""
        prompts = [self._context_ids(request.args[0]) for request in requests]
        self._check_fitting([len(ids) + 1 for ids in prompts], requests=requests)
        asked = [
            self._generate_request(ids, kwargs=request.args[1], seed=self._seed + number)
            for number, (ids, request) in enumerate(zip(prompts, requests, strict=True))
        ]
        answers = self._with_progress(self._engine.generate, asked, label="generate answers")
        texts = []
        for request, (completion,) in zip(requests, answers, strict=True):
            question = (str(request.task_name), int(request.doc_id or 0))
            self.generations[question] = completion
            text = self._judged_part(self._chat.decode(completion.token_ids), question=question)
            stops = [text.find(stop) for stop in self.effective_kwargs(request.args[1])["until"] if stop]
            texts.append(text[: min((stop for stop in stops if stop >= 0), default=len(text))])
        return texts

    def _judged_part(self, text: str, *, question: tuple[str, int]) -> str:
        if not self.strip_reasoning:
            self.num_holding_reasoning += holds_reasoning(text)
            return text
        reasoning, answer = without_reasoning(text)
        if reasoning is not None:
            self.reasonings[question] = reasoning
        return answer

    def num_tokens(self, request: Instance) -> int:
        """Tokens of the context that a request takes up in the engine: prompt, continuation, one to be written."""
        task, context = str(request.task_name), request.args[0]
        if request.request_type == "loglikelihood":
            continuation = request.args[1]
            pair = self._encode_pair(context, continuation) if context else ((), self.tok_encode(continuation))
            in_chat = unpack_messages(context) is not None
            self.rendered.note(task, self._context_ids(context) if in_chat else pair[0])
            return len(pair[0]) + len(pair[1]) + 1
        if request.request_type == "generate_until":
            self.rendered.note(task, self._context_ids(context))
            return len(self._context_ids(context)) + 1
        self.rendered.note(task, self.tok_encode(context))
        return 0  # a whole text is read in windows

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(sum of logprobs in nats, whether greedy decoding would write it) per (context, continuation)."""
        scored: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return scored

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Logprob of whole texts, each token predicted once, in windows of the model's length."""
        owners: list[int] = []
        windows: list[tuple[tuple[str, str], list[int], list[int]]] = []
        for owner, request in enumerate(requests):
            token_windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_model_len - 2,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, token_windows):
                owners.append(owner)
                windows.append((("", ""), context, continuation))
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += logprob
        return totals

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """In a chat the continuation is the beginning of the assistant's turn: ids of its content, no termination."""
        if unpack_messages(context) is None:
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return pair
        return list(self._context_ids(context)), list(self._chat.content_ids(continuation))

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        # Engines score by a prefill that also samples a token, which needs its place.
        self._check_fitting([len(context) + len(continuation) + 1 for _, context, continuation in requests])
        asked = [
            LoglikelihoodRequest(tuple(context), tuple(continuation))
            for _, context, continuation in requests
            if continuation
        ]
        call = self._engine.loglikelihood
        scored = iter(self._with_progress(call, asked, label="score options", at_once=SCORED_AT_ONCE))
        results = []
        for _, _, continuation in requests:
            if continuation:
                result = next(scored)
                results.append((result.total, result.is_greedy))
            else:  # an empty text is certain
                results.append((0.0, True))
        return results

    def effective_kwargs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """lm-eval's generation arguments as they hold here: greedy unless `do_sample`, lengths capped."""
        until = kwargs.get("until") or []
        sampled = bool(kwargs.get("do_sample", False))
        return {
            "until": [until] if isinstance(until, str) else list(until),
            "max_gen_toks": min(int(kwargs.get("max_gen_toks", DEFAULT_MAX_GEN_TOKS)), self._max_gen_tokens),
            "do_sample": sampled,
            "temperature": float(kwargs.get("temperature", 1.0)) if sampled else 0.0,
            "top_p": float(kwargs.get("top_p", 1.0)) if sampled else 1.0,
        }

    def _generate_request(self, prompt_ids: tuple[int, ...], *, kwargs: dict[str, Any], seed: int) -> GenerateRequest:
        held = self.effective_kwargs(kwargs)
        return GenerateRequest(
            prompt_ids=prompt_ids,
            max_tokens=min(held["max_gen_toks"], self.max_model_len - len(prompt_ids)),
            temperature=held["temperature"],
            top_p=held["top_p"],
            seed=seed if held["do_sample"] else None,
            stop_token_ids=self._chat.stop_token_ids,
            stop_strings=() if self.strip_reasoning else tuple(held["until"]),
        )

    def _encode_context(self, context: str) -> tuple[int, ...]:
        messages = unpack_messages(context)
        if messages is None:
            return tuple(self.tok_encode(context)) or (self.prefix_token_id,)
        if messages[-1].role == "assistant":
            return (*self._chat.prompt_ids(messages[:-1]), *self._chat.content_ids(messages[-1].content))
        return self._chat.prompt_ids(messages)

    def _with_progress(
        self,
        call: Callable[[Sequence[Request]], list[Result]],
        asked: Sequence[Request],
        *,
        label: str,
        at_once: int | None = None,
    ) -> list[Result]:
        if not asked:
            return []
        self._engine.load_weights(self._checkpoint)
        results: list[Result] = []
        with self._progress.task(f"evaluate: {label}", total=len(asked), unit="prompts") as advance:
            size = at_once or len(asked)
            for start in range(0, len(asked), size):
                part = call(asked[start : start + size])
                results += part
                advance(len(part))
        return results

    def _check_fitting(self, lengths: Sequence[int], *, requests: Sequence[Instance] = ()) -> None:
        num_long = sum(length > self.max_model_len for length in lengths)
        if num_long:
            names = sorted({str(request.task_name) for request in requests})
            where = f"evaluate ({', '.join(names)})" if names else "evaluate"
            raise DataError(
                f"{where}: {num_long} of {len(lengths)} requests do not fit the context of {self.max_model_len} tokens "
                f"(the longest needs {max(lengths)}). Raise engine.max_model_len if the model allows it, or ask fewer "
                "shots."
            )
