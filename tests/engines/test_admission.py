from __future__ import annotations

from typing import Any

import pytest

from alignloop.engines.admission import check_generate, check_loglikelihood
from alignloop.engines.base import GenerateRequest, LoglikelihoodRequest
from alignloop.errors import EngineError

LIMITS: dict[str, Any] = {"max_model_len": 10, "vocab_size": 50}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (GenerateRequest(prompt_ids=(1,) * 6, max_tokens=5), "6 tokens .* up to 5 are 11 tokens"),
        (GenerateRequest(prompt_ids=(), max_tokens=1), "the prompt is empty"),
        (GenerateRequest(prompt_ids=(1, 50), max_tokens=1), "token id 50, outside the model's vocabulary of 50"),
        (GenerateRequest(prompt_ids=(1, -1), max_tokens=1), "token id -1"),
        (GenerateRequest(prompt_ids=(1,), max_tokens=0), r"max_tokens \(0\)"),
        (GenerateRequest(prompt_ids=(1,), max_tokens=1, num_candidates=0), r"num_candidates \(0\)"),
        (GenerateRequest(prompt_ids=(1,), max_tokens=1, temperature=-0.1), r"temperature \(-0.1\)"),
        (GenerateRequest(prompt_ids=(1,), max_tokens=1, top_p=0.0), r"top_p \(0.0\)"),
        (GenerateRequest(prompt_ids=(1,), max_tokens=1, json_schema="{"), "its json_schema is not JSON"),
        (GenerateRequest(prompt_ids=(1,), max_tokens=1, json_schema="[]"), "its json_schema is a JSON list"),
    ],
)
def test_refused(request_: GenerateRequest, message: str) -> None:
    fits = GenerateRequest(prompt_ids=(49,) * 5, max_tokens=5)
    check_generate([fits], **LIMITS)
    with pytest.raises(EngineError, match=f"generate request 1.*{message}"):
        check_generate([fits, request_], **LIMITS)


def test_loglikelihood_leaves_one_position_free() -> None:
    check_loglikelihood([LoglikelihoodRequest((1,) * 5, (2,) * 4)], **LIMITS)
    with pytest.raises(EngineError, match=r"context of 5 tokens and a continuation of 5 are 10 tokens.*\(9\)"):
        check_loglikelihood([LoglikelihoodRequest((1,) * 5, (2,) * 5)], **LIMITS)
    with pytest.raises(EngineError, match="the continuation is empty"):
        check_loglikelihood([LoglikelihoodRequest((1,), ())], **LIMITS)
