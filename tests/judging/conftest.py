"""Makes the endpoint that tests of the judge decide on, which lies beside them, importable; and a fixture of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignloop.judging import askers

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A `judge_peer.Peer`; failed calls are soon made again, and no key is set."""
    from judge_peer import served

    monkeypatch.setattr(askers, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with served() as peer:
        yield peer
