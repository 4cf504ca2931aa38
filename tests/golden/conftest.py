"""Makes the tables of cases, which lie beside the tests that go through them, importable."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
