"""CSV, Arrow files, saved data sets and Parquet: the same rows, in flat memory, and what cannot be read named."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from data_files import rows_of
from pyarrow import parquet

from alignloop.data import rawfile, tables
from alignloop.data.check_files import check_file
from alignloop.data.files import data_files
from alignloop.data.rawfile import open_rows
from alignloop.data.readers import read_preferences
from alignloop.data.reading import Reading
from alignloop.errors import DataError
from alignloop.records import PreferenceRow, RejectedRow

ROWS = [{"prompt": f'Q{n}, "so"?\nYes', "chosen": f"good {n}", "rejected": "bad", "topic": "007"} for n in range(5)]


def values(path: Path) -> list[Any]:
    return [row.value if row.problem is None else row.problem.reason for row in open_rows(path).rows()]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t"), ("a", ","), ("a.csv.gz", ";")])
def test_csv(tmp_path: Path, name: str, delimiter: str) -> None:
    with (tmp_path / "plain").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    content = (tmp_path / "plain").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert values(tmp_path / name) == ROWS
    read = read_preferences([tmp_path / name], max_bad_fraction=0)
    assert [row.source.line for row in read.rows] == [2, 4, 6, 8, 10]  # a record has two lines
    assert read.rows[0].meta == {"topic": "007"}
    assert check_file(tmp_path / name, workers=2).tally.num_kept == 5


def test_csv_named_in_capitals_of_one_column_or_with_not_a_number(tmp_path: Path) -> None:
    (tmp_path / "A.CSV").write_text("ask,score_a\nQ,nan\n")
    assert values(tmp_path / "A.CSV") == [{"ask": "Q", "score_a": None}]
    (tmp_path / "a.tsv").write_text("prompt\nYou, there?\n")
    assert values(tmp_path / "a.tsv") == [{"prompt": "You, there?"}]
    (tmp_path / "a.csv").write_text('instruction,history\nQ,"[[""P"", ""A""]]"\nR,[]\n')
    assert [row["history"] for row in values(tmp_path / "a.csv")] == [[["P", "A"]], []]


def test_csv_cells_that_are_no_texts_and_records_that_are_broken(tmp_path: Path) -> None:
    turns = json.dumps([{"role": "user", "content": "Hi?"}]).replace('"', '""')
    lines = [
        "prompt,chosen,rejected,score_chosen,score_rejected",
        f'"{turns}",a,b,1.5,2',
        '[1] is a list,"{""a"": 1}",b,,',
        "too,few",
        "\"[{'role': 'user', 'content': 'x'}]\",a,b,1,2",
        'Q,"a" x,b,1,2',
        "Q,a,b,1,2",
    ]
    (tmp_path / "a.csv").write_bytes("\n".join(lines).encode() + b"\nQ,\xe9,b,1,2\n")
    first, second, *others = values(tmp_path / "a.csv")
    assert first["prompt"] == [{"role": "user", "content": "Hi?"}]
    assert (first["score_chosen"], second["score_chosen"]) == (1.5, None)
    assert (second["prompt"], second["chosen"]) == ("[1] is a list", '{"a": 1}')
    reasons = ("holds 2 cells, while the header names 5", "as Python prints them", "no CSV", None, "is not UTF-8")
    for found, reason in zip(others, reasons, strict=True):
        assert (
            found == second | {"prompt": "Q", "chosen": "a", "score_chosen": 1.0, "score_rejected": 2.0}
            if (reason is None)
            else reason in found
        )
    (tmp_path / "b.csv").write_text("prompt,prompt\na,b\n")
    assert "two columns of the header" in values(tmp_path / "b.csv")[0]
    (tmp_path / "c.csv").write_bytes(b"prompt,r\xe9ponse\na,b\n")  # rows could not be written again under such a name
    assert "the header is not UTF-8" in values(tmp_path / "c.csv")[0]


def test_a_csv_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rawfile, "LONGEST", 1000)
    (tmp_path / "a.csv").write_text("prompt,chosen\na,b\n" + "x" * 5000)
    with pytest.raises(DataError, match="a line is longer than 64 MiB"):
        read_preferences([tmp_path / "a.csv"], max_bad_fraction=1)


def save(folder: Path, tables: list[Any]) -> Path:
    """As `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    for number, table in enumerate(tables):
        with (
            pa.OSFile(str(folder / f"data-{number}.arrow"), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(table)
    names = [{"filename": f"data-{number}.arrow"} for number in range(len(tables))]
    (folder / "state.json").write_text(json.dumps({"_data_files": names}))
    return folder


def test_arrow_files_and_saved_data_sets(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    saved = save(tmp_path / "saved", [table.slice(0, 2), table.slice(2)])
    assert values(saved) == values(saved) == ROWS
    assert values(saved / "data-0.arrow") == ROWS[:2]
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table, max_chunksize=2)
    assert values(tmp_path / "b.arrow") == ROWS
    assert data_files([f"{tmp_path}/*"], kind="preferences") == [tmp_path / "b.arrow", saved]
    save(tmp_path / "splits" / "train", [table])
    save(tmp_path / "splits" / "test", [table.slice(0, 1)])
    (tmp_path / "splits" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert values(tmp_path / "splits") == ROWS
    assert values(tmp_path / "splits" / "test") == ROWS[:1]
    (tmp_path / "splits" / "train").rename(tmp_path / "splits" / "dev")
    with pytest.raises(DataError, match="holds the splits dev, test: name one"):
        values(tmp_path / "splits")
    (saved / "data-1.arrow").unlink()
    with pytest.raises(DataError, match=r"data-1.arrow: is missing"):
        values(saved)
    whole = (saved / "data-0.arrow").read_bytes()
    (saved / "data-0.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="the Arrow file cannot be read"):
        values(saved)


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 875191\n"
    (tmp_path / "a.jsonl.gz").write_text(pointer)
    with pytest.raises(DataError, match=r"a Git LFS pointer, not the data: .*git lfs pull"):
        open_rows(tmp_path / "a.jsonl.gz")


def test_compressed_files_are_checked_on_any_number_of_cores(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (tmp_path / "a.jsonl.zst").write_bytes(pa.compress(lines, codec="zstd", asbytes=True))
    assert check_file(tmp_path / "a.jsonl.zst", workers=2).tally.num_kept == 5


MEMORY = """
import resource, sys
from alignloop.data.reading import Reading
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
count = sum(1 for _ in Reading(sys.argv[1], "preferences"))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
"""


def test_parquet_texts_that_stand_once_and_are_named_often_stay_in_flat_memory(tmp_path: Path) -> None:
    num_rows = 300  # 600 MB of texts in a kilobyte
    long = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), pa.array(["x" * 2_000_000]))
    table = pa.table({"prompt": long, "chosen": ["a"] * num_rows, "rejected": ["b"] * num_rows})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd")
    line = [sys.executable, "-c", MEMORY, str(tmp_path / "a.parquet")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    count, memory = done.stdout.split()
    assert int(count) == num_rows
    assert float(memory) < 350  # MiB


def test_parquet_that_unpacks_beyond_measure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "PIECE", 2**16)
    monkeypatch.setattr(tables, "LONGEST", 2**20)
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt": ["y" * 500_000] * 40}), path, compression="zstd", use_dictionary=False)
    with pytest.raises(DataError, match="row group 1 unpacks from"):
        values(path)
    parquet.write_table(pa.table({"prompt": ["y" * 2_000_000, "z"]}), path)
    with pytest.raises(DataError, match="column prompt of row group 1 holds a text of 2,000,000 bytes"):
        values(path)
    # A list that names one text of the dictionary a hundred thousand times.
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["x" * 1000]))
    turns = pa.StructArray.from_arrays([texts], ["content"])
    for ends in ([0, 100_000], [0, 50, 99_000, 100_000]):
        parquet.write_table(pa.table({"messages": pa.ListArray.from_arrays(ends, turns)}), path)
        with pytest.raises(DataError, match=r"column messages.* of row group 1 holds a row that unpacks to more"):
            values(path)
    monkeypatch.undo()
    monkeypatch.setattr(tables, "PIECE", 2**20)
    rows = [{"m": [{"role": "user", "content": f"{n % 7} " * 3000}] * (n % 3), "k": {"a": None}} for n in range(500)]
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    assert values(path) == rows


def write_arrow(path: Path, table: pa.Table, *, streamed: bool, compression: str | None) -> Path:
    new = pa.ipc.new_stream if streamed else pa.ipc.new_file
    with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("encoded", [True, False])
def test_arrow_that_unpacks_beyond_measure_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool, encoded: bool
) -> None:
    texts = pa.array(["a" * (40 << 20)])  # 40 MiB in some 4 kB
    table = pa.table({"prompt": texts.dictionary_encode() if encoded else texts})
    path = write_arrow(tmp_path / "a.arrow", table, streamed=streamed, compression="zstd")
    assert path.stat().st_size < 20_000
    before = pa.default_memory_pool().max_memory()
    kind = "dictionary" if encoded else "record batch"
    with pytest.raises(DataError, match=f"a.arrow: {kind} 1 unpacks from [0-9,]+ bytes at most to 41,943,"):
        values(path)
    assert pa.default_memory_pool().max_memory() == before
    monkeypatch.setattr(tables, "MOST_UNPACKED", 1000)
    small = pa.table({"prompt": ["".join(map(chr, range(40, 120))) * 20]})
    with pytest.raises(DataError, match=r"record batch 1 .*to 1,6[0-9]{2}: write the file anew, in smaller batches"):
        values(write_arrow(tmp_path / "b.arrow", small, streamed=streamed, compression="lz4"))
    assert len(values(write_arrow(tmp_path / "c.arrow", small, streamed=streamed, compression=None))) == 1


@pytest.mark.parametrize("compression", ["zstd", "lz4", None])
@pytest.mark.parametrize("streamed", [True, False])
def test_compressed_arrow_files_are_read(tmp_path: Path, streamed: bool, compression: str | None) -> None:
    table = pa.Table.from_pylist(ROWS * 1000)
    encoded = table.set_column(1, "chosen", table["chosen"].dictionary_encode())
    for found in (table, encoded, table.slice(0, 0)):
        path = write_arrow(tmp_path / "a.arrow", found, streamed=streamed, compression=compression)
        assert values(path) == found.to_pylist()


def test_a_broken_row_of_a_table_is_named(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist([*ROWS, {**ROWS[0], "chosen": None}]), tmp_path / "a.parquet")
    reading: Reading[PreferenceRow] = Reading(tmp_path / "a.parquet", "preferences")
    (bad,) = [row for row in reading if isinstance(row, RejectedRow)]
    assert (reading.unit, bad.line, bad.field) == ("row", 6, "chosen")
    (tmp_path / "kto.csv").write_text("prompt,completion,label\nQ,a,True\nQ,b,False\n")
    assert [type(row).__name__ for row in rows_of("sft", tmp_path / "kto.csv")] == ["SftRow", "RejectedRow"]


def test_csv_without_rows_and_csv_with_line_ends_of_old_macs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n")
    with pytest.raises(DataError, match=r"a\.csv: a header and no rows"):
        read_preferences([tmp_path / "a.csv"], max_bad_fraction=0)
    (tmp_path / "b.csv").write_bytes(b"prompt,chosen,rejected\rQ,a,b\rR,a,b\r")
    (problem,) = values(tmp_path / "b.csv")
    assert "lines end in CR alone" in problem
