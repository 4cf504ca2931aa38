"""`alignloop compare-sampling A B`: rewards of two ways to sample, on the same prompts.

recipe ─► sample, score ─┐
scored file ─────────────┴► sides.read_side ─► compare ─► SamplingComparison ─► printed: text, page
"""
