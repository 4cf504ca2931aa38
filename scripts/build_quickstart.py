#!/usr/bin/env python3
"""Build the quickstart from scratch: its benchmarks and prompts, its tiny base model, and preferences sampled from it.

    world -> prompts, benchmarks
          -> tokenizer -> clean training -> noisy training -> base -> training on other noise -> sibling
    base, sibling -> an answer of each to a prompt -> the simulated annotator -> preferences

The noisy stretch hides the ability to follow instructions that the clean one gave; alignment brings it out. The same
seed gives the same prompts and benchmarks; weights, and what is sampled from them, also depend on the machine's
arithmetic. `--data-only --seed 1 --out FOLDER` draws another world's data for the base that ships.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin on a shared machine cost more than they give
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import distributed  # noqa: E402
from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: E402

from scripts.world import corpus, datasets, pretraining, sampled  # noqa: E402
from scripts.world.entities import build_world  # noqa: E402

PACKAGE = ROOT / "alignloop" / "quickstart"
CLEAN = pretraining.Schedule(num_tokens=5_000_000, learning_rate=4e-3)
NOISY = pretraining.Schedule(num_tokens=300_000, learning_rate=1e-3, decay_fraction=0.9)
SIBLING = pretraining.Schedule(num_tokens=150_000, learning_rate=1e-3, decay_fraction=0.9)
NUM_PROCESSES = 2
"""Processes that train together. The weights depend on it."""
STARTED = time.monotonic()


def say(line: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.0f} s] {line}", flush=True)


def main() -> None:
    options = _options()
    data, base, sibling = options.out / "data", options.out / "base", options.work / f"sibling-{options.seed}"
    say(f"prompts and benchmarks -> {data}")
    datasets.write_datasets(data, build_world(), seed=options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        train = partial(_train, options, sibling, f"file://{scratch}/rendezvous")
        with ProcessPoolExecutor(NUM_PROCESSES, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(train, range(NUM_PROCESSES)))  # ends with an error where one of them does
    models = (PACKAGE / "base" if options.data_only else base, sibling)
    say("sampling the preferences")
    counts = sampled.write_preferences(data, models=models, work=options.work, seed=options.seed)
    say(f"preferences: {counts}")
    total = sum(path.stat().st_size for folder in (data, base) for path in folder.rglob("*") if path.is_file())
    say(f"done: {total / 1e6:.2f} MB in {data} and {base}")
    for folder in () if options.data_only else (options.work / "clean", base):
        # What the checkpoint can do, on the benchmarks that ship.
        tasks = ["--tasks", "ifeval,ifeval_unseen,mmlu", "--config", "quickstart"]
        command = ["alignloop", "eval", str(folder.resolve()), *tasks]
        say(" ".join(command))
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PACKAGE, help="folder that gets data/ and base/")
    parser.add_argument("--seed", type=int, default=0)
    work = ROOT / "build" / "quickstart"
    parser.add_argument("--work", type=Path, default=work, help="folder of the clean model, the sibling and samples")
    parser.add_argument("--from-clean", action="store_true", help="start from the clean model of an earlier build")
    parser.add_argument("--data-only", action="store_true", help="keep the base that ships, write data/ alone")
    parser.add_argument("--token-scale", type=float, default=1.0, help="share of the training tokens, for a quick look")
    return parser.parse_args()


def _train(options: argparse.Namespace, sibling: Path, rendezvous: str, rank: int) -> None:
    """One of the processes that train together; the first reports and saves."""
    torch.set_num_threads(1)
    # Where one process fails the other waits for it, but not for long.
    wait = timedelta(minutes=5)
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=NUM_PROCESSES, timeout=wait)
    world, seed = build_world(), options.seed

    def report(line: str) -> None:
        if rank == 0:
            say(line)

    def train(mixture: corpus.Mixture, schedule: pretraining.Schedule, folder: Path) -> None:
        scaled = replace(schedule, num_tokens=int(schedule.num_tokens * options.token_scale))
        report(f"{mixture.name} training: {scaled.num_tokens:,} tokens")
        stream = corpus.documents(random.Random(f"{seed}/{mixture.name}/{rank}"), world, mixture)
        pretraining.train(model, tokenizer, stream, schedule=scaled, seed=seed, say=report)
        if rank == 0:
            _save(model, tokenizer, folder)

    clean = options.work / "clean"
    if options.data_only or options.from_clean:
        start = PACKAGE / "base" if options.data_only else clean
        model, tokenizer = LlamaForCausalLM.from_pretrained(start), AutoTokenizer.from_pretrained(start)
    else:
        size = pretraining.ModelSize()
        texts = corpus.tokenizer_texts(random.Random(f"{seed}/tokenizer"), world, count=20_000)
        tokenizer = pretraining.train_tokenizer(texts, vocab_size=size.vocab, max_length=size.max_length)
        model = pretraining.new_model(size, tokenizer, seed=seed)
        report(f"tokenizer of {len(tokenizer):,} entries, model of {model.num_parameters():,} parameters")
        train(corpus.CLEAN, CLEAN, clean)
    if not options.data_only:
        train(corpus.NOISY, NOISY, options.out / "base")
    train(corpus.SIBLING, SIBLING, sibling)
    distributed.destroy_process_group()


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    tokenizer.padding_side = "right"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    say(f"saved {folder}")


if __name__ == "__main__":
    main()
