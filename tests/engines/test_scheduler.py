"""Admission by the longest completion, in a KV cache so small that vLLM's own rule preempts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from engine_case import run_vllm

from alignloop.config.engine import EngineConfig
from alignloop.engines.base import GenerateRequest
from alignloop.engines.process import EngineProcess
from alignloop.errors import UserError

pytest.importorskip("vllm")

CONFIG = EngineConfig(dtype="float32", max_model_len=256, max_num_seqs=64, kv_cache_gb=0.0017)
"""27 blocks of 32 tokens: 4 layers, 2 heads of 32 numbers, keys and values, 4 bytes a number are 64 KiB a block."""
SCRIPT = """
import json, random, sys
from pathlib import Path
from vllm.v1.core.sched.scheduler import Scheduler
from alignloop.config.engine import EngineConfig
from alignloop.engines import vllm_engine
from alignloop.engines.base import GenerateRequest

config, checkpoint, kind = EngineConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if kind == "plain":
    arguments = vllm_engine.llm_arguments
    vllm_engine.llm_arguments = lambda *given: {**arguments(*given), "scheduler_cls": None}
seen = {"preemptions": 0, "peak": 0}
preempt, schedule = Scheduler._preempt_request, Scheduler.schedule

def counted_preempt(self, *args, **options):
    seen["preemptions"] += 1
    return preempt(self, *args, **options)

def counted_schedule(self, *args, **options):
    output = schedule(self, *args, **options)
    seen["peak"] = max(seen["peak"], len(self.running))
    return output

Scheduler._preempt_request, Scheduler.schedule = counted_preempt, counted_schedule
engine = vllm_engine.VllmEngine(config)
engine.load_weights(checkpoint)
draw = random.Random(0)
prompts = [tuple(draw.randrange(3, 512) for _ in range(40)) for _ in range(10)]
lengths = [30 + 18 * i for i in range(10)]
asked = [
    GenerateRequest(ids, max_tokens=length, num_candidates=4, seed=i)
    for i, (ids, length) in enumerate(zip(prompts, lengths))
]
found = engine.generate(asked)
ids = [[completion.token_ids for completion in group] for group in found]
print(json.dumps({**seen, "ids": ids, "again": engine.generate(asked) == found}))
"""


@pytest.mark.slow
def test_nothing_is_preempted_where_vllm_alone_preempts(checkpoints: SimpleNamespace) -> None:
    arguments = CONFIG.model_dump_json(), str(checkpoints.a)
    ours, plain = (run_vllm(SCRIPT, *arguments, kind) for kind in ("reserved", "plain"))
    assert plain["preemptions"] > 0
    assert ours["preemptions"] == 0
    assert ours["ids"] == plain["ids"]
    assert ours["again"]
    # 26 blocks are free. Four candidates of 40 + 30 tokens share the prompt's one full block and take two more each:
    # 9 blocks, so two prompts and some of the third's run at once. The longest take 7 blocks each.
    assert 4 < ours["peak"] < plain["peak"]


@pytest.mark.slow
def test_a_cache_for_one_longest_sequence_is_the_least(checkpoints: SimpleNamespace, tmp_path: Path) -> None:
    """256 tokens are 8 blocks, and one block more is vLLM's own: 9 will do, 8 are refused."""
    requests = [GenerateRequest((5, 6, 7 + i), max_tokens=253, num_candidates=2, seed=i) for i in range(3)]
    for num_blocks in (8, 9):
        config = CONFIG.model_copy(update={"kv_cache_gb": num_blocks * 64 * 2**10 / 2**30})
        with EngineProcess(config, log_file=tmp_path / f"{num_blocks}.log") as engine:
            if num_blocks == 9:
                engine.load_weights(checkpoints.a)
                assert [len(group) for group in engine.generate(requests)] == [2, 2, 2]
                continue
            with pytest.raises(UserError, match=r"engine\.kv_cache_gb .* engine\.max_model_len \(256\)"):
                engine.load_weights(checkpoints.a)
            assert engine.pid is None
