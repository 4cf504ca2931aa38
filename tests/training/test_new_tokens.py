"""Tokens a base was never trained on: which they are; their rows train beside an adapter, and no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

from alignloop import quickstart
from alignloop.chat.format import ChatFormat
from alignloop.chat.templates import give_template, load_template
from alignloop.config.recipe import Recipe
from alignloop.config.training import LoraConfig
from alignloop.engines.checkpoint import stored_tensors
from alignloop.errors import ModelError
from alignloop.objectives.output_head import TileSize, token_logprobs
from alignloop.packing.batch import collate
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import pack
from alignloop.stages.base import look_at_base
from alignloop.stages.facts import Findings
from alignloop.training.adapters import add_adapter, merged_model, trained_in_words, trained_state
from alignloop.training.checkpoints import save_checkpoint
from alignloop.training.model import TokenLogprobs, check_head, load_policy
from alignloop.training.new_tokens import NewToken, OwnTokens, find_new_tokens, load_new_tokens, save_new_tokens
from alignloop.training.start import prepare_base

MakeGroups = Callable[..., list[PromptGroup]]
BUNDLED_BASE = Path(quickstart.__file__).parent / "base"
LORA = {"rank": 4, "alpha": 8.0}
IDS = torch.arange(0, 20)[None]
NEW = (5, 40, 45)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def start(request: pytest.FixtureRequest, policy: Path, tmp_path: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(policy)
    if not request.param:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0).clone())
    path = tmp_path / "start"
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(policy).save_pretrained(path)
    save_new_tokens(path, [NewToken(id=index, token=f"w{index}", state="added") for index in NEW])
    return path


def moved(model: Any, *, rows_alone: bool = False) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trained_state(model).items():
        if "new_rows" in name or not rows_alone:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


# ---- the arithmetic ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 10_000])
def test_rows_beside_a_head_are_the_head_with_those_rows(kept: int) -> None:
    """Values and gradients, over tiles of 3 words and 4 tokens, with a bias and capped logits."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 6, generator=generator, requires_grad=True) for n in (9, 11))
    bias = torch.randn(11, generator=generator, requires_grad=True)
    rows = torch.randn(2, 6, generator=generator, requires_grad=True)
    target_ids = torch.tensor([0, 4, 10, 4, 1, 2, 3, 9, 10])
    whole = weight.index_copy(0, torch.tensor([4, 10]), rows)
    logits = 2.0 * torch.tanh(1.5 * (hidden @ whole.T + bias) / 2.0)
    expected = logits.log_softmax(-1).gather(1, target_ids[:, None])[:, 0]
    ours = token_logprobs(
        hidden,
        target_ids=target_ids,
        head_weight=weight,
        head_bias=bias,
        head_rows=(rows, (4, 10)),
        scale=1.5,
        softcap=2.0,
        tile=TileSize(tokens=4, vocabulary=3, kept_logits=kept),
    )
    torch.testing.assert_close(ours, expected)
    inputs, factors = (hidden, weight, bias, rows), torch.arange(9.0) - 3.0
    for own, theirs in zip(
        torch.autograd.grad(ours @ factors, inputs), torch.autograd.grad(expected @ factors, inputs), strict=True
    ):
        torch.testing.assert_close(own, theirs)


def test_rows_get_the_gradient_of_the_whole_matrices(start: Path, make_groups: MakeGroups) -> None:
    batch = collate(pack(make_groups(3, completions=2), row_tokens=64, mode="packed"), pad_token_id=0, mode="packed")
    model = add_adapter(load_policy(start), LoraConfig(**LORA), seed=0, new_token_ids=NEW)
    TokenLogprobs(model)(batch).sum().backward()
    whole: Any = load_policy(start)
    TokenLogprobs(whole)(batch).sum().backward()
    torch.testing.assert_close(model.model.embed_tokens.new_rows.grad, whole.model.embed_tokens.weight.grad[list(NEW)])
    torch.testing.assert_close(model.lm_head.new_rows.grad, whole.lm_head.weight.grad[list(NEW)])
    assert model.model.embed_tokens.weight.grad is None


