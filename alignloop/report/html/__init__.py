"""`report.html`: what a run came to, in one file that opens offline."""

from __future__ import annotations
