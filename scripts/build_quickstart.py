#!/usr/bin/env python3
"""Build the quickstart from scratch: its data files and its tiny base model. About 15 minutes on 2 cores.

    world -> data files (preferences, prompts, benchmarks)
          -> tokenizer -> clean training -> noisy training -> base

The noisy stretch hides the ability to follow instructions that the clean one gave; alignment brings it out.
The same seed gives the same data files; the weights also depend on the machine's arithmetic.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin on a shared machine cost more than they give
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from alignloop.quickstart import corpus, datasets, measuring, pretraining  # noqa: E402
from alignloop.quickstart.tokenizer import train_tokenizer  # noqa: E402
from alignloop.quickstart.world import Entity, build_world  # noqa: E402

PACKAGE = ROOT / "alignloop" / "quickstart"
CLEAN = pretraining.Schedule(num_tokens=3_000_000, learning_rate=4e-3)
NOISY = pretraining.Schedule(num_tokens=400_000, learning_rate=1e-3)
STARTED = time.monotonic()


def say(line: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.0f} s] {line}", flush=True)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    world = build_world()
    data, base = options.out / "data", options.out / "base"
    say(f"data files -> {data}")
    datasets.write_datasets(data, world, seed=options.seed, sizes=datasets.DatasetSizes())
    say("tokenizer")
    size = pretraining.ModelSize()
    texts = corpus.tokenizer_texts(random.Random(f"{options.seed}/tokenizer"), world, count=20_000)
    tokenizer = train_tokenizer(texts, vocab_size=size.vocab, max_length=size.max_length)
    model = pretraining.new_model(size, tokenizer, seed=options.seed)
    say(f"model: {model.num_parameters():,} parameters")
    for mixture, schedule in ((corpus.CLEAN, CLEAN), (corpus.NOISY, NOISY)):
        _train(model, tokenizer, world, mixture, schedule, options)
        _report(model, tokenizer, data, title=f"after {mixture.name} training")
        _save(model, tokenizer, base if mixture is corpus.NOISY else options.keep_clean)
    total = sum(path.stat().st_size for folder in (data, base) for path in folder.rglob("*") if path.is_file())
    say(f"done: {total / 1e6:.2f} MB in {data} and {base}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PACKAGE, help="folder that gets data/ and base/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep-clean", type=Path, help="also save the model before the noisy training, here")
    parser.add_argument("--token-scale", type=float, default=1.0, help="share of the training tokens, for a quick look")
    return parser.parse_args()


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: tuple[Entity, ...],
    mixture: corpus.Mixture,
    schedule: pretraining.Schedule,
    options: argparse.Namespace,
) -> None:
    scaled = pretraining.scaled(schedule, options.token_scale)
    say(f"{mixture.name} training: {scaled.num_tokens:,} tokens")
    stream = corpus.documents(random.Random(f"{options.seed}/{mixture.name}"), world, mixture)
    pretraining.train(model, tokenizer, stream, schedule=scaled, seed=options.seed, say=say)


def _report(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Path, *, title: str) -> None:
    rows = measuring.read_jsonl((data / "ifeval.jsonl").read_text())
    following = measuring.measure_following(model, tokenizer, rows, num_candidates=10)
    questions = [row for path in sorted((data / "mmlu" / "test").glob("*.csv")) for row in _csv_rows(path)]
    knowledge = measuring.measure_knowledge(model, tokenizer, questions)
    asked = measuring.measure_knowledge(model, tokenizer, questions, form="Question: {question}\nAnswer:")
    say(
        f"{title}: {len(rows)} held-out prompts, greedy {following.greedy:.3f}, one sample {following.sampled:.3f}, "
        f"best of 10 {following.oracle:.3f}, stopped {following.stopped:.3f}; {len(questions)} questions, "
        f"right option likeliest {knowledge:.3f} ({asked:.3f} as `Question: ... Answer:`)"
    )
    for name, (share, count) in following.by_type.items():
        say(f"    {name:48s} {share:.2f} of {count}")


def _csv_rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path | None) -> None:
    if folder is None:
        return
    tokenizer.padding_side = "right"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    say(f"saved {folder}")


if __name__ == "__main__":
    main()
