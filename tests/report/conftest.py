"""Makes `made_run` and `chromium`, which lie beside the tests of reports, importable."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
