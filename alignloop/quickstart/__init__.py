"""The quickstart: a tiny base model, its small world, preferences, prompts and two benchmarks, shipped in the package.

    data/   preferences.jsonl  prompts.jsonl  ifeval.jsonl  mmlu/{dev,test}/*.csv
    base/   a Hugging Face directory (Llama architecture, Llama 3 chat format, about a million parameters)

`scripts/build_quickstart.py` makes both from scratch. `annotator` compares what a run samples.
"""
