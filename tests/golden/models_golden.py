"""Base models, tokenizers, chat templates and adapters that cannot be used, as `plan` finds them unloaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from golden_case import Case, Content, base, edit, having, no_template, plan, put, without

from alignloop.config.bundled import QUICKSTART

HELLO = {"role": "user", "content": "Hello!"}
FIRST = "model.layers.0.self_attn.q_proj.weight"


def model(make: Callable[[Path], None], **recipe: Any) -> Case:
    """A plan whose base is what is made here."""
    return plan({"base": "my-base", **recipe}, **{"my-base": make})


def template(text: Content, **recipe: Any) -> Case:
    """A plan with a chat template of its own."""
    return plan({"chat_template": "mine.jinja", **recipe}, mine__jinja=text)


def adapter(*changes: Callable[[Path], object], **config: Any) -> Case:
    """A plan whose base is a LoRA adapter of the bundled base."""

    def make(path: Path) -> None:
        shutil.copytree(QUICKSTART / "base", path.parent / "whole")
        values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "../whole", "r": 2}
        put(path / "adapter_config.json", json.dumps(values))
        edit(path / "adapter_config.json", **config)
        for change in changes:
            change(path)

    return model(make)


def tensors(**changed: Any) -> Callable[[Path], None]:
    """Changes tensors of a base's weights: `name=function of the tensor`, None takes it out; `_` stands for a dot."""

    def change(path: Path) -> None:
        from safetensors.torch import load_file, save_file

        found = load_file(path / "model.safetensors")
        for name, function in changed.items():
            tensor = found.pop(name, None)
            if function is not None:
                found[name] = function(tensor).contiguous()
        save_file(found, path / "model.safetensors")

    return change


def weights_of_adapter(name: str, *shape: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        import torch
        from safetensors.torch import save_file

        save_file({f"base_model.model.{name}": torch.zeros(shape)}, path / "adapter_model.safetensors")

    return change


def extra_token(path: Path) -> None:
    """A special token of the tokenizer for which the embedding has no row."""
    tokenizer = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    more = tokenizer["added_tokens"][0] | {"id": 9000, "content": "<|beyond|>", "special": True}
    edit(path / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], more])


