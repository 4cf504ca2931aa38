#!/usr/bin/env python3
"""Build the quickstart from scratch: its data files and its tiny base model. About 12 minutes on 2 free cores.

    world -> data files (preferences, prompts, benchmarks)
          -> tokenizer -> clean training -> noisy training -> base

The noisy stretch hides the ability to follow instructions that the clean one gave; alignment brings it out.
The same seed gives the same data files; the weights also depend on the machine's arithmetic.
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
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin on a shared machine cost more than they give
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import distributed  # noqa: E402
from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: E402

from scripts.world import corpus, datasets, pretraining  # noqa: E402
from scripts.world.entities import build_world  # noqa: E402

PACKAGE = ROOT / "alignloop" / "quickstart"
CLEAN = pretraining.Schedule(num_tokens=3_200_000, learning_rate=4e-3)
NOISY = pretraining.Schedule(num_tokens=250_000, learning_rate=1e-3, decay_fraction=0.9)
NUM_PROCESSES = 2
"""Processes that train together. The weights depend on it."""
STARTED = time.monotonic()


def say(line: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.0f} s] {line}", flush=True)


def main() -> None:
    options = _options()
    data, base = options.out / "data", options.out / "base"
    say(f"data files -> {data}")
    datasets.write_datasets(data, build_world(), seed=options.seed)
    if options.data_only:
        return
    with tempfile.TemporaryDirectory() as scratch:
        build = partial(_build_base, options, f"file://{scratch}/rendezvous")
        with ProcessPoolExecutor(NUM_PROCESSES, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(build, range(NUM_PROCESSES)))  # ends with an error where one of them does
    total = sum(path.stat().st_size for folder in (data, base) for path in folder.rglob("*") if path.is_file())
    say(f"done: {total / 1e6:.2f} MB in {data} and {base}")
    for folder in (options.clean, base):
        # What the checkpoint can do, on the benchmarks that ship.
        command = ["alignloop", "eval", str(folder.resolve()), "--tasks", "ifeval,mmlu", "--include-path", "quickstart"]
        say(" ".join(command))
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    clean = ROOT / "build" / "quickstart-clean"
    parser.add_argument("--out", type=Path, default=PACKAGE, help="folder that gets data/ and base/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clean", type=Path, default=clean, help="the clean model's folder")
    parser.add_argument("--from-clean", action="store_true", help="start from the clean model of an earlier build")
    parser.add_argument("--data-only", action="store_true", help="write the data files only")
    parser.add_argument("--token-scale", type=float, default=1.0, help="share of the training tokens, for a quick look")
    return parser.parse_args()


def _build_base(options: argparse.Namespace, rendezvous: str, rank: int) -> None:
    """One of the processes that train together; the first reports and saves."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=NUM_PROCESSES)
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

    if options.from_clean:
        model, tokenizer = LlamaForCausalLM.from_pretrained(options.clean), AutoTokenizer.from_pretrained(options.clean)
    else:
        size = pretraining.ModelSize()
        texts = corpus.tokenizer_texts(random.Random(f"{seed}/tokenizer"), world, count=20_000)
        tokenizer = pretraining.train_tokenizer(texts, vocab_size=size.vocab, max_length=size.max_length)
        model = pretraining.new_model(size, tokenizer, seed=seed)
        report(f"tokenizer of {len(tokenizer):,} entries, model of {model.num_parameters():,} parameters")
        train(corpus.CLEAN, CLEAN, options.clean)
    train(corpus.NOISY, NOISY, options.out / "base")
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
