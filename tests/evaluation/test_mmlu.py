from __future__ import annotations

from pathlib import Path

import pytest
from evaluation_case import mmlu_folder

from alignloop.errors import DataError
from alignloop.evaluation.mmlu import read_mmlu
from alignloop.evaluation.tasks import local_mmlu

ROW = '"Where is the mill, exactly?",by the river,on the hill,in the town,nowhere,B'
OPTIONS = ["by the river", "on the hill", "in the town", "nowhere"]


def test_rows_are_read_as_published_also_with_a_mark_of_spreadsheets(tmp_path: Path) -> None:
    folder = mmlu_folder(tmp_path, {"old_places": [ROW, ROW]})
    (subject,) = read_mmlu(folder)
    assert (subject.name, len(subject.test), subject.dev) == ("old_places", 2, ())
    assert subject.test[0] == {"question": "Where is the mill, exactly?", "choices": OPTIONS, "answer": 1}
    file = folder / "test" / "old_places_test.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_mmlu(folder) == [subject]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"question,a,b,c,D", "5 columns"),
        (b"question,a,b,c,d,answer", "no header row"),
        (b"question,a,b,c,d,AB", "column 6"),
        (b"question,a,,c,d,A", "option B is empty"),
        (b",a,b,c,d,A", "the question is empty"),
        (b"Caf\xe9,a,b,c,d,A", "not UTF-8"),
    ],
)
def test_a_wrong_row_names_file_and_line(tmp_path: Path, row: bytes, message: str) -> None:
    file = mmlu_folder(tmp_path, {"old_places": [ROW]}) / "test" / "old_places_test.csv"
    file.write_bytes(file.read_bytes() + row + b"\n")
    with pytest.raises(DataError, match=rf"old_places_test\.csv, line 2: .*{message}"):
        read_mmlu(tmp_path)


def test_a_folder_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"_test\.csv"):
        read_mmlu(tmp_path)
    (tmp_path / "test" / "old_places_test.csv").mkdir(parents=True)
    with pytest.raises(DataError, match=r"old_places_test\.csv: a folder, not a file"):
        read_mmlu(tmp_path)


def test_letter_form_shows_the_options_as_lm_eval_does_and_option_text_form_the_question_alone(tmp_path: Path) -> None:
    folder = mmlu_folder(tmp_path, {"old_places": [ROW]}, [ROW, ROW])
    loaded = local_mmlu(folder)
    task = loaded.tasks["mmlu_old_places"]
    doc = task.eval_docs[0]
    assert task.doc_to_text(doc) == (
        "Where is the mill, exactly?\nA. by the river\nB. on the hill\nC. in the town\nD. nowhere\nAnswer:"
    )
    assert task.doc_to_choice(doc) == ["A", "B", "C", "D"]
    assert task.get_config("num_fewshot") == 2  # five are asked for, the file has two
    assert loaded.groups["mmlu"].child_names == ["mmlu_old_places"]
    task = local_mmlu(folder, form="option_text", num_fewshot=0).tasks["mmlu_old_places"]
    doc = task.eval_docs[0]
    assert task.doc_to_text(doc) == "Where is the mill, exactly?"
    assert (task.doc_to_choice(doc), task.doc_to_target(doc)) == (OPTIONS, 1)
