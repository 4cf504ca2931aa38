"""Recipes that are wrong in themselves: their text, their keys and values, and what stands against each other."""

from __future__ import annotations

from golden_case import Case, call, folder, plan

JUDGE = {"model": "nowhere"}

RECIPES: dict[str, Case] = {
    "no-such-recipe": call("plan", "none.yaml"),
    "misspelt-bundled-recipe": call("plan", "smal_gpu"),
    "recipe-is-a-folder": call("plan", "runs", runs=folder),
    "recipe-is-empty": call("plan", "mine.yaml", mine__yaml=""),
    "recipe-is-a-list": call("plan", "mine.yaml", mine__yaml="- rounds\n"),
    "recipe-is-no-yaml": call("plan", "mine.yaml", mine__yaml="rounds: [1\n"),
    "recipe-has-a-key-twice": call("plan", "mine.yaml", mine__yaml="rounds: 2\nrounds: 3\n"),
    "recipe-is-rows": call("plan", "good.jsonl"),
    "recipe-run-instead-of-plan": call("run", "good.jsonl"),
    "name-with-a-line-break": call("plan", "my\nrecipe.yaml"),
    "unknown-keys": plan({"round": 3, "K": 4, "output_dir": "x", "dpo": {"betta": 0.1, "lr": 1e-6}, "zzz": 1}),
    "wrong-values": plan(
        {
            "rounds": 100,
            "seed": -1,
            "name": "../elsewhere",
            "base": "",
            "bootstrap": "perhaps",
            "sft": 3,
            "reward": {"strengths": ["best"], "learning_rate": "fast", "dtype": "float16"},
            "data": {"heldout_fraction": 1.5, "form": "llama", "columns": {"promt": "ask"}},
            "dpo": {"beta": 0, "variants": [{"beta": -1}]},
            "sample": {"num_candidates": 0, "temperature": [1.0, "hot"]},
            "engine": {"max_model_len": True, "kv_cache_gb": float("inf")},
            "training": {"accelerate": ""},
            "score": {"reward_functions": [{"function": "no_colon"}]},
            "chat_template_kwargs": {"not a name": 1, "fine": [1]},
        }
    ),
    "preferences-of-no-kind": plan({"preferences": None}),
    "no-preferences": plan({"preferences": []}),
    "value-with-a-line-break": plan({"chat_template": "llama3\nerror: all is well"}),
    "overrides-that-are-none": plan(
        {}, "--set", "novalue", "--set", "rounds.x=3", "--set", "=3", "--set", "a.b.c.d.e.f.g.h.i.j.k.l.m=1"
    ),
    "overrides-with-wrong-values": plan({}, "--rounds", "0", "--set", "sample.num_candidates=0", "--set", "seed=[1"),
    "no-room-for-a-prompt": plan({"sample": {"max_tokens": 384}}),
    "no-room-for-a-prompt-in-measure": plan({"measure": {"max_tokens": 384}}),
    "annotator-without-a-judge": plan({"collect": {"annotator": "judge", "num_annotations": 4}}),
    "prune-without-a-judge": plan({"prune": {"quality": {"by": "judge"}}}),
    "accuracy-of-sft": plan({"averaging": {"sft": {"metric": "accuracy"}}}),
    "people-asked-nothing": plan({"collect": {"annotator": "human"}}),
    "answers-of-nobody": plan({"collect": {"min_annotated": 3}}),
    "ranges-the-wrong-way": plan({"sample": {"temperature": [1.0, 0.5]}}),
    "system-prompt-of-no-round": plan(
        {"sample": {"max_tokens": 64, "system_prompts": [{"text": "Be brief.", "first_round": 3, "last_round": 2}]}}
    ),
    "prune-sections-against-themselves": plan(
        {
            "prune": {
                "clean": {"balance": [{"name": "open", "regex": "(", "max_share": 0.1}]},
                "topic": {"by": "classifier"},
                "difficulty": {"min_points": 3, "max_points": 1},
                "semantic_dedup": {"nearest_clusters": 2, "compare_to": "kept"},
                "mix": {"shares": {"code": 0.5}, "epochs": {"code": 2}},
            }
        }
    ),
    "topics-twice": plan({"prune": {"topic": {"labels": ["code", "code", "law"]}}}),
    "one-topic-for-a-judge": plan({"prune": {"topic": {"by": "judge", "labels": ["code"]}}, "judge": JUDGE}),
    "pass-rates-the-wrong-way": plan({"prune": {"difficulty": {"min_pass_rate": 0.9, "max_pass_rate": 0.1}}}),
    "intentions-the-wrong-way": plan({"prune": {"difficulty": {"min_intentions": 3, "max_intentions": 1}}}),
    "shares-above-one": plan({"prune": {"mix": {"by": "source", "shares": {"a": 0.7, "b": 0.7}}}}),
    "mix-of-topics-that-are-off": plan({"prune": {"mix": {"shares": {"code": 0.5}}}}),
    "recipe-data-and-base-at-once": plan(
        {"preferences": ["none.jsonl", "god.jsonl"], "base": "nowhere/at/all", "roundz": 2, "seed": "x"}
    ),
    "recipe-beyond-reading": plan({"preferences": [], "roundz": 2, "sample": {"max_tokens": 999_999}}),
    "many-problems-of-all-kinds": plan(
        {
            "preferences": ["none.jsonl", "empty.jsonl", "broken.jsonl"],
            "prompts": ["folder", "gone-*.jsonl"],
            "base": "nothing",
            "chat_template": "llama4",
            "sample": {"max_tokens": 64, "num_candidates": 1},
            "score": {"reward_functions": [{"function": "nowhere:reward"}]},
            "prune": {"human_rows": 0, "quality": {"top_fraction": 0}, "semantic_dedup": {"embedder": "./none"}},
            "pairs": {"max_preference_pairs": 0},
            "evaluate": {"include_path": "quickstart", "tasks": ["ifevl", "mmlu", "gsm=x"]},
            "best_metric": "mmlu/acc_norm",
            "gate": {"metrics": ["ifeval/mean"]},
            "averaging": {"dpo": {"choose": 3, "weights": [0.0]}},
            "training": {"trackers": ["wandbb"], "accelerate": "fsdp3"},
            "engine": {"max_model_len": 384, "name": "transformers", "tensor_parallel": 2},
            "judge": {"model": "nowhere", "prompt": "difficulty"},
        },
        empty__jsonl="",
        broken__jsonl=['{"prompt": "Hi", '],
        folder=folder,
    ),
}
