"""`alignloop data prune` on files: of any form, of real rows, and of wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignloop.alone.out_file import manifest_of, read_dropped
from alignloop.alone.prune import PrunedFile, prune_file, pruned_text
from alignloop.data.jsonl import load_jsonl
from alignloop.data.readers import read_preferences, read_sft
from alignloop.errors import DataError, UserError
from alignloop.records import PreferenceRow, SftRow
from alignloop.run_dir.manifest import read_manifest

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def dialog(prompt: str, answer: str, **columns: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **columns}


def kept(path: Path) -> list[SftRow]:
    return list(load_jsonl(path, SftRow))


def skips(result: PrunedFile) -> dict[str, str]:
    return {line["step"]: line["skipped"] for line in result.funnel["steps"] if line["skipped"] is not None}


ROWS = [
    dialog("Name a river of the north.", "The Lena.", id="a", reward=3.0, topic="maps"),
    dialog("Name a river of the  NORTH.", "The Yukon.", id="b", reward=1.0, topic="maps"),
    dialog("What is a loop?", "Certainly!!! Yes!!!", id="c", reward=2.0, topic="code"),
    dialog("What does the fox eat?", "Berries and mice.", id="d", reward=0.0, topic="animals"),
    dialog("Where does the owl sleep?", "In a hollow tree.", id="e", reward=4.0, topic="animals"),
]


def test_dialogs_are_pruned_and_every_row_is_accounted_for(tmp_path: Path) -> None:
    file, out = written(tmp_path / "rows.jsonl", ROWS), tmp_path / "kept.jsonl"
    result = prune_file(file, out=out, overrides=["prune.quality.top_fraction=0.75"])
    # clean: the shouting row; quality: 3 of the 4 left; near duplicates: b, worse than a, is gone by then or now.
    rows = kept(out)
    assert [row.id for row in rows] == ["a", "e"]
    drops = {row.id: row.rule for row in read_dropped(out)}
    assert drops == {"c": "clean", "d": "quality", "b": "near_duplicates"}
    assert (result.funnel["in"], result.funnel["kept"], result.funnel["dropped"]) == (5, 2, 3)
    assert set(skips(result)) == {"topic", "difficulty", "semantic_dedup", "decontaminate", "mix"}
    text = pruned_text(result)
    assert "2 of 5 rows kept (sft, messages)" in text
    assert "skipped: nothing embeds the rows" in text
    manifest = json.loads(manifest_of(out).read_text())
    assert manifest["counts"]["in"] == 5 == manifest["counts"]["kept"] + manifest["counts"]["dropped"]
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".work", ".tmp")]
    assert read_manifest(tmp_path) is None
    assert (rows[0].source.file, rows[0].source.line, rows[0].quality_score) == (str(file), 1, 3.0)
    # The same again is known, and anything else is not written over.
    assert not result.was_there
    assert prune_file(file, out=out, overrides=["prune.quality.top_fraction=0.75"]).was_there
    with pytest.raises(UserError, match=r"config.quality.top_fraction: 0.75 -> 0.5"):
        prune_file(file, out=out, overrides=["prune.quality.top_fraction=0.5"])


@pytest.mark.parametrize("by", ["columns", "overrides"])
def test_columns_by_other_names_are_read_and_recognised(tmp_path: Path, by: str) -> None:
    rows = [{"ask": f"Name river {n}.", "good": f"The {name}.", "bad": "No."} for n, name in enumerate(("Lena", "Oka"))]
    file, out = written(tmp_path / "rows.jsonl", rows), tmp_path / "kept.jsonl"
    names = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    named: dict[str, Any] = {"columns": names, "overrides": [f"data.columns={json.dumps(names)}"]}
    assert prune_file(file, out=out, **{by: named[by]}).funnel["kind"] == "preferences"
    assert [row.chosen for row in load_jsonl(out, PreferenceRow)] == ["The Lena.", "The Oka."]
    assert prune_file(file, out=out, **{by: named[by]}).was_there
    with pytest.raises(UserError, match=r"config\.columns\.chosen: good -> bad"):
        prune_file(file, out=out, columns={"prompt": "ask", "chosen": "bad", "rejected": "good"})


def test_the_recipe_says_how_the_file_is_read(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", [dialog("Name a river.", "The Lena."), dialog("Another?", "The Oka." * 20)])
    with pytest.raises(DataError, match=r"holds \d+ characters of text"):
        prune_file(file, out=tmp_path / "a.jsonl", overrides=["data.max_characters=100"])
    two = [*ROWS[0]["messages"], *dialog("Another?", "The Oka.")["messages"]]
    longer = written(tmp_path / "longer.jsonl", [{"messages": two}])
    overrides = ["data.dialogs=every_turn", "prune.quality.enabled=false"]
    made = prune_file(longer, out=tmp_path / "b.jsonl", overrides=overrides)
    assert [row.messages[-1].content for row in kept(made.out)] == ["The Lena.", "The Oka."]


def test_parquet_holds_the_same_rows_and_is_read_again(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", ROWS)
    overrides = ["prune.quality.enabled=false", "prune.topic.by=column"]
    prune_file(file, out=tmp_path / "kept.jsonl", overrides=overrides)
    prune_file(file, out=tmp_path / "kept2.parquet", overrides=overrides)
    rows = kept(tmp_path / "kept.jsonl")
    read = read_sft([tmp_path / "kept2.parquet"], max_bad_fraction=0.0).rows
    assert [(row.id, row.messages, row.topic, row.meta) for row in read] == [
        (row.id, row.messages, row.topic, row.meta) for row in rows
    ]
    assert [row.topic for row in rows] == ["maps", "animals", "animals"]
    # Rows of ours go through again as they are.
    again = prune_file(tmp_path / "kept2.parquet", out=tmp_path / "again.jsonl", overrides=overrides[:1])
    assert again.funnel["kept"] == 3
    assert kept(again.out)[0].topic == "maps"


def test_given_vectors_stand_for_rows_in_file_order(tmp_path: Path) -> None:
    rows = [dialog(f"Question number {n}?", f"Answer {n}.", id=str(n)) for n in range(4)]
    rows.insert(1, {"messages": []})  # cannot be read, and has a vector all the same
    file = written(tmp_path / "rows.jsonl", rows)
    vectors = np.eye(5, 8, dtype=np.float32)
    vectors[4] = vectors[2]  # the last row means the same as number 1
    np.save(tmp_path / "v.npy", vectors)
    overrides = ["data.max_bad_fraction=0.5", "prune.near_duplicates.enabled=false"]
    result = prune_file(file, out=tmp_path / "kept.jsonl", embeddings=tmp_path / "v.npy", overrides=overrides)
    assert [row.id for row in kept(result.out)] == ["0", "1", "2"]
    unread, near = read_dropped(result.out)
    assert (unread.rule, unread.id) == ("unreadable", "rows.jsonl:2")
    assert (near.id, near.twin) == ("3", "1")
    assert near.cosine == pytest.approx(1.0)
    first = result.funnel["steps"][0]
    assert [first[name] for name in ("step", "num_in", "num_kept", "num_dropped", "skipped")] == ["read", 5, 4, 1, None]
    np.save(tmp_path / "short.npy", vectors[:3])
    with pytest.raises(DataError, match="3 vectors for 4 rows and 1 that cannot be read"):
        prune_file(file, out=tmp_path / "x.jsonl", embeddings=tmp_path / "short.npy", overrides=overrides)
    with pytest.raises(UserError, match="give one of the two"):
        prune_file(file, out=tmp_path / "x.jsonl", embeddings=tmp_path / "v.npy", embedder="policy")
    assert not (tmp_path / "x.jsonl").exists()


def test_the_verb(alignloop: Any, tmp_path: Path) -> None:
    written(tmp_path / "rows.jsonl", ROWS)
    result = alignloop("data", "prune", "rows.jsonl", "--out", "kept.jsonl", "--set", "prune.clean.enabled=false")
    assert result.code == 0, result.err
    assert "prune.clean.enabled is false" in result.out
    assert (tmp_path / "kept.jsonl").is_file()


@pytest.mark.parametrize("name", ["sharegpt_en.jsonl", "sharegpt_zh.json", "alpacaeval_graded.jsonl"])
def test_real_preferences_come_out_as_preferences(tmp_path: Path, name: str) -> None:
    file, out = SHARED / "preferences" / name, tmp_path / "kept.parquet"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    result = prune_file(file, out=out, overrides=["data.max_bad_fraction=0.02"])
    read = read_preferences([out], max_bad_fraction=0.0).rows
    assert len(read) == result.funnel["kept"] >= 0.95 * result.funnel["in"]  # one prompt's many pairs all stay
    assert result.funnel["kind"] == "preferences"
    before = {row.id: row for row in read_preferences([file], max_bad_fraction=0.02).rows}
    assert all((row.chosen, row.rejected) == (before[row.id].chosen, before[row.id].rejected) for row in read)


def test_real_candidates_by_the_quickstarts_own_states(tmp_path: Path) -> None:
    file = SHARED / "candidates/alpacaeval_120x20.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    rows: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8").splitlines()[:12]:
        row = json.loads(line)
        for number, candidate in enumerate(row["candidates"][:8]):
            text = candidate["completion"][:600]
            rows.append({"prompt": row["prompt"][:600], "completion": text, "id": f"{len(rows)}-{number}"})
    rows += [{**row, "id": f"copy-{row['id']}", "completion": row["completion"] + " "} for row in rows[:10]]
    made = written(tmp_path / "rows.jsonl", [row for row in rows if row["completion"].strip()])
    overrides = ["prune.near_duplicates.enabled=false", "prune.semantic_dedup.threshold=0.999"]
    result = prune_file(made, out=tmp_path / "kept.jsonl", embedder="policy", overrides=overrides)
    drops = {row.id: row for row in read_dropped(result.out)}
    near = [row for row in drops.values() if row.rule == "semantic_dedup"]
    twins = [(row["id"], f"copy-{row['id']}") for row in rows[:10] if row["completion"].strip()]
    assert all(first in drops or copy in drops for first, copy in twins)
    assert len(near) <= len(twins) + 5
    assert all(row.twin is not None for row in near)
