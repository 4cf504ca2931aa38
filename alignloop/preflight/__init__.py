"""What can be known before any model is loaded: every problem at once."""

from alignloop.preflight.check import Checked, check

__all__ = ["Checked", "check"]