def cut(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def broken_number(tensor: Any) -> Any:
    tensor.view(-1)[5] = float("nan")
    return tensor


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LORA = {"max_length": 384, "lora": {"target_modules": ["q_prj"]}}

MODELS: dict[str, Case] = {
    "base-with-a-near-name": plan({"base": "my-bass"}, **{"my-base": base()}),
    "base-is-a-file": plan({"base": "good.jsonl"}),
    "base-of-a-hub-not-here": plan({"base": "no-such-org/no-such-model"}),
    "base-without-config": model(base(without("config.json"))),
    "base-with-a-broken-config": model(base(having("config.json", "{"))),
    "base-whose-config-is-a-list": model(base(having("config.json", "[]"))),
    "base-without-weights-and-tokenizer": model(base(without("model.safetensors", "tokenizer.json"))),
    "base-of-pickles": model(base(without("model.safetensors"), having("pytorch_model.bin", b"\x80"))),
    "base-of-weights-cut-short": model(base(cut)),
    "base-of-a-pointer": model(base(having("model.safetensors", POINTER))),
    "base-of-noise": model(base(having("model.safetensors", b"\xff" * 500))),
    "base-of-a-broken-header": model(base(having("model.safetensors", b"\x04" + b"\0" * 7 + b"{{{{"))),
    "base-that-lacks-a-file-of-its-index": model(
        base(having("model.safetensors.index.json", '{"weight_map": {"a": "model-00002.safetensors"}}'))
    ),
    "base-that-lacks-a-tensor-of-its-index": model(
        base(having("model.safetensors.index.json", '{"weight_map": {"lost.weight": "model.safetensors"}}'))
    ),
    "base-of-an-index-without-a-map": model(base(having("model.safetensors.index.json", "{}"))),
    "base-is-a-classifier": model(base(architectures=["LlamaForSequenceClassification"])),
    "base-of-no-kind": model(base(model_type=None)),
    "base-of-an-unknown-kind": model(base(model_type="lama")),
    "base-of-another-width": model(base(hidden_size=999)),
    "base-of-other-tokens": model(base(vocab_size=9)),
    "base-of-more-layers": model(base(num_hidden_layers=99)),
    "base-that-is-quantised": model(base(quantization_config={"quant_method": "gptq", "bits": 4})),
    "base-with-a-layer-of-another-shape": model(base(tensors(**{FIRST: lambda tensor: tensor[:8]}))),
    "base-without-a-layer": model(base(tensors(**{FIRST: None}))),
    "base-with-a-number-that-is-none": model(base(tensors(**{FIRST: broken_number}))),
    "base-with-a-broken-tokenizer": model(base(having("tokenizer.json", "{}"))),
    "base-without-a-template": model(base(no_template)),
    "base-with-a-broken-template": model(base(having("chat_template.jinja", "{% for message in messages %}{{ "))),
    "base-with-an-endless-template": model(base(having("chat_template.jinja", ENDLESS))),
    "base-with-a-template-that-cannot-stop": model(base(having("chat_template.jinja", PLAIN))),
    "base-with-fewer-positions": model(base(max_position_embeddings=128)),
    "template-of-no-name": plan({"chat_template": "llama4"}),
    "template-is-broken": template("{% if"),
    "template-is-no-text": template(b"\xff\xfe\x00"),
    "template-cannot-stop": template(PLAIN),
    "template-leaves-answers-out": template(
        "{% for m in messages if m.role == 'user' %}{{ m.content }}<|im_end|>{% endfor %}"
    ),
    "template-without-a-system-role": template(
        NO_SYSTEM, sample={"max_tokens": 64, "system_prompts": [{"text": "Be brief."}]}
    ),
    "template-takes-no-kwargs": plan({"chat_template_kwargs": {"enable_thinking": True}}),
    "template-in-place-of-the-bases-own": plan({"chat_template": "chatml", "sft": {"max_length": 384, "lora": {}}}),
    "adapter-of-no-layer": plan({"sft": LORA, "dpo": LORA}),
    "adapter-of-a-high-rank": plan({"sft": {"max_length": 384, "lora": {"rank": 999, "target_modules": ["k_proj"]}}}),
    "adapter-in-4-bits": plan(
        {
            "sft": {"max_length": 384, "lora": {"quantize": "nf4"}},
            "dpo": {"max_length": 384, "lora": {"quantize": "nf4"}},
            "training": {"num_processes": 2, "accelerate": "fsdp2"},
        }
    ),
    "base-is-an-adapter-of-no-json": adapter(having("adapter_config.json", "{")),
    "base-is-an-adapter-of-another-kind": adapter(peft_type="IA3"),
    "base-is-an-adapter-of-a-classifier": adapter(task_type="SEQ_CLS"),
    "base-is-an-adapter-of-no-base": adapter(base_model_name_or_path=None),
    "base-is-an-adapter-of-a-base-elsewhere": adapter(base_model_name_or_path="/nowhere/base"),
    "base-is-an-adapter-of-itself": adapter(base_model_name_or_path="."),
    "base-is-an-adapter-without-weights": adapter(),
    "base-is-an-adapter-of-another-base": adapter(weights_of_adapter("model.layers.0.mlp.fc.lora_A.weight", 2, 8)),
    "base-is-an-adapter-of-another-shape": adapter(
        weights_of_adapter("model.layers.0.self_attn.q_proj.lora_A.weight", 2, 7)
    ),
    "base-with-tokens-beyond-its-rows": model(base(extra_token)),
    "base-with-a-template-that-refuses-a-row": plan(
        {"preferences": "rows.jsonl", "chat_template": "mine.jinja"},
        rows__jsonl=[{"prompt": [{"role": "system", "content": "Own."}, HELLO], "chosen": "A.", "rejected": "B."}] * 9,
        mine__jinja=NO_SYSTEM,
    ),
    "lengths-between-the-base-and-the-rows": plan(
        {"base": "my-base", "preferences": "rows.jsonl", "engine": {"max_model_len": 100, "name": "transformers"}},
        rows__jsonl=[{"prompt": "Name it. " * n, "chosen": "A river.", "rejected": "No."} for n in range(1, 60)],
        **{"my-base": base(max_position_embeddings=128)},
    ),
    "lengths-of-some-prompts": plan(
        {
            "preferences": "rows.jsonl",
            "sample": {"max_tokens": 300, "system_prompts": [{"text": "Be brief."}]},
        },
        rows__jsonl=[{"prompt": "Name it. " * n, "chosen": "A river.", "rejected": "No."} for n in range(1, 60)],
    ),
    "lengths-beyond-the-base": plan({"engine": {"max_model_len": 100_000, "name": "transformers"}}),
    "lengths-under-every-row": plan({stage: {"max_length": 4} for stage in ("reward", "sft", "dpo")}),
    "lengths-under-some-rows": plan(
        {"preferences": "rows.jsonl", "sft": {"max_length": 40}},
        rows__jsonl=[{"prompt": "Name it. " * n, "chosen": "A river.", "rejected": "No."} for n in range(1, 21)],
    ),
    "lengths-without-room-for-answers": plan({"sample": {"max_tokens": 380}}),
    "lengths-without-room-for-measures": plan({"measure": {"max_tokens": 370}}),
}
