"""Engines run models. `open_engine` gives one; `base` has the protocol; vLLM itself is imported in the child only."""
