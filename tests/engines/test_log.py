"""The engine's log is named where something failed, and gone where nothing did."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from alignloop.engines.log import log_named, temporary_log
from alignloop.errors import EngineError, TrainingError, UserError


def write_and_raise(log_file: Path, error: BaseException | None) -> None:
    log_file.write_text("words")
    if error is not None:
        raise error


def test_a_log_that_there_is_is_named(tmp_path: Path) -> None:
    log_file = tmp_path / "engine.log"
    with pytest.raises(EngineError) as caught, log_named(log_file):
        write_and_raise(log_file, EngineError("died"))
    assert caught.value.__notes__ == [f"What the engine said: {log_file}"]


def test_logs_of_engines_side_by_side_are_named_and_stay(tmp_path: Path) -> None:
    (tmp_path / "engine-1.log").write_text("words")
    with pytest.raises(EngineError) as caught, log_named(tmp_path / "engine.log"):
        write_and_raise(tmp_path / "engine-0.log", EngineError("died"))
    assert caught.value.__notes__ == [f"What the engine said: {tmp_path}/engine-0.log, {tmp_path}/engine-1.log"]
    with pytest.raises(EngineError) as caught, temporary_log() as log_file:
        write_and_raise(log_file.with_name("engine-0.log"), EngineError("died"))
    assert caught.value.__notes__ == [f"What the engine said: {log_file.with_name('engine-0.log')}"]
    log_file.with_name("engine-0.log").unlink()
    log_file.parent.rmdir()


@pytest.mark.parametrize("error", [TrainingError("NaN"), UserError("no file")])
def test_errors_that_are_not_the_engines_do_not_name_it(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, log_named(tmp_path / "engine.log"):
        write_and_raise(tmp_path / "engine.log", error)
    assert not hasattr(caught.value, "__notes__")


def test_nothing_is_named_where_there_is_no_log_or_the_error_names_it(tmp_path: Path) -> None:
    log_file = tmp_path / "engine.log"
    with pytest.raises(EngineError) as caught, log_named(log_file):
        raise EngineError("cannot start")
    assert not hasattr(caught.value, "__notes__")
    with pytest.raises(EngineError) as caught, log_named(log_file):
        write_and_raise(log_file, EngineError(f"died; the end of {log_file}"))
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (None, False),
        (UserError("no"), False),
        (KeyboardInterrupt(), False),
        (EngineError("died"), True),
        (KeyError(), True),
    ],
)
def test_a_temporary_log_stays_where_the_engine_failed(error: BaseException | None, stays: bool) -> None:
    folders = []
    with nullcontext() if error is None else pytest.raises(type(error)), temporary_log() as log_file:
        folders.append(log_file.parent)
        write_and_raise(log_file, error)
    assert folders[0].exists() == stays
    if stays:
        (folders[0] / "engine.log").unlink()
        folders[0].rmdir()
