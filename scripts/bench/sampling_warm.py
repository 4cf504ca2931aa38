"""The quickstart with the warm engine against the same stages with an engine started anew for each use."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts.bench.measuring import BenchError
from scripts.bench.sampling_cases import CASES, Result
from scripts.bench.sampling_room import Room

SCRIPT = Path(__file__).resolve().with_name("sampling_loop.py")
LOG_LINES = 25


def warm_vs_cold(room: Room) -> list[Result]:
    """Wall seconds of a cold run over those of a warm one: one run of each, whatever `--pairs` says."""
    amount = room.amount
    warm, cold = (_side(room, side) for side in ("warm", "cold"))
    ratio = cold["seconds"] / warm["seconds"]
    changed = f"with {', '.join(amount.overrides)}" if amount.overrides else "the recipe as it is"
    rounds = f"{amount.rounds} round{'s' if amount.rounds > 1 else ''}"
    same = "the same" if warm["metrics"] == cold["metrics"] else "not the same to the last digit"
    return [
        Result(
            CASES["warm_vs_cold"],
            ratio,
            (),
            f"{warm['seconds']:,.0f} s, {warm['engine_starts']} engine start",
            "the same stages with `vllm.LLM` anew for each use: "
            f"{cold['seconds']:,.0f} s, {cold['engine_starts']} engine starts",
            extra={"quickstart_seconds_warm": warm["seconds"], "quickstart_seconds_cold": cold["seconds"]},
            remarks=(
                f"run once each: the quickstart recipe, {rounds}, {changed}",
                f"benchmarks of all rounds: {same}",
            ),
        )
    ]


def _side(room: Room, side: str) -> dict[str, Any]:
    """One run in a process of its own, so that neither finds the other's imports."""
    run_dir, log = room.work / f"quickstart-{side}", room.work / f"quickstart-{side}.log"
    shutil.rmtree(run_dir, ignore_errors=True)
    print(f"  quickstart, {side}: {room.amount.rounds} rounds; what it prints is in {log}", flush=True)
    command = [sys.executable, str(SCRIPT), side, "--rounds", str(room.amount.rounds), "--run-dir", str(run_dir)]
    for override in room.amount.overrides:
        command += ["--set", override]
    with log.open("w") as errors:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False, env=room.side_environment()
        )
    if done.returncode:
        tail = "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise BenchError(f"the {side} quickstart ended with status {done.returncode}:\n{tail}")
    values: dict[str, Any] = json.loads(done.stdout)
    print(f"  quickstart, {side}: {values['seconds']:,.0f} s", flush=True)
    return values
