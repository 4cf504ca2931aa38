"""Settings that cannot work with the machine, the files or each other, as `plan` finds them."""

from __future__ import annotations

from typing import Any

from golden_case import Case, Content, base, folder, no_template, plan

KEPT = {"max_length": 384, "num_checkpoints": 3}
POINTS = """\
kind: points
user: "Rate {completion} for {nobody}."
verdict: {field: points, maximum: 3}
schema: {type: object}
"""


def asked(prune: Any, **judge: Any) -> Case:
    """A plan whose pruning asks a judge: the bundled base, where no other model is named."""
    return plan({"prune": prune, "judge": {"model": "judge", "max_tokens": 64, **judge}}, judge=base())


def judged(*, rounds: int = 2, judge: Content | None = None, **config: Any) -> Case:
    """A plan whose preferences a judge makes."""
    return plan(
        {
            "rounds": rounds,
            "collect": {"annotator": "judge", "num_annotations": 4},
            "measure": {"judge": False},
            "judge": {"model": "judge", "max_tokens": 64, **config},
        },
        judge=judge or base(),
    )


def labelled(rows: Content, **topic: Any) -> Case:
    """A plan with a topic classifier that learns from these rows."""
    config = {"by": "classifier", "model": "small", "labelled": "labelled.jsonl", **topic}
    return plan({"prune": {"topic": config}}, labelled__jsonl=rows, small=base())


def accelerated(text: str, *, num_processes: int = 2) -> Case:
    """A plan that trains as an accelerate file of one's own says."""
    training = {"num_processes": num_processes, "accelerate": "mine_accelerate.yaml"}
    return plan({"training": training}, mine_accelerate__yaml=text)


def fsdp(text: str) -> Case:
    """The same, sharded."""
    return accelerated(f"distributed_type: FSDP\nfsdp_config: {{fsdp_version: 2, {text}}}\n")


def tasks(*names: str, best: str = "mmlu/acc", **files: Content) -> Case:
    """A plan with benchmarks of one's own."""
    return plan({"evaluate": {"tasks": list(names)}, "best_metric": best}, **files)


def rewarded(*functions: str, **files: Content) -> Case:
    """A plan with reward functions of one's own."""
    return plan({"score": {"reward_functions": [{"function": name} for name in functions]}}, **files)


MMLU_ROW = '"Which river is it?",Elbe,Oder,Rhine,Main,{}\n'

