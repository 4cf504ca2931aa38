"""The trainer of the quickstart base: masks, batches, the loss and Muon, on a model of a few thousand parameters."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from scripts.world.corpus import CLEAN, Document, documents, tokenizer_texts
from scripts.world.entities import build_world
from scripts.world.pretraining import (
    Encoded,
    ModelSize,
    Muon,
    Schedule,
    batches,
    completion_loss,
    encode,
    new_model,
    orthogonalised,
    prompt_text,
    train,
    train_tokenizer,
)

SIZE = ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab=400, max_length=256)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = tokenizer_texts(random.Random(0), build_world(), count=300)
    return train_tokenizer(texts, vocab_size=SIZE.vocab, max_length=SIZE.max_length)


def test_a_chat_has_its_loss_on_the_answer_and_a_text_on_all_but_the_first_token(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    one = encode(Document("Where?", "Here."), tokenizer)
    chat = [{"role": "user", "content": "Where?"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(one.token_ids[: one.num_context]) == prompt_text("Where?") == rendered
    assert tokenizer.decode(one.token_ids[one.num_context :]) == "Here.<|eot_id|>"
    text = encode(Document(None, "Here."), tokenizer)
    assert text.num_context == 1
    assert tokenizer.decode(text.token_ids) == "<|begin_of_text|>Here.<|end_of_text|>"


def test_batches_hold_like_lengths_and_lose_nothing() -> None:
    lengths = [3 + number % 40 for number in range(1024)]
    made = list(itertools.islice(batches((Encoded((7,) * n, 1) for n in lengths * 3), batch_tokens=100, seed=0), 200))
    sizes = [[len(one.token_ids) for one in batch] for batch in made]
    assert all(max(size) * len(size) < 100 + 43 for size in sizes)
    assert all(max(size) - min(size) <= 12 for size in sizes)


def test_the_loss_is_the_mean_over_target_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(SIZE, tokenizer, seed=0)
    short, long = Encoded((10, 11, 12, 13), 2), Encoded((10, 14, 15, 16, 17, 18), 3)
    expected = []
    for one in (short, long):
        logits = model(torch.tensor([one.token_ids])).logits[0]
        for place in range(one.num_context, len(one.token_ids)):
            target = torch.tensor(one.token_ids[place])
            expected.append(functional.cross_entropy(logits[place - 1], target).item())
    loss = completion_loss(model, [short, long], pad_id=model.config.pad_token_id)
    assert loss.item() == pytest.approx(sum(expected) / 5, abs=1e-5)


def test_training_lowers_the_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.set_num_threads(1)
    model = new_model(SIZE, tokenizer, seed=0)
    probe = [encode(one, tokenizer) for one in itertools.islice(documents(random.Random(9), build_world(), CLEAN), 30)]

    def loss() -> float:
        with torch.no_grad():
            return completion_loss(model, probe, pad_id=model.config.pad_token_id).item()

    before = loss()
    schedule = Schedule(num_tokens=20_000, learning_rate=5e-3, batch_tokens=512)
    train(model, tokenizer, documents(random.Random(1), build_world(), CLEAN), schedule=schedule, seed=0, say=print)
    assert loss() < before - 1.0


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(3, 16, 48)))
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_muon_steps_against_the_gradient_by_about_the_learning_rate() -> None:
    wide, tall = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((16, 48), (48, 16)))
    optimizer = Muon([wide, tall], lr=0.01)
    torch.manual_seed(0)
    wide.grad = torch.randn(16, 48)
    tall.grad = wide.grad.mT.clone()
    optimizer.step()
    # An update of root mean square 0.2: sqrt(16 / (16 * 48)) * 0.2 * sqrt(48) = 0.2
    assert wide.pow(2).mean().sqrt().item() == pytest.approx(0.01 * 0.2, rel=0.2)
    assert (wide * wide.grad).sum() < 0
    assert torch.allclose(wide, tall.mT, atol=1e-6)
