"""`alignloop compare-sampling A B`: rewards of two ways to sample, on the same prompts.

recipe ─► sample, score ─┐
scored file ─────────────┴► sides.read_side ─► pairing ─► compare ─► Comparison ─► text, page
"""

from __future__ import annotations
