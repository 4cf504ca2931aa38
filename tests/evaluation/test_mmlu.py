from __future__ import annotations

from pathlib import Path

import pytest

from alignloop.errors import DataError
from alignloop.evaluation.mmlu import read_mmlu
from alignloop.evaluation.tasks import local_mmlu

ROW = '"Where is the mill, exactly?",by the river,on the hill,in the town,nowhere,B'


def _folder(path: Path, *rows: str, dev: tuple[str, ...] = ()) -> Path:
    for part, lines in (("test", rows), ("dev", dev)):
        if lines:
            (path / part).mkdir()
            (path / part / f"old_places_{part}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_rows_are_read_as_published(tmp_path: Path) -> None:
    (subject,) = read_mmlu(_folder(tmp_path, ROW, ROW))
    assert subject.name == "old_places"
    assert len(subject.test) == 2
    assert subject.dev == ()
    assert subject.test[0] == {
        "question": "Where is the mill, exactly?",
        "choices": ["by the river", "on the hill", "in the town", "nowhere"],
        "answer": 1,
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("question,a,b,c,D", "5 columns"),
        ("question,a,b,c,d,answer", "no header row"),
        ("question,a,b,c,d,AB", "column 6"),
        ("question,a,,c,d,A", "option B is empty"),
        (",a,b,c,d,A", "the question is empty"),
    ],
)
def test_a_wrong_row_names_file_and_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=r"old_places_test\.csv, line 2") as caught:
        read_mmlu(_folder(tmp_path, ROW, row))
    assert message in str(caught.value)


def test_a_folder_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"_test\.csv"):
        read_mmlu(tmp_path)
    (tmp_path / "test" / "old_places_test.csv").mkdir(parents=True)
    with pytest.raises(DataError, match=r"old_places_test\.csv: a folder, not a file"):
        read_mmlu(tmp_path)


def test_files_of_other_encodings(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ROW, ROW)
    plain = read_mmlu(folder)
    file = folder / "test" / "old_places_test.csv"
    rows = file.read_bytes()
    file.write_bytes(b"\xef\xbb\xbf" + rows)  # as spreadsheets save UTF-8
    assert read_mmlu(folder) == plain
    file.write_bytes(rows + b"Caf\xe9,a,b,c,d,A\n")
    with pytest.raises(DataError, match=r"_test\.csv, line 3: not UTF-8"):
        read_mmlu(folder)


def test_letter_form_shows_the_options_as_lm_eval_does(tmp_path: Path) -> None:
    loaded = local_mmlu(_folder(tmp_path, ROW, dev=(ROW, ROW)))
    task = loaded.tasks["mmlu_old_places"]
    doc = task.eval_docs[0]
    assert task.doc_to_text(doc) == (
        "Where is the mill, exactly?\nA. by the river\nB. on the hill\nC. in the town\nD. nowhere\nAnswer:"
    )
    assert task.doc_to_choice(doc) == ["A", "B", "C", "D"]
    assert task.get_config("num_fewshot") == 2  # five are asked for, the file has two
    assert loaded.groups["mmlu"].child_names == ["mmlu_old_places"]


def test_option_text_form_shows_the_question_alone(tmp_path: Path) -> None:
    task = local_mmlu(_folder(tmp_path, ROW), form="option_text", num_fewshot=0).tasks["mmlu_old_places"]
    doc = task.eval_docs[0]
    assert task.doc_to_text(doc) == "Where is the mill, exactly?"
    assert task.doc_to_choice(doc) == ["by the river", "on the hill", "in the town", "nowhere"]
    assert task.doc_to_target(doc) == 1