def test_a_model_with_moved_rows_is_the_model_with_those_rows_in_its_matrices(start: Path, tmp_path: Path) -> None:
    model = add_adapter(load_policy(start), LoraConfig(**LORA), seed=0, new_token_ids=NEW)
    before = load_policy(start)(input_ids=IDS).logits
    torch.testing.assert_close(model(input_ids=IDS).logits, before, rtol=0, atol=1e-6)
    assert trained_in_words(model).endswith(", among them the rows of 3 new tokens")
    num_matrices = 1 if model.config.tie_word_embeddings else 2
    assert sum("new_rows" in name for name in trained_state(model)) == num_matrices
    moved(model)
    check_head(TokenLogprobs(model))
    logits = model(input_ids=IDS).logits
    save_checkpoint(model, tmp_path / "out", companions=start)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(merged(input_ids=IDS).logits, logits, rtol=0, atol=1e-5)
    assert [token.id for token in load_new_tokens(tmp_path / "out")] == list(NEW)
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(start), tmp_path / "out" / "adapter")
    torch.testing.assert_close(by_peft(input_ids=IDS).logits, logits, rtol=0, atol=1e-5)
    # As the base of another run: PEFT's rows have their place in it.
    prepared = prepare_base(str(tmp_path / "out" / "adapter"), chat_template=None, out_dir=tmp_path / "base")
    theirs = AutoModelForCausalLM.from_pretrained(prepared.path)
    torch.testing.assert_close(theirs(input_ids=IDS).logits, logits, rtol=0, atol=1e-5)


def test_an_adapter_with_tokens_that_its_base_lacks_is_refused(start: Path, tmp_path: Path) -> None:
    model = add_adapter(load_policy(start), LoraConfig(**LORA), seed=0, new_token_ids=NEW)
    save_checkpoint(model, tmp_path / "out", companions=start)
    path = tmp_path / "out" / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    config["trainable_token_indices"]["embed_tokens"] = [5, 40, 64]
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"it trained token 64, and the base's .* has 64 rows"):
        prepare_base(str(path.parent), chat_template=None, out_dir=tmp_path / "base")


def test_rows_held_in_bfloat16_keep_what_that_loses(start: Path) -> None:
    model = add_adapter(load_policy(start, dtype=torch.bfloat16), LoraConfig(**LORA), seed=0, new_token_ids=NEW)
    assert {parameter.dtype for parameter in trained_state(model).values()} == {torch.float32}
    old = load_policy(start).state_dict()
    assert all(torch.equal(tensor, old[name]) for name, tensor in merged_model(model, start=start).state_dict().items())
    model.model.embed_tokens.new_rows.data += 1.0
    torch.testing.assert_close(
        merged_model(model, start=start).get_parameter(EMBEDDING)[list(NEW)], old[EMBEDDING][list(NEW)] + 1.0
    )


def test_an_embedding_that_scales_what_it_looks_up(tmp_path: Path) -> None:
    """Gemma 3 multiplies within the embedding, and knows no pad id among a few rows."""
    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, pad_token_id=50, sliding_window=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    model = add_adapter(load_policy(tmp_path), LoraConfig(**LORA), seed=0, new_token_ids=NEW)
    moved(model, rows_alone=True)
    expected: Any = load_policy(tmp_path)
    with torch.no_grad():
        expected.get_input_embeddings().weight[list(NEW)] = model.get_input_embeddings().new_rows
    assert (
        float((load_policy(tmp_path)(input_ids=IDS).logits - expected(input_ids=IDS).logits).detach().abs().max())
        > 0.01
    )
    torch.testing.assert_close(model(input_ids=IDS).logits, expected(input_ids=IDS).logits)


# ---- whole trainings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["reward", "sft", "dpo"])
def test_rows_of_new_tokens_train_and_no_others(run: Any, objective: Any, start: Path, tmp_path: Path) -> None:
    result = run(objective, tmp_path / "out", checkpoint=start, learning_rate=1e-2, lora=LoraConfig(**LORA))
    old, new = load_file(start / "model.safetensors"), load_file(result.checkpoints[-1] / "model.safetensors")
    for name in {EMBEDDING, HEAD} & new.keys():
        difference = (new[name] - old[name]).abs().amax(1)
        assert set(difference.nonzero().flatten().tolist()) == set(NEW), name
        assert float(difference[5]) > 1e-4


# ---- which tokens those are -------------------------------------------------------------------------------------

MARKS = ("<|im_start|>", "<|im_end|>", "<|spare|>")


