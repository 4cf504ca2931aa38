"""What holds for all tests."""

from __future__ import annotations

import signal

# A shell's background job begins with Ctrl-C ignored, and hands that on to every process the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
