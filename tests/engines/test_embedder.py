from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModel

from alignloop.engines.embedder import embed_dialogs
from alignloop.progress import QuietProgress

DIALOGS = [tuple(range(5, 5 + length)) for length in (3, 20, 7, 1, 12)]


def test_rows_are_unit_means_of_the_last_hidden_states_in_the_order_given(checkpoints: SimpleNamespace) -> None:
    found = embed_dialogs(DIALOGS, checkpoint=checkpoints.a, batch_tokens=40, progress=QuietProgress())
    assert (found.shape, found.dtype) == ((5, 128), np.float32)
    model = AutoModel.from_pretrained(checkpoints.a, dtype=torch.float32)
    for row, ids in zip(found, DIALOGS, strict=True):
        with torch.inference_mode():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()
        assert row == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_same_dialogs_same_bytes(checkpoints: SimpleNamespace) -> None:
    first, second = (
        embed_dialogs(DIALOGS, checkpoint=checkpoints.a, batch_tokens=40, progress=QuietProgress()) for _ in range(2)
    )
    assert first.tobytes() == second.tobytes()


def test_no_dialogs_and_an_empty_dialog(checkpoints: SimpleNamespace) -> None:
    none = embed_dialogs([], checkpoint=checkpoints.a, batch_tokens=40, progress=QuietProgress())
    assert none.shape == (0, 128)
    with pytest.raises(ValueError, match="dialog 1 has no tokens"):
        embed_dialogs([(5,), ()], checkpoint=checkpoints.a, batch_tokens=40, progress=QuietProgress())