def base_with_marks(policy: Path, path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A base of 67 tokens, the last three special, whose rows `change` sets; its output head is of its own."""
    model: Any = AutoModelForCausalLM.from_pretrained(policy)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(mark, special=True) for mark in MARKS]})
    tokenizer.chat_template = None
    with torch.random.fork_rng():
        model.resize_token_embeddings(67, mean_resizing=False)
        model.config.tie_word_embeddings = False
        tensors = {EMBEDDING: torch.randn(67, 32), HEAD: torch.randn(67, 32)}
    change(tensors)
    model.lm_head.weight = torch.nn.Parameter(tensors[HEAD])
    model.model.embed_tokens.weight = torch.nn.Parameter(tensors[EMBEDDING])
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def short_row(tensors: dict[str, torch.Tensor]) -> None:
    tensors[EMBEDDING][64] *= 0.1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors: None, {}),
        (lambda tensors: tensors[EMBEDDING][64:].fill_(0.3), {64: "empty", 65: "empty"}),
        # As transformers adds rows: the mean and next to nothing about it.
        (
            lambda tensors: tensors[EMBEDDING][64:].copy_(0.3 + 1e-4 * torch.arange(3)[:, None]),
            {64: "empty", 65: "empty"},
        ),
        (lambda tensors: tensors[HEAD][65].fill_(1e-23), {65: "empty"}),
        (short_row, {64: "weak"}),
    ],
    ids=["trained", "one value", "nearly one value", "nothing in the head", "a short row"],
)
def test_tokens_whose_rows_were_never_trained_are_found(
    change: Any, expected: dict[int, str], policy: Path, tmp_path: Path
) -> None:
    base = base_with_marks(policy, tmp_path / "base", change)
    prepared = prepare_base(str(base), chat_template="chatml", out_dir=tmp_path / "out")
    assert {token.id: token.state for token in load_new_tokens(prepared.path)} == expected
    old, new = load_file(base / "model.safetensors"), load_file(prepared.path / "model.safetensors")
    for name in (EMBEDDING, HEAD):
        changed = (old[name] != new[name]).any(1).nonzero().flatten().tolist()
        assert changed == [index for index, state in expected.items() if state == "empty"]
        drawn = new[name][changed]
        assert len(drawn.unique(dim=0)) == len(drawn)


def test_llama_3_is_found_as_it_is_published(tmp_path: Path) -> None:
    """All tokens are there, and the rows of the header and end-of-turn tokens are zero, as those of reserved ones."""
    base = Path(shutil.copytree(BUNDLED_BASE, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    tensors = load_file(base / "model.safetensors")
    marks = [2, 3, 4]  # <|start_header_id|>, <|end_header_id|>, <|eot_id|>
    tensors[EMBEDDING][marks] = 0.0
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    prepared = prepare_base(str(base), chat_template="llama3", out_dir=tmp_path / "out")
    found = load_new_tokens(prepared.path)
    assert [(token.id, token.state) for token in found] == [(index, "empty") for index in marks]
    rows = load_file(prepared.path / "model.safetensors")[EMBEDDING]
    assert len(rows[marks].unique(dim=0)) == 3
    assert torch.equal(rows[5:], tensors[EMBEDDING][5:])
    # As it is bundled, trained on its template, nothing is new to it.
    trained = prepare_base(str(BUNDLED_BASE), chat_template=None, out_dir=tmp_path / "trained")
    assert load_new_tokens(trained.path) == ()


def test_the_bases_own_end_counts_as_trained_however_short_its_row(policy: Path, tmp_path: Path) -> None:
    base = base_with_marks(policy, tmp_path / "base", short_row)
    tokenizer = AutoTokenizer.from_pretrained(base)
    give_template(tokenizer, load_template("chatml"))
    chat, tensors = ChatFormat(tokenizer), stored_tensors(base)
    found = find_new_tokens(tokenizer, chat, own=OwnTokens(67, bos=None, eos=None), tensors=tensors)
    assert [(token.token, token.state) for token in found] == [("<|im_start|>", "weak")]
    assert find_new_tokens(tokenizer, chat, own=OwnTokens(67, bos=64, eos=None), tensors=tensors) == ()


def test_a_base_that_was_prepared_and_trained_is_none_of_a_new_run(start: Path, tmp_path: Path) -> None:
    """What another run called new has been trained since."""
    prepared = prepare_base(str(start), chat_template=None, out_dir=tmp_path / "out")
    assert load_new_tokens(prepared.path) == ()


def test_the_plan_names_new_tokens_as_the_base_stage_finds_them(policy: Path, tmp_path: Path) -> None:
    def notes(base: Path, **knobs: Any) -> list[str]:
        findings = Findings()
        look_at_base(Recipe(preferences=("quickstart",), base=str(base), **knobs), findings=findings)
        assert findings.problems == []
        return [note for note in findings.notes if "new to it" in note]

    base = base_with_marks(policy, tmp_path / "marked", lambda tensors: tensors[EMBEDDING][64:].fill_(0.3))
    lora: dict[str, Any] = {"sft": {"lora": {}}, "dpo": {"lora": {}}}
    (note,) = notes(base, chat_template="chatml", **lora)
    assert note == (
        "base: 2 tokens are new to it: <|im_start|>, <|im_end|> (never trained; their rows are drawn anew, near the "
        "mean of the others); they train beside the adapters of sft, dpo"
    )
    bare = base_with_marks(policy, tmp_path / "bare", lambda tensors: None)
    (note,) = notes(bare, chat_template="llama3")
    assert note.startswith("base: 5 tokens are new to it: <|begin_of_text|>, <|end_of_text|>, ")
    assert note.endswith("<|eot_id|> (added; their rows are drawn, near the mean of the others)")
    assert notes(bare, chat_template="chatml") == []
