"""The tiled output head against a full softmax: values, gradients, precision, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alignloop.objectives.output_head import TileSize, token_logprobs

TILES = {
    "whole": TileSize(tokens=100, vocabulary=100, kept_logits=10**6),
    "whole, computed twice": TileSize(tokens=100, vocabulary=100, kept_logits=0),
    "blocks with a rest": TileSize(tokens=4, vocabulary=3, kept_logits=10**6),
    "some kept": TileSize(tokens=4, vocabulary=3, kept_logits=30),
    "one by one": TileSize(tokens=1, vocabulary=1, kept_logits=0),
}


def full_softmax(
    hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias).float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1)[torch.arange(len(targets)), targets]


def small_case() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """hidden [9, 6], weight [10, 6], bias [10], targets [9], and what the nine logprobs are weighted with."""
    draw = torch.Generator().manual_seed(2)
    hidden = torch.randn(9, 6, generator=draw, requires_grad=True)
    weight = torch.randn(10, 6, generator=draw, requires_grad=True)
    bias = torch.randn(10, generator=draw, requires_grad=True)
    return hidden, weight, bias, torch.randint(0, 10, (9,), generator=draw), torch.linspace(-1, 1, 9)


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_tiles_give_the_logprobs_and_gradients_of_a_full_softmax(
    tile: TileSize, scale: float, softcap: float | None
) -> None:
    hidden, weight, bias, targets, upstream = small_case()
    for with_bias in (True, False):
        inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
        head_bias = bias if with_bias else None
        theirs = full_softmax(hidden, targets, weight, head_bias, scale, softcap)
        ours = token_logprobs(
            hidden,
            target_ids=targets,
            head_weight=weight,
            head_bias=head_bias,
            scale=scale,
            softcap=softcap,
            tile=tile,
        )
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
        expected = torch.autograd.grad((theirs * upstream).sum(), inputs)
        torch.testing.assert_close(torch.autograd.grad((ours * upstream).sum(), inputs), expected, atol=1e-6, rtol=1e-5)


def test_two_words_by_hand() -> None:
    # One token, D = 1, h = 2, W = (0, 1): logits 0 and 2, softmax of word 1 is p = e^2 / (1 + e^2) = 0.880797.
    hidden = torch.tensor([[2.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [1.0]], requires_grad=True)
    logprob = token_logprobs(hidden, target_ids=torch.tensor([1]), head_weight=weight)
    assert logprob.item() == pytest.approx(-0.126928, abs=1e-6)  # log p
    logprob.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad.item() == pytest.approx(0.119203, abs=1e-6)  # (1 - p) * 1 - (1 - p) * 0
    assert weight.grad.flatten().tolist() == pytest.approx([-0.238406, 0.238406], abs=1e-6)  # -+ (1 - p) * h


def test_default_tiles_are_as_good_as_float64() -> None:
    draw = torch.Generator().manual_seed(4)
    hidden, weight = torch.randn(600, 32, generator=draw), torch.randn(5000, 32, generator=draw)
    targets = torch.randint(0, 5000, (600,), generator=draw)
    exact = (hidden.double() @ weight.double().T).log_softmax(-1)[torch.arange(600), targets]
    ours = token_logprobs(hidden, target_ids=targets, head_weight=weight)
    plain = full_softmax(hidden, targets, weight, None, 1.0, None)
    assert float((ours - exact).abs().max()) <= 2 * float((plain - exact).abs().max())


def test_large_logits_do_not_overflow() -> None:
    weight = torch.tensor([[1e4], [-1e4], [1e4], [0.0]])
    ones, targets = torch.ones(2, 1), torch.tensor([0, 1])
    tile = TileSize(tokens=1, vocabulary=1, kept_logits=0)
    ours = token_logprobs(ones, target_ids=targets, head_weight=weight, tile=tile)
    assert ours.tolist() == pytest.approx([-0.693147, -2e4 - 0.693147])


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    hidden, weight, _, targets, upstream = small_case()
    (weight if frozen == "weight" else hidden).requires_grad_(False)
    free = hidden if frozen == "weight" else weight
    expected = torch.autograd.grad((full_softmax(hidden, targets, weight, None, 1.0, None) * upstream).sum(), free)
    (token_logprobs(hidden, target_ids=targets, head_weight=weight) * upstream).sum().backward()
    assert free.grad is not None
    torch.testing.assert_close(free.grad, expected[0], atol=1e-6, rtol=1e-5)
    assert (weight if frozen == "weight" else hidden).grad is None


def test_a_tied_embedding_sums_both_gradients() -> None:
    _, weight, _, targets, upstream = small_case()
    ids = torch.arange(9)

    def gradient(head: str) -> Tensor:
        hidden = torch.tanh(weight[ids])
        if head == "ours":
            logprobs = token_logprobs(hidden, target_ids=targets, head_weight=weight)
        else:
            logprobs = full_softmax(hidden, targets, weight, None, 1.0, None)
        return torch.autograd.grad((logprobs * upstream).sum(), weight)[0]

    torch.testing.assert_close(gradient("ours"), gradient("plain"), atol=1e-6, rtol=1e-5)


def test_backward_twice_and_under_checkpointing() -> None:
    hidden, weight, _, targets, upstream = small_case()
    total = (token_logprobs(hidden, target_ids=targets, head_weight=weight) * upstream).sum()
    first = torch.autograd.grad(total, (hidden, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(total, (hidden, weight)), first, atol=0, rtol=0)
    again = checkpoint(token_logprobs, hidden, target_ids=targets, head_weight=weight, use_reentrant=False)
    checkpointed = torch.autograd.grad((again * upstream).sum(), (hidden, weight))
    torch.testing.assert_close(checkpointed, first, atol=0, rtol=0)


def test_a_target_outside_the_vocabulary_gives_no_number() -> None:
    logprobs = token_logprobs(torch.ones(3, 2), target_ids=torch.tensor([-1, 1, 4]), head_weight=torch.ones(4, 2))
    assert logprobs.isnan().tolist() == [True, False, True]


def test_no_token_is_no_error() -> None:
    _, weight, _, _, _ = small_case()
    hidden = torch.zeros(0, 6, requires_grad=True)
    logprobs = token_logprobs(hidden, target_ids=torch.zeros(0, dtype=torch.int64), head_weight=weight)
    logprobs.sum().backward()
    assert logprobs.shape == (0,)
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros(10, 6))


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
@pytest.mark.parametrize("backward_within", [True, False])
def test_autocast_is_the_plain_form_under_autocast(tile: TileSize, backward_within: bool) -> None:
    # bfloat16 has 8 bits of mantissa: one rounding is up to 2^-9 = 0.2 % of a value.
    hidden, weight, bias, targets, upstream = small_case()
    exact = full_softmax(hidden, targets, weight, bias, 0.5, 3.0)
    exact_gradients = torch.autograd.grad((exact * upstream).sum(), (hidden, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        plain = full_softmax(hidden, targets, weight, bias, 0.5, 3.0)
        ours = token_logprobs(
            hidden, target_ids=targets, head_weight=weight, head_bias=bias, scale=0.5, softcap=3.0, tile=tile
        )
        total = (ours * upstream).sum()
        if backward_within:
            gradients = torch.autograd.grad(total, (hidden, weight, bias))
    if not backward_within:
        gradients = torch.autograd.grad(total, (hidden, weight, bias))
    # The logits are rounded to bfloat16 in both, and to the same values; all after that is float32.
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    assert ours.dtype == torch.float32
    for gradient, reference in zip(gradients, exact_gradients, strict=True):
        assert gradient.dtype == torch.float32
        assert float((gradient - reference).abs().max()) < 0.02 * float(reference.abs().max())


MEMORY = """
    import json, resource, sys
    import torch
    from alignloop.objectives.output_head import token_logprobs

    T, V, D = 4096, 131072, 64
    torch.set_num_threads(1)
    hidden = torch.randn(T, D, requires_grad=True)
    weight = torch.randn(V, D).mul_(0.1).requires_grad_()
    targets = torch.randint(0, V, (T,))
    warm = token_logprobs(hidden[:8], target_ids=targets[:8], head_weight=weight[:64])
    warm.sum().backward()
    hidden.grad = weight.grad = None

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    start = peak()
    logprobs = token_logprobs(hidden, target_ids=targets, head_weight=weight)
    forward = peak()
    logprobs.sum().backward()
    print(json.dumps({"forward": forward - start, "backward": peak() - start}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_full_row_logits_of_a_128k_vocabulary_are_never_in_memory() -> None:
    # [T, V] float32 would be 4096 * 131072 * 4 bytes = 2 GiB.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(MEMORY)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout.splitlines()[-1])
    # Forward: what is kept (128 MiB) and a few tiles. Backward: the gradients, [V, D] (32 MiB) being the largest, too.
    assert grown["forward"] < 192 * 2**20
    assert grown["backward"] < 256 * 2**20
