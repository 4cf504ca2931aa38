"""Nothing is preempted: vLLM's scheduler with room reserved for every completion's longest form (section 4.2.2).

vLLM admits a request where its *prompt* fits, and takes a running request's blocks back when completions outgrow the
cache: what it computed is computed again. Here a request waits until its prompt and its longest completion fit beside
what the running ones may still grow into. Blocks that candidates share with their prompt are counted once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

if TYPE_CHECKING:
    from vllm.v1.request import Request


def reserving_scheduler(**arguments: Any) -> Scheduler:
    """What vLLM's `scheduler_cls` names: the kind of scheduler vLLM would have taken, with reservations."""
    overlapped = arguments["vllm_config"].scheduler_config.async_scheduling
    return (ReservingAsyncScheduler if overlapped else ReservingScheduler)(**arguments)


class Reservations:
    """Mixed into a scheduler of vLLM: gates its allocation for requests that are not running yet.

    `_spare` is at most the number of free blocks beyond what running requests may still take. A running request that
    grows takes a block and needs one less, which leaves it as it was; an admission lowers it by what it reserves; when
    a request ends it is too low, and counted anew where that matters. One request alone always fits: vLLM does not
    start with a cache that holds no sequence of the longest length.
    """

    kv_cache_manager: Any
    running: list[Request]

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._spare = 0
        self._too_low = True
        self._allocate = self.kv_cache_manager.allocate_slots
        self.kv_cache_manager.allocate_slots = self._allocate_reserved

    def _allocate_reserved(self, request: Request, num_new_tokens: int, *args: Any, **options: Any) -> Any:
        """vLLM's `allocate_slots`; None, which makes a request wait, also where its longest form does not fit."""
        if request.status == RequestStatus.RUNNING:
            return self._allocate(request, num_new_tokens, *args, **options)
        found = options.get("new_computed_blocks")
        blocks_found = self.kv_cache_manager.empty_kv_cache_blocks if found is None else found
        needed = self._num_blocks(
            request,
            # Blocks of its prompt that the prefix cache has; those that another request holds are not counted.
            new_computed_blocks=blocks_found.blocks,
            num_computed=request.num_computed_tokens + options.get("num_new_computed_tokens", 0),
            # As many as it holds at once, which is fewer where a window slides.
            apply_admission_cap=True,
            prefill_end=max(request.num_prompt_tokens, request.num_tokens - 1),
        )
        if needed > self._spare and self._too_low:
            self._spare, self._too_low = self._count_spare(), False
        if needed > self._spare:
            return None
        blocks = self._allocate(request, num_new_tokens, *args, **options)
        if blocks is not None:
            self._spare -= needed
        return blocks

    def _free_request_blocks(self, request: Request) -> None:
        super()._free_request_blocks(request)  # type: ignore[misc]
        self._too_low = True

    def _count_spare(self) -> int:
        none = self.kv_cache_manager.empty_kv_cache_blocks.blocks
        options = {"new_computed_blocks": none, "apply_admission_cap": False, "prefill_end": 0}
        growth = [self._num_blocks(one, num_computed=int(one.num_computed_tokens), **options) for one in self.running]
        return int(self.kv_cache_manager.block_pool.get_num_free_blocks()) - sum(growth)

    def _num_blocks(self, request: Request, *, num_computed: int, **options: Any) -> int:
        """Free blocks a request still takes until it has its longest form, by vLLM's count for the architecture."""
        # The last token sampled is never fed back.
        num_tokens = int(request.num_prompt_tokens + request.max_tokens - 1)
        return int(
            self.kv_cache_manager.coordinator.get_num_blocks_to_allocate(
                request_id=request.request_id,
                num_tokens=num_tokens,
                num_tokens_main_model=num_tokens,
                num_encoder_tokens=0,
                total_computed_tokens=num_computed,
                num_local_computed_tokens=num_computed,
                **options,
            )
        )


class ReservingScheduler(Reservations, Scheduler):
    """For engines that schedule a step after the last one's tokens are known (CPU, pipelines)."""


class ReservingAsyncScheduler(Reservations, AsyncScheduler):
    """For engines that schedule a step while the last one runs (GPU)."""
