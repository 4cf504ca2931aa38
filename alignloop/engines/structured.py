"""The served checkpoint's tokenizer inside a vLLM that started without one: stop strings and JSON schemas need it.

The engine starts without a tokenizer, so a checkpoint that has none can be served and a later checkpoint's tokenizer
is never confused with the first one's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.engines.base import GenerateRequest
from alignloop.errors import EngineError

if TYPE_CHECKING:
    from vllm import LLM

BACKEND = "xgrammar"
"""One for all requests: vLLM picks by the schema otherwise, and then compiles every schema with the first one's."""


class ServedTokenizer:
    """The tokenizer of one checkpoint, read when first asked for."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._tokenizer: Any = None

    @contextmanager
    def lent_to(self, llm: LLM, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, ...]]:
        """Give vLLM the tokenizer for one call where a request needs it, and take it away again.

        Yields:
            Tokens that may end a completion held to a schema, beside those of the request.

        Raises:
            EngineError: it is needed and the checkpoint has none, or vLLM cannot hold a completion to a schema.
        """
        from vllm.exceptions import VLLMValidationError

        by_text = any(request.stop_strings for request in requests)
        by_schema = any(request.json_schema is not None for request in requests)
        if not (by_text or by_schema):
            yield ()
            return
        tokenizer = self._read()
        engine = llm.llm_engine
        manager = _manager(llm)
        try:
            engine.output_processor.tokenizer = tokenizer
            if by_schema:
                engine.renderer.tokenizer = manager.tokenizer = tokenizer
                # Without a tokenizer at its start vLLM has no threads to compile in; it compiles a schema once.
                manager._use_async_grammar_compilation = False
            yield () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        except VLLMValidationError as error:
            raise EngineError(f"generate: vLLM cannot hold completions to a JSON schema: {error}") from error
        finally:
            engine.output_processor.tokenizer = engine.renderer.tokenizer = None

    def _read(self) -> Any:
        if self._tokenizer is None:
            from vllm.tokenizers import get_tokenizer

            try:
                self._tokenizer = get_tokenizer(str(self._checkpoint))
            except (OSError, ValueError) as error:
                raise EngineError(
                    f"{self._checkpoint}: its tokenizer cannot be read, which stop strings and JSON schemas need "
                    f"({error}); save the tokenizer beside the weights"
                ) from error
        return self._tokenizer


def forget_grammars(llm: LLM) -> None:
    """Grammars compiled for one checkpoint's tokens are not another's."""
    manager = _manager(llm)
    if manager.backend is not None:
        manager.backend.destroy()
        manager.backend = None


def _manager(llm: LLM) -> Any:
    """vLLM's structured output manager, which lives in this process like the whole engine core."""
    return llm.llm_engine.engine_core.engine_core.structured_output_manager