SETTINGS: dict[str, Case] = {
    "averaging-that-does-not-fit": plan(
        {
            "reward": KEPT,
            "dpo": {**KEPT, "variants": [{"beta": 0.1}, {"beta": 0.5}]},
            "averaging": {
                "reward": {"weights": [1.0, 2.0]},
                "sft": {"choose": 3},
                "dpo": {"choose": 2, "weights": [0.0, 0.0]},
            },
        }
    ),
    "averaging-without-held-out-rows": plan(
        {"reward": KEPT, "averaging": {"reward": {"choose": 1}}, "data": {"heldout_fraction": 0.0}}
    ),
    "averaging-and-adapters-in-a-plan": plan(
        {
            "reward": KEPT,
            "sft": {**KEPT, "lora": {"rank": 4, "target_modules": ["q_proj", "v_proj"]}},
            "dpo": {**KEPT, "variants": [{"seed": 1}, {"data_fraction": 0.5}]},
            "averaging": {"reward": {"choose": 1}, "sft": {"weights": [1, 2, 3]}, "dpo": {"choose": 2}},
            "pairs": {"data_window": 3},
            "sample": {"max_tokens": 64, "policy": "previous"},
        }
    ),
    "averaging-with-too-many-weights": plan(
        {"sft": KEPT, "averaging": {"sft": {"choose": 2, "weights": [1.0, 1.0, 1.0]}}}
    ),
    "trackers-that-are-not-there": plan({"training": {"trackers": ["wandbb", "neptune", "kubeflow", "zzz"]}}),
    "more-processes-than-cores": plan({"training": {"num_processes": 100_000}}),
    "accelerate-file-that-is-not-there": plan({"training": {"accelerate": "fsdp3"}}),
    "accelerate-setting-that-is-not-used": plan({"training": {"accelerate": "fsdp2"}}),
    "accelerate-file-of-something-else": accelerated("rounds: 3\n", num_processes=1),
    "accelerate-file-that-is-no-yaml": accelerated("distributed_type: [\n"),
    "accelerate-file-with-an-unknown-key": accelerated("distributed_type: MULTI_GPU\nnum_proceses: 2\n"),
    "accelerate-file-with-a-misplaced-key": accelerated("distributed_type: FSDP\nfsdp_version: 2\n"),
    "accelerate-file-with-a-text-for-a-number": accelerated("distributed_type: MULTI_GPU\nnum_processes: two\n"),
    "accelerate-file-of-another-machine": accelerated("distributed_type: MULTI_GPU\nnum_machines: 4\n"),
    "accelerate-file-of-a-cloud": accelerated("distributed_type: MULTI_GPU\ncompute_environment: AMAZON_SAGEMAKER\n"),
    "accelerate-file-of-deepspeed": accelerated("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}\n"),
    "accelerate-file-of-another-kind": accelerated("distributed_type: DEEPSPEED\n"),
    "accelerate-file-of-other-processes": accelerated("distributed_type: MULTI_GPU\nnum_processes: 8\n"),
    "accelerate-file-of-one-gpu": accelerated("distributed_type: MULTI_GPU\ngpu_ids: '0'\n"),
    "accelerate-file-of-fsdp-1": accelerated("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}\n"),
    "accelerate-file-with-a-list-for-fsdp": accelerated("distributed_type: FSDP\nfsdp_config: [2]\n"),
    "fsdp-of-an-unknown-key": fsdp("fsdp_offlod_params: true"),
    "fsdp-of-an-unknown-policy": fsdp("fsdp_auto_wrap_policy: TRANSFORMER_WRAP"),
    "fsdp-of-no-switch": fsdp("fsdp_offload_params: perhaps"),
    "fsdp-of-checkpointing": fsdp("fsdp_activation_checkpointing: true"),
    "fsdp-of-no-class-names": fsdp("fsdp_transformer_layer_cls_to_wrap: [a]"),
    "fsdp-of-layers-the-base-has-not": fsdp(
        "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP, fsdp_transformer_layer_cls_to_wrap: LamaLayer"
    ),
    "engine-that-cannot-split": plan(
        {"engine": {"max_model_len": 384, "name": "transformers", "pipeline_parallel": 2}}
    ),
    "engine-that-cannot-quantise": plan(
        {"engine": {"max_model_len": 384, "name": "transformers", "quantization": "fp8"}}
    ),
    "engine-without-gpus": plan({"engine": {"max_model_len": 384, "name": "vllm", "tensor_parallel": 2}}),
    "engine-that-samples-fewer": plan(
        {"engine": {"max_model_len": 384, "name": "vllm"}, "sample": {"max_tokens": 64, "num_candidates": 100_000}}
    ),
    "tasks-that-are-none": plan({"evaluate": {"tasks": []}}),
    "tasks-of-unknown-names": plan(
        {"evaluate": {"include_path": "quickstart", "tasks": ["ifevl", "hellaswag"]}, "best_metric": "hellaswag/acc"}
    ),
    "tasks-in-no-folder": plan({"evaluate": {"include_path": "tasks", "tasks": ["mmlu"]}}),
    "tasks-of-ones-own-misspelt": plan(
        {"evaluate": {"include_path": "tasks", "tasks": ["my_river"]}, "best_metric": "my_river/acc"},
        **{"tasks/mine.yaml": "task: my_rivers\noutput_type: multiple_choice\n"},
    ),
    "tasks-of-ones-own-that-are-no-yaml": plan(
        {"evaluate": {"include_path": "tasks", "tasks": ["my_rivers"]}, "best_metric": "my_rivers/acc"},
        **{"tasks/mine.yaml": "task: my_rivers\nlimit: [\n"},
    ),
    "tasks-of-files-that-are-not-there": tasks(
        "ifeval=none.jsonl", "mmlu=none", "gsm=none", "mmlu_generative=good.jsonl"
    ),
    "tasks-of-ifeval-of-another-form": tasks(
        "ifeval=bad.jsonl", best="ifeval/mean", bad__jsonl=[{"prompt": "Hi"}, "{"]
    ),
    "tasks-of-mmlu-of-another-form": tasks(
        "mmlu=bad", **{"bad/test/rivers_test.csv": MMLU_ROW.format("A") + MMLU_ROW.format("E")}
    ),
    "tasks-of-mmlu-that-are-no-text": tasks("mmlu=bad", **{"bad/test/rivers_test.csv": b"\xff\xfe\n"}),
    "tasks-that-are-too-long": tasks(
        "mmlu=long", **{"long/test/rivers_test.csv": MMLU_ROW.format("A").replace("it", "it " * 500)}
    ),
    "metric-of-no-task": plan(
        {"best_metric": "gsm8k/acc", "gate": {"metrics": ["ifeval/mean"], "max_regression": 0.1}}
    ),
    "metric-that-no-task-reports": plan(
        {
            "evaluate": {"include_path": "quickstart"},
            "best_metric": "ifeval/maen",
            "gate": {"metrics": ["mmlu/acc_norm", "mmlu/zzz", "ifeval/type/x"]},
        }
    ),
    "reward-function-of-no-module": rewarded("my_rewrds_a:f", my_rewards_a__py="def f(**columns): return []\n"),
    "reward-function-of-no-name": rewarded(
        "my_rewards_b:lenght", my_rewards_b__py="def length(**columns): return []\n"
    ),
    "reward-function-of-a-broken-module": rewarded("my_rewards_c:f", my_rewards_c__py="def f(:\n"),
    "reward-function-of-a-raising-module": rewarded(
        "my_rewards_d:f", my_rewards_d__py="x = 1\nraise ValueError('no')\n"
    ),
    "reward-function-of-a-class": rewarded(
        "my_rewards_e:F", "my_rewards_e:g", my_rewards_e__py="class F: ...\ng = 3\n"
    ),
    "reward-function-of-missing-columns": rewarded(
        "my_rewards_f:f", my_rewards_f__py="def f(completions, answer, *, rubric=None): return []\n"
    ),
    "reward-function-that-is-named-twice": rewarded(
        "my_rewards_g:f", "my_rewards_g:f", my_rewards_g__py="def f(**columns): return []\n"
    ),
    "judge-that-is-not-there": judged(model="nowhere"),
    "judge-that-does-not-compare": judged(prompt="difficulty"),
    "judge-of-no-prompt": judged(prompt="pairwize"),
    "judge-without-room-and-positions": judged(max_tokens=384, judge=base(max_position_embeddings=128)),
    "judge-without-a-template": judged(judge=base(no_template)),
    "judge-without-weights": judged(judge=folder),
    "judge-behind-no-endpoint": judged(endpoint="http://127.0.0.1:9/v1", max_retries=0, timeout_seconds=2.0),
    "judge-that-is-asked-nothing": plan(
        {
            "collect": {"annotator": "judge"},
            "measure": {"judge": False},
            "judge": {"model": "judge"},
            "gate": {"metrics": ["mmlu/acc"]},
        }
    ),
    "judge-that-is-never-asked": judged(rounds=1),
    "judge-of-measures-that-does-not-compare": plan(
        {"judge": {"model": "judge", "max_tokens": 64, "prompt": "difficulty"}}, judge=base()
    ),
    "judge-of-measures-that-is-not-there": plan({"judge": {"model": "nowhere"}}),
    "prune-prompt-of-another-kind": asked({"quality": {"by": "judge", "general_prompt": "pairwise"}}),
    "prune-prompt-of-fewer-points": asked({"difficulty": {"by": "judge", "max_points": 9}}),
    "prune-prompt-of-topics-of-another-kind": asked({"topic": {"by": "judge", "prompt": "difficulty"}}),
    "prune-prompt-of-intentions-of-another-kind": asked(
        {"difficulty": {"by": "intentions", "intentions_prompt": "topic"}}
    ),
    "prune-prompt-that-is-broken": plan(
        {
            "prune": {"difficulty": {"by": "judge", "prompt": "mine_prompt.yaml"}},
            "judge": {"model": "judge", "max_tokens": 64},
        },
        judge=base(),
        mine_prompt__yaml=POINTS,
    ),
    "prune-prompt-of-no-kind": plan(
        {
            "prune": {"difficulty": {"by": "judge", "prompt": "mine_prompt.yaml"}},
            "judge": {"model": "judge", "max_tokens": 64},
        },
        judge=base(),
        mine_prompt__yaml="kind: stars\n",
    ),
    "prune-judge-that-is-not-there": asked({"quality": {"by": "either"}}, model="nowhere"),
    "prune-mix-of-topics-no-judge-gives": asked({"topic": {"by": "judge"}, "mix": {"shares": {"rivers": 0.5}}}),
    "classifier-that-is-not-there": plan({"prune": {"topic": {"by": "classifier", "model": "small"}}}),
    "classifier-that-knows-no-labels": plan({"prune": {"topic": {"by": "classifier", "model": "small"}}}, small=base()),
    "classifier-of-no-rows": labelled([], labelled="none.jsonl"),
    "classifier-of-bad-rows": labelled(["{", {"topic": "code"}, {"topic": "", "prompt": "Hi"}, {"prompt": "Hi"}]),
    "classifier-of-one-topic": labelled([{"topic": "code", "prompt": "Hi"}] * 3),
    "classifier-of-a-lonely-topic": labelled(
        [{"topic": "code", "prompt": "Hi"}] * 2 + [{"topic": "law", "prompt": "Ho"}]
    ),
    "classifier-of-topics-that-no-mix-has": plan(
        {
            "prune": {
                "topic": {"by": "classifier", "model": "small", "labelled": "labelled.jsonl"},
                "mix": {"shares": {"rivers": 0.5}},
            }
        },
        small=base(),
        labelled__jsonl=[{"topic": topic, "prompt": "Hi"} for topic in ("code", "code", "law", "law")],
    ),
    "classifier-without-weights": plan(
        {"prune": {"topic": {"by": "classifier", "model": "small", "labelled": "labelled.jsonl"}}},
        small=folder,
        labelled__jsonl=[{"topic": topic, "prompt": "Hi"} for topic in ("code", "code", "law", "law")],
    ),
    "embedder-that-is-not-there": plan({"prune": {"semantic_dedup": {"embedder": "./minilm"}}}),
}
